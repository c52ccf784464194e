"""How durations are counted: buckets that are even on a logarithmic scale, and the quantiles
that are read from them. Pure.

Four buckets to an octave: each bound is 2^(1/4) times the last, so a quantile is known
to about ±9 % even where interpolation tells nothing. 2^-20 s (1 µs) to 2^9 s.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import log2

_PER_OCTAVE, _LOWEST, _HIGHEST = 4, -20, 9
BUCKETS = (_HIGHEST - _LOWEST) * _PER_OCTAVE
"""The index of the last bucket, which holds all that is above 2^9 s."""
_OFFSET = 1 - _LOWEST * _PER_OCTAVE
_TINY = 2.0**_LOWEST

# 61 µs to 32 s: a series costs a backend 20 numbers, not 116.
_EXPORTED = range(-14, 6)
EXPORTED_BOUNDS = tuple(2.0**octave for octave in _EXPORTED)
SIGNED_BOUNDS = (*(-each for each in reversed(EXPORTED_BOUNDS)), *EXPORTED_BOUNDS)
_CUTS = [(octave - _LOWEST) * _PER_OCTAVE + 1 for octave in _EXPORTED]


def bound(index: int) -> float:
    """The upper bound of a bucket, in seconds. Bucket 0 holds all that is below 2^-20 s."""
    return float(2.0 ** (_LOWEST + index / _PER_OCTAVE))


def bucket_of(seconds: float) -> int:
    """Its bucket, 0..BUCKETS; of what is not above 0 the first."""
    index = int(log2(seconds) * _PER_OCTAVE + _OFFSET) if seconds > _TINY else 0
    return index if index < BUCKETS else BUCKETS  # noqa: FURB136 - faster


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One of the values that a bucket counted, and the span in which it was measured."""

    value: float
    time_ns: int
    trace_id: int
    span_id: int


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram: counts by upper bound (one more than bounds), and what is known of the rest.

    `sum` None: values may be negative, and then a sum that falls would be taken for a restart.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float | None
    low: float
    high: float
    exemplars: Sequence[Exemplar] = ()


class Durations:
    """Counts of one series. `sum` in seconds."""

    __slots__ = ("buckets", "errors", "sum")

    def __init__(self) -> None:
        self.buckets = [0] * (BUCKETS + 1)
        self.sum = 0.0
        self.errors = 0

    def add(self, seconds: float) -> None:
        # What bucket_of() does, without its call.
        index = int(log2(seconds) * _PER_OCTAVE + _OFFSET) if seconds > _TINY else 0
        self.buckets[index if index < BUCKETS else BUCKETS] += 1  # noqa: FURB136 - faster
        self.sum += seconds

    def distribution(self) -> Distribution:
        """The counts with a bucket to an octave; the fine ones fit into them exactly."""
        fine = list(self.buckets)
        held = [index for index, count in enumerate(fine) if count]
        return Distribution(
            EXPORTED_BOUNDS,
            _by_octave(fine),
            self.sum,
            bound(held[0] - 1) if held and held[0] else 0.0,
            bound(held[-1]) if held else 0.0,
        )


def _by_octave(fine: Sequence[int]) -> list[int]:
    return [sum(fine[a:b]) for a, b in pairwise((0, *_CUTS, len(fine)))]


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """The q-th quantile in seconds, interpolated in its bucket; None without a record."""
    total = sum(buckets)
    if not total:
        return None
    reached = list(accumulate(buckets))
    index = bisect_left(reached, max(q * total, 1e-9))
    low = bound(index - 1) if index else 0.0
    share = (q * total - (reached[index] - buckets[index])) / buckets[index]
    return low + (bound(index) - low) * share


class Spread:
    """Counts of values that may be negative, kept where there are any: a differing pair of
    durations, or few of them. A negative value is in bucket -1 - (the bucket of its amount)."""

    __slots__ = ("counts", "exemplars", "sum")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        """The latest of each octave."""

    def add(self, value: float, span: tuple[int, int] | None = None) -> None:
        """`span`: trace id and span id in which it was measured, where that is kept."""
        index = bucket_of(value) if value >= 0 else ~bucket_of(-value)
        self.counts[index] = self.counts.get(index, 0) + 1
        self.sum += value
        if span is not None:
            octave = bisect_left(SIGNED_BOUNDS, value)
            self.exemplars[octave] = Exemplar(value, time.time_ns(), *span)

    @property
    def count(self) -> int:
        return sum(list(self.counts.values()))

    def quantile(self, q: float) -> float | None:
        """As `quantile`."""
        return spread_quantile(self.counts, q)

    def distribution(self, *, signed: bool) -> Distribution:
        """With a bucket to an octave, `signed` with those below zero, too."""
        counts = dict(self.counts)
        above = [counts.get(index, 0) for index in range(BUCKETS + 1)]
        exemplars = list(self.exemplars.values())
        edges = [_edges(index) for index in sorted(counts)]
        low, high = (edges[0][0], edges[-1][1]) if edges else (0.0, 0.0)
        if not signed:
            held = _by_octave(above)
            return Distribution(EXPORTED_BOUNDS, held, self.sum, low, high, exemplars)
        below = _by_octave([counts.get(~index, 0) for index in range(BUCKETS + 1)])[::-1]
        rising = _by_octave(above)
        # The smallest amounts of both signs share the bucket around zero.
        joined = [*below[:-1], below[-1] + rising[0], *rising[1:]]
        return Distribution(SIGNED_BOUNDS, joined, None, low, high, exemplars)


def merged(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The counts of several spreads together."""
    total: dict[int, int] = {}
    for each in counts:
        for index, count in each.items():
            total[index] = total.get(index, 0) + count
    return total


def spread_quantile(counts: Mapping[int, int], q: float) -> float | None:
    """The q-th quantile of a spread's counts, in seconds; None without a record."""
    indices = sorted(counts)
    reached = list(accumulate(counts[index] for index in indices))
    if not reached:
        return None
    wanted = max(q * reached[-1], 1e-9)
    place = bisect_left(reached, wanted)
    held = counts[indices[place]]
    low, high = _edges(indices[place])
    return low + (high - low) * (wanted - (reached[place] - held)) / held


def _edges(index: int) -> tuple[float, float]:
    """The bounds of a spread's bucket."""
    amount = index if index >= 0 else ~index
    near, far = (bound(amount - 1) if amount else 0.0), bound(amount)
    return (near, far) if index >= 0 else (-far, -near)
