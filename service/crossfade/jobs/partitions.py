"""Ranges of names that together hold every document exactly once. Pure.

Names are in Firestore's order: segment by segment, numeric ids first. Everything that
lies below a root collection lies side by side in it, so a range may be cut anywhere and
subcollections need no thought of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from crossfade.document import OWN_COLLECTION_PREFIX, is_own
from crossfade.key import name_key
from crossfade.mapping import Mappings

LOWEST_ID = "__id-9223372036854775808__"
"""The first of all ids: numeric ones come first, and this is the lowest number."""
_AFTER_OWN = OWN_COLLECTION_PREFIX[:-1] + chr(ord(OWN_COLLECTION_PREFIX[-1]) + 1)


@dataclass(frozen=True, slots=True)
class NameRange:
    """The documents whose names come from `begin` on and before `end`; None: no such bound.
    Both are paths of documents, which need not exist. `collection`: the root collection it lies
    in, "" for several."""

    collection: str
    begin: str | None
    end: str | None

    def holds(self, path: str) -> bool:
        key = name_key(path)
        return (self.begin is None or name_key(self.begin) <= key) and (
            self.end is None or key < name_key(self.end)
        )


def lowest(collection: str) -> str:
    """The lowest name in a root collection."""
    return f"{collection}/{LOWEST_ID}"


def behind(collection: str) -> str:
    """The lowest name behind everything in a root collection."""
    return lowest(collection + "\0")


def tiles(roots: Iterable[str]) -> list[NameRange]:
    """Ranges that hold every name but Crossfade's own, one for each root collection. A
    collection that nobody knew of lies in the range of the one before it."""
    names = sorted({root for root in roots if not is_own(root)})
    below = [name for name in names if name < OWN_COLLECTION_PREFIX]
    above = [name for name in names if name >= _AFTER_OWN]
    return [
        *_side_by_side(below, None, lowest(OWN_COLLECTION_PREFIX)),
        *_side_by_side(above, lowest(_AFTER_OWN), None),
    ]


def _side_by_side(names: list[str], begin: str | None, end: str | None) -> list[NameRange]:
    if not names:
        return [NameRange("", begin, end)]
    inner = [lowest(name) for name in names[1:]]
    return [
        NameRange(name, *bounds)
        for name, bounds in zip(names, pairwise([begin, *inner, end]), strict=True)
    ]


def only(collections: Iterable[str]) -> list[NameRange]:
    """A range for each of these root collections."""
    return [NameRange(name, lowest(name), behind(name)) for name in sorted(set(collections))]


def cut(whole: NameRange, points: Iterable[str]) -> list[NameRange]:
    """The range, cut before each of the names that lie in it."""
    inner = sorted({point for point in points if whole.holds(point)}, key=name_key)
    if inner and inner[0] == whole.begin:
        del inner[0]
    return [
        NameRange(whole.collection, begin, end)
        for begin, end in pairwise([whole.begin, *inner, whole.end])
    ]


def ranked(ranges: Sequence[NameRange], mappings: Mappings) -> list[tuple[int, NameRange]]:
    """Ranges with their ranks, in order. Collections that others refer to come before those: a
    reference finds its parent, and what is derived its owner. Ranges of one collection stay in
    order."""
    ranks = _ranks(mappings)
    last = max(ranks.values(), default=0)
    placed = [(ranks.get(each.collection, last), each) for each in ranges]
    return sorted(placed, key=lambda each: each[0])


def _ranks(mappings: Mappings) -> dict[str, int]:
    """How many references lie between a root collection and one that refers to nothing. A
    subcollection comes with its root; derived ones come after their owners."""
    roots: Mapping[object, str] = {
        mapping.table: mapping.pattern.partition("/")[0] for mapping in mappings
    }
    needs: dict[str, set[str]] = {name: set() for name in roots.values()}
    for mapping in mappings:
        name = roots[mapping.table]
        owner = getattr(mapping, "owner", None)
        targets = [reference.target for reference in mapping.references]
        targets += [] if owner is None else [owner.table]
        needs[name] |= {roots[target] for target in targets if target in roots} - {name}
    ranks: dict[str, int] = {}

    def rank(name: str, above: frozenset[str]) -> int:
        if name not in ranks:
            # Of references in a circle one has to come first.
            deeper = [rank(each, above | {name}) for each in sorted(needs[name] - above)]
            ranks[name] = 1 + max(deeper, default=-1)
        return ranks[name]

    for name in sorted(needs):
        rank(name, frozenset())
    return ranks
