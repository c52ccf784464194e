"""How fast a job may go: by a rate, by how long a page takes, by what the store says. No I/O.

Times are seconds of a monotonic clock. What is waited for is the caller's to wait for.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TARGET_SECONDS = 0.5
"""How long a page should take when it is done: short enough that no lock is held for long."""
READING = 4.0
"""How many times as long it may be read: that holds nothing, is done ahead, and is lost only where
a job is stopped. To read less at a time spares little where a store's cost is one of each call."""
BURST_SECONDS = 0.05
"""What a rate allows in so long is read at once: a page holds up callers for as long as it takes,
and who names a rate wants them to notice little."""
LEAST_PAGE, MOST_PAGE = 100, 400
"""A page costs eight statements whatever is in it, so that smaller ones cost more than they spare;
more rows in one transaction would go alone (see stores/postgres/placement.py)."""
SLOW = 3.0
"""A store that takes so many times as long for a document as at its best is loaded."""
FORGET = 1.01
"""What was best is believed a little less with every page: the store may have become slower
for good."""
MOST_PAUSE = 30.0


class Rate:
    """Documents a second, of all workers of a process together. None: as fast as it goes."""

    def __init__(
        self, documents: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.documents = documents
        self._clock = clock
        self._free_at = clock()

    def delay(self) -> float:
        """Seconds to wait before the next page."""
        return 0.0 if self.documents is None else max(0.0, self._free_at - self._clock())

    def spend(self, documents: int) -> None:
        """So many are read. What was not used before is not saved up."""
        if self.documents is not None:
            self._free_at = max(self._free_at, self._clock()) + documents / self.documents

    def give_back(self, documents: int) -> None:
        """So many were not read after all."""
        if self.documents is not None:
            self._free_at -= documents / self.documents


class PageSize:
    """Documents in the next page, led by how long the last ones took: `target` seconds to do
    one, READING times as many to read it. `rate` bounds it too: a page of a slow copy would be
    a burst."""

    def __init__(self, most: int = MOST_PAGE, target: float = TARGET_SECONDS) -> None:
        self._most = most
        self._target = target
        self._size = min(100.0, most)

    def next(self, rate: float | None) -> int:
        size = self._size if rate is None else min(self._size, rate * BURST_SECONDS)
        return max(1, int(size))

    def took(self, documents: int, reading: float, doing: float) -> None:
        """A page of so many took so many seconds. One that was not full says nothing of larger
        ones."""
        seconds = max(reading / READING, doing)
        if documents < int(self._size) and seconds < self._target:
            return
        change = self._target / max(seconds, 1e-6)
        size = self._size * min(2.0, max(0.5, change))
        self._size = min(float(self._most), max(float(LEAST_PAGE), size))


class Pressure:
    """How many pages may be read at a time: one more for every round that went well, half
    as many when the store refuses, a fifth less when it becomes slow.

    With one at a time and refused all the same, pauses grow from `pause` to MOST_PAUSE.
    """

    def __init__(
        self, most: int, pause: float = 0.2, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._clock = clock
        self._allowed = float(most)
        self._under_way = 0
        self._first_pause = pause
        self._pause = pause
        self._resume_at = 0.0
        self._best: float | None = None
        self._recent: float | None = None
        self._calm_at = 0.0
        self._free = asyncio.Condition()

    @property
    def allowed(self) -> int:
        return max(1, int(self._allowed))

    def delay(self) -> float:
        """Seconds for which nothing may be asked."""
        return max(0.0, self._resume_at - self._clock())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A page that is read."""
        async with self._free:
            await self._free.wait_for(lambda: self._under_way < self.allowed)
            self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            async with self._free:
                self._free.notify_all()

    def refused(self) -> None:
        """The store has too much to do, or did not answer."""
        if self._allowed <= 1:
            self._resume_at = self._clock() + self._pause
            self._pause = min(MOST_PAUSE, self._pause * 2)
        self._allowed = max(1.0, self._allowed / 2)

    def answered(self, documents: int, seconds: float) -> None:
        """The store answered with so many documents."""
        self._pause = self._first_pause
        self._allowed = min(float(self._most), self._allowed + 1 / self._allowed)
        if documents < LEAST_PAGE:
            return
        each = seconds / documents
        self._best = each if self._best is None else min(each, self._best * FORGET)
        self._recent = each if self._recent is None else 0.8 * self._recent + 0.2 * each
        now = self._clock()
        if self._recent > SLOW * self._best and now >= self._calm_at:
            self._calm_at = now + 1.0
            self._allowed = max(1.0, self._allowed * 0.8)
