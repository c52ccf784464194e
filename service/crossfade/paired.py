"""The comparison of latencies: reads of which both stores were timed, PostgreSQL minus Firestore.

A pair is one read: the call that answered it, and the call of the other store that compared
it, each timed from the call to the reply in the same process. What differs between two
pairs (the document, the hour, the load) is the same within each, so their differences show
what the stores' own distributions do not. Kept since the start, for the export, and in
slots of ten seconds for an hour.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from crossfade.durations import Spread, merged, spread_quantile

SLOT_SECONDS = 10.0
SLOTS = 360
"""An hour."""

Key = tuple[str, str]
"""Collection and operation."""


class Pairs:
    """The pairs of one collection and operation."""

    __slots__ = ("difference", "firestore", "postgresql")

    def __init__(self) -> None:
        self.firestore = Spread()
        self.postgresql = Spread()
        self.difference = Spread()

    def add(self, firestore: float, postgresql: float, span: tuple[int, int] | None) -> None:
        self.firestore.add(firestore, span)
        self.postgresql.add(postgresql, span)
        self.difference.add(postgresql - firestore, span)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds; of a difference, PostgreSQL's minus Firestore's: negative where it is faster."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The pairs of a collection and an operation in a time. `slower`: the share of them in
    which PostgreSQL took longer. `histogram`: the differences, (upper bound in seconds, count),
    where there are any."""

    collection: str
    operation: str
    count: int
    firestore: Quantiles
    postgresql: Quantiles
    difference: Quantiles
    slower: float
    histogram: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """All pairs that were wanted of a part of the time. `at`: seconds since 1970, of its begin.
    Quantiles are None where there was no pair."""

    at: float
    count: int
    firestore: Quantiles | None
    postgresql: Quantiles | None
    difference: Quantiles | None


class Paired:
    """`clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.since_start: dict[Key, Pairs] = {}
        self._slots: deque[tuple[int, dict[Key, Pairs]]] = deque(maxlen=SLOTS)

    def add(
        self,
        collection: str,
        operation: str,
        firestore: float,
        postgresql: float,
        span: tuple[int, int] | None = None,
    ) -> None:
        """A read of which both stores were timed, in seconds. `span`: trace id and span id of
        the call, if its trace is kept."""
        number = int(self._clock() // SLOT_SECONDS)
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append((number, {}))
        for pairs in (self.since_start, self._slots[-1][1]):
            key = (collection, operation)
            held = pairs.get(key)
            if held is None:
                held = pairs[key] = Pairs()
            # The slots are not exported.
            held.add(firestore, postgresql, span if pairs is self.since_start else None)

    def comparisons(
        self, since: float | None = None, *, collection: str = "", operation: str = ""
    ) -> list[Comparison]:
        """By collection and operation, sorted; `since`: of the last so many seconds (to ten),
        None: since the start. Empty strings stand for all of them."""
        if since is None:
            by_key = {key: [pairs] for key, pairs in list(self.since_start.items())}
        else:
            by_key = {}
            for _, slot in self._since(since):
                for key, pairs in slot.items():
                    by_key.setdefault(key, []).append(pairs)
        return [
            _comparison(*key, held)
            for key, held in sorted(by_key.items())
            if _wanted(key, collection, operation)
        ]

    def moments(
        self,
        since: float,
        *,
        step: float = SLOT_SECONDS,
        collection: str = "",
        operation: str = "",
    ) -> list[Moment]:
        """The last `since` seconds in parts of `step` (a multiple of ten is meant), the oldest
        first, with those in which nothing was compared."""
        width = max(1, round(step / SLOT_SECONDS))
        last = int(self._clock() // SLOT_SECONDS) // width
        first = last - max(0, round(since / SLOT_SECONDS / width) - 1)
        parts: dict[int, list[Pairs]] = {number: [] for number in range(first, last + 1)}
        for number, slot in list(self._slots):
            if number // width in parts:
                parts[number // width] += [
                    pairs for key, pairs in slot.items() if _wanted(key, collection, operation)
                ]
        return [_moment(n * width * SLOT_SECONDS, pairs) for n, pairs in parts.items()]

    def _since(self, seconds: float) -> list[tuple[int, dict[Key, Pairs]]]:
        oldest = int((self._clock() - seconds) // SLOT_SECONDS)
        return [each for each in list(self._slots) if each[0] > oldest]


def _wanted(key: Key, collection: str, operation: str) -> bool:
    return collection in {"", key[0]} and operation in {"", key[1]}


def _quantiles(counts: Mapping[int, int]) -> Quantiles | None:
    p50, p95, p99 = (spread_quantile(counts, q) for q in (0.5, 0.95, 0.99))
    if p50 is None or p95 is None or p99 is None:
        return None
    return Quantiles(p50, p95, p99)


def _three(pairs: Iterable[Pairs]) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    held = list(pairs)
    return (
        merged(each.firestore.counts for each in held),
        merged(each.postgresql.counts for each in held),
        merged(each.difference.counts for each in held),
    )


def _comparison(collection: str, operation: str, pairs: Iterable[Pairs]) -> Comparison:
    three = _three(pairs)
    firestore, postgresql, difference = map(_quantiles, three)
    assert firestore is not None  # noqa: S101 - no Pairs is without one
    assert postgresql is not None  # noqa: S101
    assert difference is not None  # noqa: S101
    spread = Spread()
    spread.counts = three[2]
    count = spread.count
    found = spread.distribution(signed=True)
    return Comparison(
        collection,
        operation,
        count,
        firestore,
        postgresql,
        difference,
        sum(n for index, n in three[2].items() if index >= 0) / count,
        tuple(
            (bound, n)
            for bound, n in zip((*found.bounds, float("inf")), found.counts, strict=True)
            if n
        ),
    )


def _moment(at: float, pairs: Iterable[Pairs]) -> Moment:
    three = _three(pairs)
    return Moment(at, sum(three[2].values()), *map(_quantiles, three))
