"""What the last minutes were like: a point every few seconds, for as long as a plot goes back.

It is what this sidecar has counted. Kept in memory: whoever needs more has Prometheus.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from crossfade.durations import quantile
from crossfade.figures import EVERY, STORES, Tally, tallies
from crossfade.telemetry import OLDEST_PENDING, PENDING, RECOPIES, VERDICTS, Gauge, Telemetry

INTERVAL_SECONDS = 5.0
MINUTE = 12
KEPT = 180
"""Points: 15 minutes."""


@dataclass(frozen=True, slots=True)
class Calls:
    """A store's reads in an interval. Quantiles in seconds; None without a read."""

    count: int = 0
    errors: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """`at`: seconds since 1970, the end of the interval. `reads` by collection ("" is all of
    them) and store; `verdicts` by collection and verdict; the backlog None: not known."""

    serial: int
    at: float
    reads: Mapping[str, Mapping[str, Calls]] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pending: float | None = None
    oldest_seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        return {
            "serial": self.serial,
            "at": round(self.at, 1),
            "reads": plain_reads(self.reads),
            "verdicts": self.verdicts,
            "pending": self.pending,
            "oldest_seconds": self.oldest_seconds,
        }


@dataclass(frozen=True, slots=True)
class Keeping:
    """How the mirror kept up in the last minute. `count`: commits and documents that it was told
    of; seconds from the authority's commit to its having them, None without one. `recopied`:
    documents."""

    count: int
    p50: float | None
    p99: float | None
    recopied: int


class History:
    """`clock`: seconds since 1970."""

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float] = time.time) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._serial = 0
        self._tallies = deque([tallies(telemetry)], maxlen=MINUTE)
        self._verdicts = telemetry.counts(VERDICTS)
        self._kept_up = deque([self._keeping()], maxlen=MINUTE)
        self.added: Callable[[], None] = lambda: None
        """Called after each point."""

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            self.observe()

    def observe(self) -> None:
        """Adds the point of the time since the one before."""
        now, verdicts = tallies(self._telemetry), self._telemetry.counts(VERDICTS)
        self._serial += 1
        point = Point(
            self._serial,
            self._clock(),
            _reads(now, self._tallies[-1]),
            _risen(verdicts, self._verdicts),
            over_groups(self._telemetry, PENDING, sum),
            over_groups(self._telemetry, OLDEST_PENDING, max),
        )
        self._points.append(point)
        self._tallies.append(now)
        self._verdicts = verdicts
        self._kept_up.append(self._keeping())
        self.added()

    def last_minute(self) -> dict[str, dict[str, Calls]]:
        """By collection and store, up to now: quantiles of points cannot be put together."""
        return _reads(tallies(self._telemetry), self._tallies[0])

    def keeping(self) -> Keeping:
        """Of the last minute, up to now."""
        (now, recopied), (before, formerly) = self._keeping(), self._kept_up[0]
        lags = [a - b for a, b in zip(now, before, strict=True)]
        return Keeping(sum(lags), quantile(lags, 0.5), quantile(lags, 0.99), recopied - formerly)

    def _keeping(self) -> tuple[list[int], int]:
        return self._telemetry.lags(), self._telemetry.total(RECOPIES)

    def since(self, serial: int) -> list[Point]:
        """The points after one."""
        return [point for point in self._points if point.serial > serial]


def over_groups(
    telemetry: Telemetry, gauge: Gauge, put_together: Callable[[Iterable[float]], float]
) -> float | None:
    """What a gauge shows of all groups together; None: nothing."""
    held = telemetry.read_gauge(gauge).values()
    return put_together(held) if held else None


def plain_reads(reads: Mapping[str, Mapping[str, Calls]]) -> dict[str, Any]:
    """Short, because many of them travel: [count, errors, p50, p95, p99], milliseconds."""
    return {
        name: {
            store: [each.count, each.errors, *map(ms, (each.p50, each.p95, each.p99))]
            for store, each in stores.items()
        }
        for name, stores in reads.items()
    }


def _reads(now: Mapping[str, Tally], before: Mapping[str, Tally]) -> dict[str, dict[str, Calls]]:
    """Of the collections that were read between two looks."""
    found = {}
    for name, tally in now.items():
        former = before.get(name, Tally())
        calls = {store: _calls(tally, former, store) for store in STORES}
        if any(each.count for each in calls.values()):
            found[name] = calls
    return found


def _calls(now: Tally, before: Tally, store: str) -> Calls:
    buckets = [
        a - b
        for a, b in zip_longest(
            now.buckets.get(store, []), before.buckets.get(store, []), fillvalue=0
        )
    ]
    return Calls(
        now.counts.get(store, 0) - before.counts.get(store, 0),
        now.errors.get(store, 0) - before.errors.get(store, 0),
        *(quantile(buckets, q) for q in (0.5, 0.95, 0.99)),
    )


def _risen(
    now: Mapping[tuple[str, ...], int], before: Mapping[tuple[str, ...], int]
) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (collection, verdict), count in now.items():
        risen = count - before.get((collection, verdict), 0)
        if risen:
            found.setdefault(collection, {})[verdict] = risen
            every = found.setdefault(EVERY, {})
            every[verdict] = every.get(verdict, 0) + risen
    return found


def ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
