"""How many billed reads of Firestore a day Crossfade may spend on its own.

The budget is one for all sidecars and survives their restarts: each takes a small part
of it at a time from a row in PostgreSQL, and spends that without asking anybody. When
it is spent the comparing pauses until the next day (UTC); callers never notice, for
their own reads are not Crossfade's and are not counted.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Protocol

import structlog

from crossfade.errors import CrossfadeError

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 1.0
PARTS = 100
"""Into how many parts a day's budget is divided. What a sidecar that dies had left of its
part is lost for the day."""
LEAST = 100
"""Reads in a part, if the budget has as many."""


class Reservations(Protocol):
    """Where it is kept how much of a day is given away."""

    async def reserve(self, day: date, reads: int, daily: int) -> tuple[int, int]:
        """Gives away up to so many reads of the day's budget; returns how many, and how many
        are given away in all."""
        ...


class Budget:
    """`daily` None: there is no limit. `spend` and `afford` wait for nothing and raise nothing."""

    def __init__(
        self,
        daily: int | None,
        reservations: Reservations | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._daily = daily
        self._reservations = reservations
        self._clock = clock
        self._part = min(daily or 0, max(LEAST, (daily or 0) // PARTS))
        self._day = self._today()
        self._held = 0
        self._given = 0
        self._exhausted = False

    def afford(self) -> bool:
        """Whether there is something left. A comparison that has begun is ended, so that a part
        may be overdrawn by what is under way; the next part pays for it."""
        return self._daily is None or (self._held > 0 and self._day == self._today())

    @property
    def held(self) -> int | None:
        """What is left of the part that this process holds. None: there is no limit."""
        return None if self._daily is None else self._held

    def spend(self, reads: int) -> None:
        if self._daily is not None:
            self._held -= reads

    @property
    def left(self) -> float | None:
        """What all sidecars together have left of the day, as far as this one knows: what others
        hold counts as spent. None: there is no limit, or nothing is known yet."""
        if self._daily is None or not self._given:
            return None
        return float(max(self._daily - self._given + self._held, 0))

    async def run(self) -> None:
        """Runs for ever: takes the next part before this one is spent."""
        while self._daily is not None:
            try:
                await self.refill()
            except CrossfadeError as error:
                log.info("no part of the budget can be taken", error=error.code)
            await asyncio.sleep(PERIOD_SECONDS)
        await asyncio.Event().wait()

    async def refill(self) -> None:
        today = self._today()
        if today != self._day:
            # What was left of yesterday is not carried over.
            self._day, self._held, self._given, self._exhausted = today, 0, 0, False
        if self._daily is None or self._reservations is None or self._exhausted:
            return
        wanted = self._part - self._held
        if wanted <= self._part // 2:
            return
        got, given = await self._reservations.reserve(today, wanted, self._daily)
        self._held += got
        self._given = given
        self._exhausted = given >= self._daily
        if self._exhausted:
            log.warning("the day's budget of Firestore reads is given away", daily=self._daily)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()
