"""Where a job's ranges are cut: by what the stores can tell, without reading what lies in them.

Firestore's PartitionQuery gives names of documents that cut a collection evenly. Where the
server has no such method (the official emulator), names are looked for: the next document
behind a name costs one read, and ids that begin alike are jumped over.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import structlog

from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import NAME, Reference, numeric_id, path_key
from crossfade.errors import InfrastructureError, InvalidArgument, Unimplemented
from crossfade.jobs.partitions import NameRange, cut, only, ranked, tiles
from crossfade.mapping import Mappings
from crossfade.query import Cursor, Order, Query
from crossfade.stores.firestore import INTENTS, FirestoreStore
from crossfade.stores.firestore_names import collection_ids, first_from, partition_points
from crossfade.stores.postgres.held import HeldPages

log = structlog.get_logger(__name__)

SMALL = 2_000
"""A database of so many documents is one partition: nothing would be won by more."""
PARTS = 32
"""Into how many a large collection is cut: more than there are workers, so that all of them
have something to do to the end."""
LEAST_PART = 1_000
"""Documents; a smaller collection is not cut further."""
PROBES = 120
"""Reads that looking for names may cost, for each collection."""
_LONGEST = 64
_LAST_CODE = 0x10FFFF
_LAST = chr(_LAST_CODE)
_SLASH = ord("/")
_KEPT = 25
"""Probes that are kept for halving all characters there are."""


async def plan_firestore(
    firestore: FirestoreStore,
    mappings: Mappings,
    *,
    collections: Sequence[str] = (),
    parts: int = PARTS,
    small: int = SMALL,
    timeout: float,
) -> tuple[list[tuple[int, NameRange]], int | None]:
    """The ranges with their ranks, in order, and how many documents there are, about (None: the
    server does not count). Raises InvalidArgument for a collection that is not there."""
    everything = NameRange("", None, None)
    if not collections and small:
        count = await count_in(firestore, everything, timeout=timeout, up_to=small + 1)
        if count is not None and count <= small:
            return [(0, everything)], count
    roots = await collection_ids(firestore, timeout=timeout)
    _check(collections, roots, mappings)
    ranges: list[NameRange] = []
    total: int | None = 0
    for whole in only(collections) if collections else tiles(roots):
        count = await count_in(firestore, whole, timeout=timeout)
        total = None if total is None or count is None else total + count
        wanted = parts if count is None else min(parts, count // LEAST_PART)
        if wanted > 1 and whole.collection:
            ranges += cut(whole, await _points(firestore, mappings, whole, wanted, timeout))
        else:
            ranges.append(whole)
    if not collections:
        ranges.append(NameRange(INTENTS, None, None))
    return ranked(ranges, mappings), total


def _check(collections: Sequence[str], roots: Sequence[str], mappings: Mappings) -> None:
    known = {mapping.pattern.partition("/")[0] for mapping in mappings} | set(roots)
    for name in collections:
        if name not in known:
            raise InvalidArgument(
                f'"{name[:120]}" is no root collection here; a subcollection goes with the root '
                f"collection that it lies below"
            )


async def count_in(
    firestore: FirestoreStore, names: NameRange, *, timeout: float, up_to: int | None = None
) -> int | None:
    """How many documents a range holds: one read is billed for a thousand. None: the server does
    not say."""
    counting = Aggregation(AggregationKind.COUNT, "n", up_to=up_to)
    try:
        found = await firestore.aggregate(within(names), [counting], timeout=timeout)
    except (InvalidArgument, Unimplemented, InfrastructureError) as error:
        log.info("documents are not counted", collection=names.collection, error=error.code)
        return None
    count = found.values["n"]
    return count if isinstance(count, int) else None


def within(names: NameRange, *, after: str | None = None, limit: int | None = None) -> Query:
    """The documents of a range in the order of names; behind `after`, if that is given."""
    start = None
    if after is not None:
        start = Cursor((Reference(after),), before=False)
    elif names.begin is not None:
        start = Cursor((Reference(names.begin),), before=True)
    return Query(
        all_descendants=True,
        order_by=(Order(NAME),),
        start=start,
        end=None if names.end is None else Cursor((Reference(names.end),), before=True),
        limit=limit,
    )


# --- points ------------------------------------------------------------------------------------


async def _points(
    firestore: FirestoreStore, mappings: Mappings, whole: NameRange, parts: int, timeout: float
) -> list[str]:
    """Names that cut a range into about so many parts. A document's subcollections may hold more
    than its collection, so that names of theirs are asked for, too."""
    below = [
        mapping.collection_id
        for mapping in mappings
        if mapping.parent is not None and mapping.parent.collection_id == whole.collection
    ]
    found: set[str] = set()
    try:
        for group in (whole.collection, *below):
            found |= set(await partition_points(firestore, group, parts - 1, timeout=timeout))
    except (Unimplemented, InvalidArgument, InfrastructureError):

        async def first(name: str) -> str | None:
            return await first_from(firestore, name, whole.end, timeout=timeout)

        return await sampled(first, whole.collection, parts)
    inner = sorted((point for point in found if whole.holds(point)), key=path_key)
    return _spread(inner, parts * (1 + len(below)) - 1)


async def sampled(
    first: Callable[[str], Awaitable[str | None]],
    collection: str,
    parts: int,
    probes: int = PROBES,
) -> list[str]:
    """Names in a root collection between which its documents lie. `first`: the first document
    from a name on.

    Ids are told apart by how they begin. What all of them begin with is found by halving; then
    the different beginnings are gone through, one character longer each time, until there are
    enough of them.
    """
    look = _Looking(first, collection, probes)
    common = await look.common()
    found: list[str] = []
    for length in range(len(common) + 1, _LONGEST):
        longer, complete = await look.beginnings(length)
        if not complete:
            break
        found = longer
        if len(found) >= parts:
            break
    if not found:
        found = [common, *await look.between(common, parts)]
    return [f"{collection}/{beginning}" for beginning in _spread(found[1:], parts - 1)]


def _spread(points: Sequence[str], most: int) -> list[str]:
    """At most so many of them, evenly."""
    if len(points) <= most:
        return list(points)
    return [points[number * len(points) // most] for number in range(most)]


class _Looking:
    """Looks for ids with at most `left` questions."""

    def __init__(
        self, first: Callable[[str], Awaitable[str | None]], collection: str, left: int
    ) -> None:
        self._first = first
        self._collection = collection
        self.left = left

    async def _from(self, beginning: str | None) -> str | None:
        """The first id from a text on (None: from the lowest on) that is not a number."""
        name = "\1" if beginning is None else beginning  # behind all numeric ids
        self.left -= 1
        path = await self._first(f"{self._collection}/{name}")
        if path is None or not path.startswith(f"{self._collection}/"):
            return None
        identity = path.split("/")[1]
        return None if numeric_id(identity) is not None else identity

    async def common(self) -> str:
        """What all ids begin with."""
        lowest_id = await self._from(None)
        if lowest_id is None:
            return ""
        low, high = 0, len(lowest_id)
        while low < high and self.left > _KEPT:
            middle = (low + high + 1) // 2
            behind = _behind(lowest_id[:middle])
            alike = behind is None or await self._from(behind) is None
            low, high = (middle, high) if alike else (low, middle - 1)
        return lowest_id[:low]

    async def beginnings(self, length: int) -> tuple[list[str], bool]:
        """The different first characters of ids, in order, and whether those are all: there may
        be too many to ask for."""
        found: list[str] = []
        position: str | None = None
        while self.left > _KEPT:
            identity = await self._from(position)
            if identity is None:
                return found, True
            found.append(identity[:length])
            position = _behind(identity[:length])
            if position is None:
                return found, True
        return found, False

    async def between(self, common: str, parts: int) -> list[str]:
        """Beginnings as far from one another, as numbers of characters, as may be: where ids
        begin with any of thousands of characters."""
        first = await self._from(None)
        if first is None or len(first) <= len(common):
            return []
        low = ord(first[len(common)])
        known, high = low, _LAST_CODE
        while known < high and self.left > 0:
            middle = (known + high + 1) // 2
            there = await self._from(common + _character(middle)) is not None
            known, high = (middle, high) if there else (known, middle - 1)
        codes = {low + (known - low) * number // parts for number in range(1, parts)}
        return [common + _character(code) for code in sorted(codes - {low})]


def _character(code: int) -> str:
    """The character of a number, or the next one that an id may hold."""
    if code == _SLASH:
        return chr(code + 1)
    return chr(0xE000 if 0xD800 <= code < 0xE000 else code)


def _behind(beginning: str) -> str | None:
    """The lowest text behind all that begin so; None: there is none."""
    kept = beginning.rstrip(_LAST)
    if not kept:
        return None
    return kept[:-1] + _character(ord(kept[-1]) + 1)


# --- PostgreSQL ----------------------------------------------------------------------------------


async def plan_postgresql(
    held: HeldPages, collections: Sequence[str], parts: int = PARTS, *, timeout: float
) -> tuple[list[tuple[int, NameRange]], int | None]:
    """The same for documents of PostgreSQL. Ranges are of paths as it sorts them: what lies
    below a root collection lies side by side there, too."""
    # "0" follows "/".
    whole = [NameRange(name, f"{name}/", f"{name}0") for name in sorted(set(collections))]
    ranges: list[tuple[int, NameRange]] = []
    total = 0
    for each in whole or [NameRange("", None, None)]:
        count = await held.count(each.begin, each.end, timeout=timeout)
        total += count
        wanted = min(parts, count // LEAST_PART)
        points: Sequence[str] = ()
        if wanted > 1:
            points = await held.points(each.begin, each.end, wanted, count, timeout=timeout)
        ranges += [
            (0, NameRange(each.collection, begin, end))
            for begin, end in pairwise([each.begin, *points, each.end])
        ]
    return ranges, total
