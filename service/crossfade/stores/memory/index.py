"""Where the documents of a query can be found without looking at all of them.

Names stand in order, once for the database, once for each collection and once for
each collection group. A field of a group is indexed when a query first asks for it, and
from then on kept. What an index gives holds every document of the result and maybe
more: `crossfade.query` decides, as it does for every store.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sortedcontainers import SortedList

from crossfade.document import (
    ABSENT,
    NAME,
    Document,
    FieldPath,
    Reference,
    collection_id,
    collection_path,
    get_field,
    kind,
)
from crossfade.key import after, below_key, name_key, prefix_of, value_key
from crossfade.query import (
    RANGES,
    CompositeFilter,
    Cursor,
    FieldFilter,
    Filter,
    Op,
    Order,
    Query,
)

SMALL = 256
"""A collection group of so many documents is looked through as a whole."""
MOST_INDEXES = 16
"""Of one collection group; the one that was not used for longest makes room."""

Entry: TypeAlias = tuple[bytes, bytes]
"""A value key and a name key."""
_HIGH = b"\xff"
"""After every name key."""
_NONE: Any = SortedList()


@dataclass(frozen=True, slots=True)
class Found:
    """The name keys of documents, at most `count`. `ordered`: in the query's order."""

    keys: Iterable[bytes]
    count: int
    ordered: bool = False


class Indexes:
    """All indexes of a database. `documents` holds the documents by name key."""

    def __init__(self, documents: dict[bytes, Document]) -> None:
        self._documents = documents
        self.names: Any = SortedList()
        self._by_path: dict[str, Any] = {}
        self._groups: dict[str, _Group] = {}

    def add(self, key: bytes, document: Document) -> None:
        """A document that is new."""
        self.names.add(key)
        self._by_path.setdefault(collection_path(document.path), SortedList()).add(key)
        group = collection_id(document.path)
        self._groups.setdefault(group, _Group(self._documents)).add(key, document)

    def remove(self, key: bytes, document: Document) -> None:
        """A document that is gone."""
        self.names.remove(key)
        path, group = collection_path(document.path), collection_id(document.path)
        self._by_path[path].remove(key)
        if not self._by_path[path]:
            del self._by_path[path]
        self._groups[group].remove(key, document)
        if not self._groups[group].names:
            del self._groups[group]

    def change(self, key: bytes, before: Document, document: Document) -> None:
        """Other fields of a document that stays."""
        self._groups[collection_id(document.path)].change(key, before, document)

    def load(self, documents: Iterable[tuple[bytes, Document]]) -> None:
        """Many documents that are new: sorted once instead of placed one by one."""
        by_path: dict[str, list[bytes]] = {}
        keys = []
        for key, document in documents:
            keys.append(key)
            by_path.setdefault(collection_path(document.path), []).append(key)
        self.names.update(keys)
        for path, ours in by_path.items():
            self._by_path.setdefault(path, SortedList()).update(ours)
            group = path.rpartition("/")[2]
            self._groups.setdefault(group, _Group(self._documents)).load(ours)

    # --- names ---------------------------------------------------------------------------------

    def of_collection(self, path: str) -> Any:
        """The name keys of one collection, in order."""
        return self._by_path.get(path, _NONE)

    def below(self, prefix: bytes) -> Iterator[bytes]:
        """The name keys that begin with a prefix, in order."""
        keys: Iterator[bytes] = self.names.irange(prefix, after(prefix) if prefix else _HIGH)
        return keys

    def collection_ids(self, parent: str) -> Iterator[str]:
        """The ids of the collections right below a document, or below the root for ""."""
        depth = parent.count("/") + 1 if parent else 0
        return (path.split("/")[depth] for path in self._children(parent, depth))

    def documents_below(self, collection: str, low: bytes) -> Iterator[str]:
        """The documents of a collection from a key on, also those that are missing and have
        descendants."""
        depth = collection.count("/") + 1
        return (
            "/".join(path.split("/")[: depth + 1])
            for path in self._children(collection, depth, low)
        )

    def _children(self, path: str, depth: int, low: bytes = b"") -> Iterator[str]:
        """A document for each different segment that follows `path`, which has `depth`
        segments. What lies below a segment is skipped, however much it is."""
        prefix = below_key(path)
        low, high = max(low, prefix), after(prefix) if prefix else _HIGH
        while (key := next(self.names.irange(low, high), None)) is not None:
            found = self._documents[key].path
            segments = found.split("/")[: depth + 1]
            if len(segments) > depth:
                yield found
                low = after(below_key("/".join(segments)))
            else:  # the document `path` itself
                low = key + b"\x00"

    # --- queries -------------------------------------------------------------------------------

    def find(self, query: Query, orders: tuple[Order, ...]) -> Found:
        """Where to look for a legal query's documents."""
        scope = self._scope(query)
        names = self._named(query, orders, scope)
        group = self._groups.get(query.collection) if query.collection is not None else None
        if group is None or names.count <= SMALL:
            return names
        narrowed = None if query.where is None else group.narrow(query.where)
        best = names
        if narrowed is not None and narrowed.count < names.count:
            best = narrowed
        walkable = len(orders) == 2 and orders[1] == Order(NAME, orders[0].descending)
        if query.limit is None or not walkable:
            return best
        # How many entries a walk in the order of the first field meets before it has found
        # enough, if what passes the filter lies evenly among them.
        expected = (query.offset + query.limit) * len(group.names) / max(best.count, 1)
        return group.walk(query, orders[0]) if expected < best.count else best

    def _scope(self, query: Query) -> tuple[Any, bytes]:
        """The names that the query may reach, and what they begin with."""
        if query.collection is None:
            return self.names, below_key(query.parent)
        if query.collection_path is not None:
            return self.of_collection(query.collection_path), b""
        group = self._groups.get(query.collection)
        return (_NONE if group is None else group.names), below_key(query.parent)

    def _named(self, query: Query, orders: tuple[Order, ...], scope: tuple[Any, bytes]) -> Found:
        """The names of the scope, within what filters and cursors of `__name__` leave."""
        names, prefix = scope
        if not names:
            return Found((), 0, ordered=True)
        low, high = prefix, after(prefix) if prefix else _HIGH
        descending = orders[0].descending
        by_name = orders[0].path == NAME
        ends = [(query.start, not descending), (query.end, descending)] if by_name else []
        for cursor, lower in ends:
            key = _first_name(cursor)
            if key is not None:
                low, high = (max(low, key), high) if lower else (low, min(high, key))
        for leaf in _conjuncts(query.where):
            if leaf.path == NAME and leaf.op in RANGES and isinstance(leaf.value, Reference):
                key = name_key(leaf.value.name)
                upper = leaf.op in {Op.LESS_THAN, Op.LESS_THAN_OR_EQUAL}
                low, high = (low, min(high, key)) if upper else (max(low, key), high)
        if low > high:
            return Found((), 0, ordered=True)
        count = names.bisect_right(high) - names.bisect_left(low)
        keys = names.irange(low, high, reverse=by_name and descending)
        return Found(keys, count, ordered=by_name)


class _Group:
    """The documents of a collection group, and the indexes of their fields."""

    def __init__(self, documents: dict[bytes, Document]) -> None:
        self.names: Any = SortedList()
        self._documents = documents
        self._indexes: dict[tuple[FieldPath, bool], _FieldIndex] = {}

    def add(self, key: bytes, document: Document) -> None:
        self.names.add(key)
        for index in self._indexes.values():
            index.replace(key, None, document)

    def remove(self, key: bytes, document: Document) -> None:
        self.names.remove(key)
        for index in self._indexes.values():
            index.replace(key, document, None)

    def change(self, key: bytes, before: Document, document: Document) -> None:
        for index in self._indexes.values():
            index.replace(key, before, document)

    def load(self, keys: Iterable[bytes]) -> None:
        self.names.update(keys)
        self._indexes.clear()  # made anew when they are asked for

    def narrow(self, where: Filter) -> Found | None:
        """The documents that may pass a filter; None if no index tells."""
        if isinstance(where, FieldFilter):
            return self._leaf(where)
        if not where.any_of:
            found = [*map(self.narrow, where.filters), *self._intervals(where)]
            return min((f for f in found if f is not None), key=lambda f: f.count, default=None)
        parts = []
        for inner in where.filters:
            part = self.narrow(inner)
            if part is None:
                return None
            parts.append(part)
        return _together(parts)

    def walk(self, query: Query, first: Order) -> Found:
        """The group in the order of a query's first field, and of names in the same direction."""
        low, high = b"", _HIGH
        for leaf in _conjuncts(query.where):
            if leaf.path == first.path and (bounds := _bounds(leaf)) is not None:
                low, high = max(low, bounds[0]), min(high, bounds[1])
        start, end = (_first_key(query.start), _first_key(query.end))
        if first.descending:
            start, end = end, start
        low = low if start is None else max(low, start)
        high = high if end is None else min(high, end)
        found = self._index(first.path).between(low, high, reverse=first.descending)
        return Found(found.keys, found.count, ordered=True)

    def _leaf(self, leaf: FieldFilter) -> Found | None:
        value = leaf.value
        if leaf.path == NAME:
            return self._names_equal(leaf)
        if leaf.op in _SINGLE and (bounds := _bounds(leaf)) is not None:
            return self._index(leaf.path).between(*bounds)
        if leaf.op is Op.ARRAY_CONTAINS:
            return self._equal(leaf.path, [value], arrays=True)
        if leaf.op in {Op.IN, Op.ARRAY_CONTAINS_ANY} and isinstance(value, list):
            return self._equal(leaf.path, value, arrays=leaf.op is not Op.IN)
        return None

    def _equal(self, path: FieldPath, values: list[Any], *, arrays: bool) -> Found:
        index = self._index(path, arrays=arrays)
        keys = {value_key(value) for value in values}
        return _together([index.between(key, key) for key in keys])

    def _names_equal(self, leaf: FieldFilter) -> Found | None:
        values = leaf.value if isinstance(leaf.value, list) else [leaf.value]
        if leaf.op not in {Op.EQUAL, Op.IN}:
            return None
        keys = {name_key(value.name) for value in values if isinstance(value, Reference)}
        present = [key for key in keys if key in self._documents]
        return Found(present, len(present))

    def _intervals(self, where: CompositeFilter) -> Iterator[Found]:
        """Ranges of one field beside one another: what lies in all of them."""
        ranges: dict[FieldPath, list[tuple[bytes, bytes]]] = {}
        for leaf in _conjuncts(where):
            if leaf.op in RANGES and leaf.path != NAME and (bounds := _bounds(leaf)) is not None:
                ranges.setdefault(leaf.path, []).append(bounds)
        for path, several in ranges.items():
            if len(several) > 1:
                low, high = max(low for low, _ in several), min(high for _, high in several)
                yield self._index(path).between(low, high)

    def _index(self, path: FieldPath, *, arrays: bool = False) -> "_FieldIndex":
        """The index of a field, made if it is not there."""
        index = self._indexes.pop((path, arrays), None)
        if index is None:
            if len(self._indexes) >= MOST_INDEXES:
                del self._indexes[next(iter(self._indexes))]
            index = _FieldIndex(path, arrays=arrays)
            index.fill((key, self._documents[key]) for key in self.names)
        self._indexes[path, arrays] = index  # the last one used comes last
        return index


class _FieldIndex:
    """The values of one field in order, or the items of the arrays that it holds."""

    def __init__(self, path: FieldPath, *, arrays: bool) -> None:
        self._path = path
        self._arrays = arrays
        self._entries: Any = SortedList()

    def fill(self, documents: Iterable[tuple[bytes, Document]]) -> None:
        self._entries.update(
            (value, key) for key, document in documents for value in self._values(document)
        )

    def replace(self, key: bytes, before: Document | None, document: Document | None) -> None:
        old, new = self._values(before), self._values(document)
        for value in old - new:
            self._entries.remove((value, key))
        for value in new - old:
            self._entries.add((value, key))

    def between(self, low: bytes, high: bytes, *, reverse: bool = False) -> Found:
        """The documents whose value keys lie between two, both included, in order."""
        first, last = (low,), (high, _HIGH)
        count = self._entries.bisect_right(last) - self._entries.bisect_left(first)
        if count <= 0:
            return Found((), 0)
        return Found((key for _, key in self._entries.irange(first, last, reverse=reverse)), count)

    def _values(self, document: Document | None) -> set[bytes]:
        value = ABSENT if document is None else get_field(document.fields, self._path)
        if value is ABSENT:
            return set()
        if not self._arrays:
            return {value_key(value)}
        return set(map(value_key, value)) if isinstance(value, list) else set()


_SINGLE = RANGES | {Op.EQUAL, Op.IS_NULL, Op.IS_NAN}
_UPPER = {Op.LESS_THAN, Op.LESS_THAN_OR_EQUAL}


def _bounds(leaf: FieldFilter) -> tuple[bytes, bytes] | None:
    """The lowest and the highest key of a value that passes; None where there is no such
    interval."""
    if leaf.op is Op.IS_NULL:
        return value_key(None), value_key(None)
    if leaf.op is Op.IS_NAN:
        return value_key(math.nan), value_key(math.nan)
    if leaf.op not in _SINGLE:
        return None
    key = value_key(leaf.value)
    if leaf.op is Op.EQUAL:
        return key, key
    prefix = prefix_of(kind(leaf.value))
    return (prefix, key) if leaf.op in _UPPER else (key, after(prefix))


def _together(parts: Sequence[Found]) -> Found:
    """What is in any of the parts, once. Sorted: the order of a set of bytes changes with
    every process."""
    if len(parts) == 1:
        return parts[0]
    return Found(
        sorted({key for part in parts for key in part.keys}), sum(part.count for part in parts)
    )


def _conjuncts(where: Filter | None) -> Iterator[FieldFilter]:
    """The field filters that every document of the result passes."""
    if isinstance(where, FieldFilter):
        yield where
    elif where is not None and (not where.any_of or len(where.filters) == 1):
        for inner in where.filters:
            yield from _conjuncts(inner)


def _first_key(cursor: Cursor | None) -> bytes | None:
    return None if cursor is None or not cursor.values else value_key(cursor.values[0])


def _first_name(cursor: Cursor | None) -> bytes | None:
    """The name key of a cursor whose first value is a name."""
    value = cursor.values[0] if cursor is not None and cursor.values else None
    return name_key(value.name) if isinstance(value, Reference) else None
