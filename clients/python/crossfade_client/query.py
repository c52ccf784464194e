"""Queries: a frozen builder, and its message. No I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from crossfade_api.v1 import crossfade_pb2 as rpc_pb
from crossfade_api.v1 import query_pb2 as pb
from crossfade_client import _codec, _paths
from crossfade_client.errors import InvalidArgumentError
from crossfade_client.values import FieldPath, Reference, Snapshot

_NAME = ("__name__",)
_Q = pb.StructuredQuery
_OPERATORS = {
    "<": _Q.FieldFilter.LESS_THAN,
    "<=": _Q.FieldFilter.LESS_THAN_OR_EQUAL,
    ">": _Q.FieldFilter.GREATER_THAN,
    ">=": _Q.FieldFilter.GREATER_THAN_OR_EQUAL,
    "==": _Q.FieldFilter.EQUAL,
    "!=": _Q.FieldFilter.NOT_EQUAL,
    "array-contains": _Q.FieldFilter.ARRAY_CONTAINS,
    "array-contains-any": _Q.FieldFilter.ARRAY_CONTAINS_ANY,
    "in": _Q.FieldFilter.IN,
    "not-in": _Q.FieldFilter.NOT_IN,
}
_INEQUALITIES = {"<", "<=", ">", ">=", "!=", "not-in"}


@dataclass(frozen=True, slots=True)
class Filter:
    """`op`: < <= > >= == != in not-in array-contains array-contains-any. Comparing with
    None or NaN by == and != asks for null and NaN, as in Firestore."""

    field: FieldPath
    op: str
    value: Any

    def __post_init__(self) -> None:
        if self.op.replace("_", "-") not in _OPERATORS:
            known = " ".join(_OPERATORS)
            raise InvalidArgumentError(f'query: "{self.op}" is not an operator; one of {known}')


@dataclass(frozen=True, init=False, slots=True)
class _Composite:
    filters: "tuple[AnyFilter, ...]"

    def __init__(self, *filters: "AnyFilter") -> None:
        if not filters:
            raise InvalidArgumentError(f"query: {type(self).__name__} of no filters")
        object.__setattr__(self, "filters", filters)


class And(_Composite):
    """Every filter holds."""

    __slots__ = ()


class Or(_Composite):
    """At least one filter holds."""

    __slots__ = ()


AnyFilter: TypeAlias = Filter | And | Or


@dataclass(frozen=True, slots=True)
class _Cursor:
    values: tuple[Any, ...]
    before: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A query over a collection ("tasks", "tasks/1/audio_chunks"), or over every collection
    of that id with `group=True`. Each method returns a new query.

    Without an order, documents come by their ids.
    """

    collection: str
    group: bool = False
    filters: tuple[AnyFilter, ...] = ()
    orders: tuple[tuple[FieldPath, bool], ...] = ()
    start: _Cursor | None = None
    end: _Cursor | None = None
    skip: int = 0
    most: int | None = None
    fields: tuple[FieldPath, ...] | None = None

    def where(self, field: FieldPath | AnyFilter, op: str = "==", value: Any = None) -> "Query":
        """Adds a filter that must hold too: `where("status", "==", "done")` or `where(Or(...))`."""
        added = field if isinstance(field, Filter | And | Or) else Filter(field, op, value)
        return replace(self, filters=(*self.filters, added))

    def order_by(self, field: FieldPath, *, descending: bool = False) -> "Query":
        """Documents without the field are left out."""
        return replace(self, orders=(*self.orders, (field, descending)))

    def start_at(self, *values: Any) -> "Query":
        """Begins at the position of the values of the order_by fields, or of a Snapshot."""
        return replace(self, start=_Cursor(values, before=True))

    def start_after(self, *values: Any) -> "Query":
        return replace(self, start=_Cursor(values, before=False))

    def end_before(self, *values: Any) -> "Query":
        return replace(self, end=_Cursor(values, before=True))

    def end_at(self, *values: Any) -> "Query":
        return replace(self, end=_Cursor(values, before=False))

    def offset(self, count: int) -> "Query":
        return replace(self, skip=count)

    def limit(self, count: int) -> "Query":
        return replace(self, most=count)

    def select(self, *fields: FieldPath) -> "Query":
        """Only these fields of the documents; none given: no field."""
        return replace(self, fields=fields or ("__name__",))


# --- the message --------------------------------------------------------------------------------


def request(query: Query) -> rpc_pb.QueryRequest:
    """Raises InvalidArgumentError for what cannot be encoded."""
    parent, _, collection = query.collection.rpartition("/")
    if not collection or len(query.collection.split("/")) % 2 == 0:
        raise InvalidArgumentError(
            f'query: "{query.collection[:120]}" is not the path of a collection'
        )
    message = rpc_pb.QueryRequest(parent=parent)
    body = message.query
    getattr(body, "from").add(collection_id=collection, all_descendants=query.group)
    if len(query.filters) == 1:
        _fill_filter(query.filters[0], body.where)
    elif query.filters:
        _fill_filter(And(*query.filters), body.where)
    for path, descending in _orders(query):
        direction = _Q.DESCENDING if descending else _Q.ASCENDING
        body.order_by.add(direction=direction).field.field_path = _paths.spell(path)
    orders = _orders(query)
    if query.start is not None:
        _fill_cursor(query.start, orders, body.start_at)
    if query.end is not None:
        _fill_cursor(query.end, orders, body.end_at)
    body.offset = query.skip
    if query.most is not None:
        body.limit.value = query.most
    if query.fields is not None:
        for field in query.fields:
            body.select.fields.add(field_path=_spell(field))
    return message


def _spell(field: FieldPath) -> str:
    return _paths.spell(_paths.parse(field))


def _orders(query: Query) -> list[tuple[tuple[str, ...], bool]]:
    """The explicit orders; with a Snapshot as a cursor the implicit ones too, spelled out,
    since a cursor may not have more values than the query has explicit orders."""
    orders = [(_paths.parse(field), descending) for field, descending in query.orders]
    cursors = [cursor for cursor in (query.start, query.end) if cursor is not None]
    if not any(isinstance(value, Snapshot) for cursor in cursors for value in cursor.values):
        return orders
    seen = {path for path, _ in orders}
    last = orders[-1][1] if orders else False
    orders += [(path, last) for path in sorted(_unequal(query.filters) - seen - {_NAME})]
    if _NAME not in seen:
        orders.append((_NAME, last))
    return orders


def _unequal(filters: Sequence[AnyFilter]) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for each in filters:
        if not isinstance(each, Filter):
            found |= _unequal(each.filters)
        elif each.op.replace("_", "-") in _INEQUALITIES:
            found.add(_paths.parse(each.field))
    return found


def _fill_cursor(
    cursor: _Cursor, orders: list[tuple[tuple[str, ...], bool]], into: pb.Cursor
) -> None:
    values = cursor.values
    if len(values) == 1 and isinstance(values[0], Snapshot):
        values = tuple(_of_snapshot(values[0], path) for path, _ in orders)
    into.before = cursor.before
    paths = [path for path, _ in orders] or [_NAME]
    for index, value in enumerate(values):
        at_name = index < len(paths) and paths[index] == _NAME
        operand = _reference(value) if at_name else value
        _codec.encode_value(operand, into.values.add(), f"cursor[{index}]")


def _of_snapshot(snapshot: Snapshot, path: tuple[str, ...]) -> Any:
    if path == _NAME:
        return snapshot.reference
    value: Any = snapshot.fields
    for name in path:
        if not isinstance(value, dict) or name not in value:
            raise InvalidArgumentError(
                f"query: the snapshot that is the cursor lacks the field {_paths.spell(path)}"
            )
        value = value[name]
    return value


def _reference(value: Any) -> Any:
    """An operand for `__name__`; a path is taken as well."""
    if isinstance(value, list | tuple):
        return [_reference(item) for item in value]
    return Reference(value) if isinstance(value, str) else value


def _fill_filter(each: AnyFilter, into: pb.StructuredQuery.Filter) -> None:
    if isinstance(each, Filter):
        _fill_leaf(each, into)
        return
    composite = into.composite_filter
    composite.op = _Q.CompositeFilter.OR if isinstance(each, Or) else _Q.CompositeFilter.AND
    for inner in each.filters:
        _fill_filter(inner, composite.filters.add())


def _fill_leaf(each: Filter, into: pb.StructuredQuery.Filter) -> None:
    path = _paths.parse(each.field)
    op = each.op.replace("_", "-")
    unary = _unary(op, each.value)
    if unary is not None:
        into.unary_filter.op = unary
        into.unary_filter.field.field_path = _paths.spell(path)
        return
    leaf = into.field_filter
    leaf.field.field_path = _paths.spell(path)
    leaf.op = _OPERATORS[op]
    value = _reference(each.value) if path == _NAME else each.value
    _codec.encode_value(value, leaf.value, f"filter {_paths.spell(path)}")


def _unary(op: str, value: Any) -> "pb.StructuredQuery.UnaryFilter.Operator.ValueType | None":
    if op not in {"==", "!="}:
        return None
    if value is None:
        return _Q.UnaryFilter.IS_NULL if op == "==" else _Q.UnaryFilter.IS_NOT_NULL
    if isinstance(value, float) and math.isnan(value):
        return _Q.UnaryFilter.IS_NAN if op == "==" else _Q.UnaryFilter.IS_NOT_NAN
    return None
