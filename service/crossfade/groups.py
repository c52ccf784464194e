"""Groups of collections: each is migrated for itself, with a stage and an authority of its own.

A group is a set of collection ids: the last one of a document's path, so that a query, which
names one, is always of one group, wherever its documents lie. What no group names is in
`default`. Pure, no I/O.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from crossfade.document import collection_id

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Group:
    """`collections`: a named group's own; of `default` all that others have, because it has
    what they have not. Sorted. `layout`: what all groups are, in a form that is compared; empty
    where there is but one."""

    name: str = DEFAULT
    collections: tuple[str, ...] = ()
    layout: str = ""
    _listed: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_listed", frozenset(self.collections))

    @property
    def named(self) -> bool:
        return self.name != DEFAULT

    def holds(self, collection: str) -> bool:
        return (collection in self._listed) is self.named

    @property
    def wildcards(self) -> tuple[str, ...]:
        """What pending rows have for a path that stand for all of the group's documents."""
        return self.collections if self.named else ("",)


class Groups:
    """All groups of a sidecar; `named`: the collections of each but `default`."""

    def __init__(self, named: Mapping[str, Iterable[str]] | None = None) -> None:
        given = {name: tuple(sorted(of)) for name, of in sorted((named or {}).items())}
        layout = json.dumps(given, separators=(",", ":")) if given else ""
        everywhere = tuple(sorted(each for of in given.values() for each in of))
        self._by_collection = {each: name for name, of in given.items() for each in of}
        self.all: Sequence[Group] = (
            Group(DEFAULT, everywhere, layout),
            *(Group(name, of, layout) for name, of in given.items()),
        )

    @property
    def layout(self) -> str:
        return self.all[0].layout

    def __contains__(self, name: str) -> bool:
        return any(group.name == name for group in self.all)

    def of(self, collection: str) -> str:
        """The name of the group that a collection id belongs to."""
        return self._by_collection.get(collection, DEFAULT)

    def spanned(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The names of the groups that documents belong to, in order."""
        by_collection = self._by_collection
        return tuple(sorted({by_collection.get(collection_id(path), DEFAULT) for path in paths}))


def groups_of(layout: str) -> Groups:
    """The groups of a layout."""
    return Groups(json.loads(layout) if layout else None)


def sources(before: Groups, after: Groups) -> dict[str, tuple[str, ...]]:
    """For each group of `after`, the groups of `before` that it has collections from; first
    the one of its own name, if there was one."""
    found = {}
    for group in after.all:
        if group.named:
            of = {before.of(collection) for collection in group.collections}
        else:
            listed = {name for each in before.all for name in each.collections}
            of = {before.of(name) for name in listed if group.holds(name)} | {DEFAULT}
        of |= {group.name} if group.name in before else set()
        found[group.name] = tuple(sorted(of, key=lambda name: (name != group.name, name)))
    return found


def shown(layout: str) -> str:
    """A layout for people."""
    if not layout:
        return "one group with all collections"
    named: dict[str, list[str]] = json.loads(layout)
    return "; ".join(f"{name} with {', '.join(of)}" for name, of in named.items())
