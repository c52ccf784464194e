"""What holds back whoever works on a store alone: a rate, the day's budget of billed reads, and
the store itself, where it refuses or does not answer.

Jobs of several workers have the same in work.py, where the rate is shared as well.
"""

import asyncio
import time

import structlog

from crossfade.budget import Budget
from crossfade.errors import InfrastructureError, ResourceExhausted
from crossfade.jobs.effort import OF_BUDGET
from crossfade.jobs.pace import TARGET_SECONDS, Pressure, Rate

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.5
"""After so long it is looked at again whether there is a budget."""
PATIENCE = 60.0
REFUSALS = (InfrastructureError, ResourceExhausted)
"""Of a store that may answer later: whoever gets one asks again."""


class Brake:
    """`rate`: documents a second, at most. `budget` None: reads cost nothing, or are not to be
    counted. `patience`: seconds for which the store may be away, without a break."""

    def __init__(
        self, rate: float | None = None, budget: Budget | None = None, patience: float = PATIENCE
    ) -> None:
        self._rate = Rate(rate)
        self._budget = budget
        self._patience = patience
        self._pressure = Pressure(1)
        self._failing_since: float | None = None
        self.waits_for = ""
        """What is waited for, for whoever shows it; empty: for nothing but the rate."""

    async def allow(self, most: int) -> int:
        """How many documents may be read now, up to `most`, as soon as that is any."""
        per_second = self._rate.documents
        if per_second is not None:
            # A page of a slow archive would be a burst.
            most = min(most, max(1, int(per_second * TARGET_SECONDS)))
        while True:
            delay = max(self._rate.delay(), self._pressure.delay())
            if delay <= 0 and self._budget is not None:
                if self._budget.afford():
                    held = self._budget.held
                    most = most if held is None else min(most, max(1, held))
                else:
                    self.waits_for, delay = OF_BUDGET, LOOK_SECONDS
            if delay <= 0:
                return most
            await asyncio.sleep(min(delay, LOOK_SECONDS))

    def spend(self, documents: int, reads: int) -> None:
        """The store answered: so many documents, and Firestore bills so many reads for that."""
        self._failing_since = None
        self.waits_for = ""
        self._pressure.answered(0, 0.0)
        self._rate.spend(documents)
        if self._budget is not None:
            self._budget.spend(reads)

    def refused(self, error: InfrastructureError | ResourceExhausted) -> None:
        """The store did not: the next `allow` waits, longer each time. Raises `error` when the
        store has been away for too long; a quota is waited for, if until tomorrow."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        away = now - self._failing_since
        if away > self._patience and not isinstance(error, ResourceExhausted):
            raise error
        self._pressure.refused()
        self.waits_for = f"a store ({error.code})"
        log.info("a store is waited for", error=error.code)
