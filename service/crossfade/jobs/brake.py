"""What holds back whoever reads a store alone: a rate, and the day's budget of billed reads.

Jobs of several workers have the same in work.py, where the rate is shared as well.
"""

import asyncio

from crossfade.budget import Budget
from crossfade.jobs.pace import TARGET_SECONDS, Rate
from crossfade.jobs.work import OF_BUDGET

LOOK_SECONDS = 0.5
"""After so long it is looked at again whether there is a budget."""


class Brake:
    """`rate`: documents a second, at most. `budget` None: reads cost nothing, or are not to be
    counted."""

    def __init__(self, rate: float | None = None, budget: Budget | None = None) -> None:
        self._rate = Rate(rate)
        self._budget = budget
        self.waits_for = ""
        """What is waited for, for whoever shows it; empty: for nothing but the rate."""

    async def allow(self, most: int) -> int:
        """How many documents may be read now, up to `most`, as soon as that is any."""
        per_second = self._rate.documents
        if per_second is not None:
            # A page of a slow archive would be a burst.
            most = min(most, max(1, int(per_second * TARGET_SECONDS)))
        while True:
            delay = self._rate.delay()
            if delay <= 0 and self._budget is not None:
                if self._budget.afford():
                    held = self._budget.held
                    most = most if held is None else min(most, max(1, held))
                else:
                    self.waits_for, delay = OF_BUDGET, LOOK_SECONDS
            if delay <= 0:
                self.waits_for = ""
                return most
            await asyncio.sleep(min(delay, LOOK_SECONDS))

    def spend(self, documents: int, reads: int) -> None:
        """So many documents were read, and Firestore bills so many reads for that."""
        self._rate.spend(documents)
        if self._budget is not None:
            self._budget.spend(reads)
