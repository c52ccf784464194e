"""What PostgreSQL really answered, beside the percent that was set.

A read that the percent sends to the mirror goes to the authority while anything it needs is
pending; under steady writes that may be most of them. So a ramp has to look at this share.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping

from crossfade.plan import StoreName
from crossfade.telemetry import READS, Telemetry

WINDOW_SECONDS = 60.0

Counts = Mapping[tuple[str, ...], int]


class Effective:
    """The share of a collection's reads that PostgreSQL answered in the last minute."""

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._seen: deque[tuple[float, Counts]] = deque([(clock(), {})])

    def observe(self) -> None:
        """Takes note of the counts so far; called every few seconds."""
        now = self._clock()
        self._seen.append((now, dict(self._telemetry.counts(READS))))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_SECONDS:
            self._seen.popleft()

    def percents(self) -> dict[str, float]:
        """By collection, 0..100; a collection that nobody read is not in it."""
        before, now = self._seen[0][1], self._telemetry.counts(READS)
        totals: dict[str, int] = {}
        ours: dict[str, int] = {}
        for (collection, store), count in now.items():
            risen = count - before.get((collection, store), 0)
            totals[collection] = totals.get(collection, 0) + risen
            if store == StoreName.POSTGRESQL.value:
                ours[collection] = risen
        return {
            collection: 100.0 * ours.get(collection, 0) / total
            for collection, total in totals.items()
            if total
        }
