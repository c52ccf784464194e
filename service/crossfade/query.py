"""Queries and the readable reference of their semantics. Pure.

`run` answers a query over any documents exactly as Firestore does; every store
either calls it or must give the same answer (tests/contract).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeAlias

from crossfade import nearest as neighbours
from crossfade.document import (
    ABSENT,
    NAME,
    Document,
    FieldPath,
    Kind,
    Reference,
    Value,
    check_field_path,
    collection_id,
    collection_path,
    equal,
    get_field,
    kind,
    order_key,
    with_fields,
)
from crossfade.errors import InvalidArgument
from crossfade.nearest import Nearest

MAX_IN = 30
MAX_NOT_IN = 10
MAX_DISJUNCTIONS = 30
MAX_INEQUALITY_FIELDS = 10
MAX_FILTERS = 100
"""Filters and orders of one query together."""


class Op(StrEnum):
    """Operators by their names in the protocol; the last four take no operand."""

    LESS_THAN = "LESS_THAN"
    LESS_THAN_OR_EQUAL = "LESS_THAN_OR_EQUAL"
    GREATER_THAN = "GREATER_THAN"
    GREATER_THAN_OR_EQUAL = "GREATER_THAN_OR_EQUAL"
    EQUAL = "EQUAL"
    NOT_EQUAL = "NOT_EQUAL"
    ARRAY_CONTAINS = "ARRAY_CONTAINS"
    IN = "IN"
    ARRAY_CONTAINS_ANY = "ARRAY_CONTAINS_ANY"
    NOT_IN = "NOT_IN"
    IS_NAN = "IS_NAN"
    IS_NULL = "IS_NULL"
    IS_NOT_NAN = "IS_NOT_NAN"
    IS_NOT_NULL = "IS_NOT_NULL"


RANGES = {
    Op.LESS_THAN,
    Op.LESS_THAN_OR_EQUAL,
    Op.GREATER_THAN,
    Op.GREATER_THAN_OR_EQUAL,
}
NEGATIONS = {Op.NOT_EQUAL, Op.NOT_IN, Op.IS_NOT_NAN, Op.IS_NOT_NULL}
INEQUALITIES = RANGES | NEGATIONS
ARRAYS = {Op.ARRAY_CONTAINS, Op.ARRAY_CONTAINS_ANY}
LISTS = {Op.IN, Op.NOT_IN, Op.ARRAY_CONTAINS_ANY}


@dataclass(frozen=True, slots=True)
class FieldFilter:
    """`value` is None for the unary operators. An operand for `__name__` is a Reference
    whose name is a *relative* path."""

    path: FieldPath
    op: Op
    value: Value = None


@dataclass(frozen=True, slots=True)
class CompositeFilter:
    """`any_of`: OR; else AND."""

    any_of: bool
    filters: "tuple[Filter, ...]"


Filter: TypeAlias = FieldFilter | CompositeFilter


@dataclass(frozen=True, slots=True)
class Order:
    path: FieldPath
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position among the ordered documents: just before or just after the values."""

    values: tuple[Value, ...]
    before: bool


@dataclass(frozen=True, slots=True)
class Query:
    """One query. `parent` is a document path or "" for the root; no `collection`: all of them.

    `raw` is the query as it came over the wire, so that it can be passed on without
    encoding it again. It is no argument, so a changed copy (`replace`) never has it.
    """

    parent: str = ""
    collection: str | None = None
    all_descendants: bool = False
    where: Filter | None = None
    order_by: tuple[Order, ...] = ()
    start: Cursor | None = None
    end: Cursor | None = None
    offset: int = 0
    limit: int | None = None
    select: tuple[FieldPath, ...] | None = None
    nearest: Nearest | None = None
    raw: bytes | None = field(default=None, init=False, compare=False, repr=False)

    def keep_raw(self, raw: bytes) -> None:
        """For the decoder only: `raw` says exactly what the other fields say."""
        object.__setattr__(self, "raw", raw)

    @property
    def whole(self) -> bool:
        """Whether the result's documents are as they are stored: nothing left out or added."""
        added = self.nearest is not None and self.nearest.result_field is not None
        return self.select is None and not added

    @property
    def collection_path(self) -> str | None:
        """The one collection that is read, or None for a group or a kindless query."""
        if self.collection is None or self.all_descendants:
            return None
        return f"{self.parent}/{self.collection}" if self.parent else self.collection


def run(query: Query, documents: Iterable[Document]) -> list[Document]:
    """The query's documents, in order, projected. Raises InvalidArgument for an illegal query."""
    orders = check(query)
    matching = matcher(query, orders)
    return finish(query, orders, [document for document in documents if matching(document)])


def finish(
    query: Query, orders: tuple[Order, ...], documents: list[Document], *, ordered: bool = False
) -> list[Document]:
    """Order, offset, limit (or nearest neighbours) and projection of documents that match.
    Sorts in place, unless they are `ordered`."""
    for order in () if ordered else reversed(orders):  # stable, so the last order first
        documents.sort(
            key=lambda d: order_key(field_value(d, order.path)), reverse=order.descending
        )
    if query.nearest is not None:
        documents = neighbours.find(query.nearest, documents)
    stop = None if query.limit is None else query.offset + query.limit
    return [project(document, query.select) for document in documents[query.offset : stop]]


def field_value(document: Document, path: FieldPath) -> Any:
    """The value that filters and orders see: `__name__` is the document's path."""
    return Reference(document.path) if path == NAME else get_field(document.fields, path)


def project(document: Document, select: tuple[FieldPath, ...] | None) -> Document:
    if select is None:
        return document
    values = ((path, get_field(document.fields, path)) for path in select if path != NAME)
    found = ((path, value) for path, value in values if value is not ABSENT)
    return replace(document, fields=with_fields({}, found))


# --- matching ----------------------------------------------------------------------------------


def matcher(query: Query, orders: tuple[Order, ...]) -> Callable[[Document], bool]:
    """Whether a document is in the query's scope, passes its filter, has its order fields and
    lies between its cursors."""
    where, start, end = query.where, query.start, query.end
    needed = [order.path for order in orders if order.path != NAME]

    def matches(document: Document) -> bool:
        return (
            in_scope(query, document.path)
            and all(get_field(document.fields, path) is not ABSENT for path in needed)
            and (where is None or passes(where, document))
            and (start is None or _side(document, orders, start) >= (0 if start.before else 1))
            and (end is None or _side(document, orders, end) < (0 if end.before else 1))
        )

    return matches


def in_scope(query: Query, path: str) -> bool:
    if query.collection is not None and collection_id(path) != query.collection:
        return False
    if not query.all_descendants:
        parent = collection_path(path).rpartition("/")[0]
        return parent == query.parent
    return not query.parent or path.startswith(query.parent + "/")


def passes(where: Filter, document: Document) -> bool:
    if isinstance(where, CompositeFilter):
        results = (passes(inner, document) for inner in where.filters)
        return any(results) if where.any_of else all(results)
    value = field_value(document, where.path)
    return value is not ABSENT and holds(where.op, value, where.value)


def holds(op: Op, value: Any, operand: Any) -> bool:
    """Whether a present value passes an operator.

    null and NaN as operands equal nothing and come before and after nothing (only
    the unary operators find them); inside a map or an array they are values like others.
    """
    if op in RANGES:
        if _nothing(value) or _nothing(operand) or kind(value) is not kind(operand):
            return False
        a, b = order_key(value), order_key(operand)
        if op is Op.LESS_THAN:
            return a < b
        if op is Op.LESS_THAN_OR_EQUAL:
            return a <= b
        return a > b if op is Op.GREATER_THAN else a >= b
    return _TESTS[op](value, operand)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _nothing(operand: Any) -> bool:
    return operand is None or _is_nan(operand)


def _is(value: Any, operand: Any) -> bool:
    return not _nothing(operand) and equal(value, operand)


def _among(value: Any, operands: Any) -> bool:
    return any(_is(value, operand) for operand in operands)


_TESTS: dict[Op, Callable[[Any, Any], bool]] = {
    Op.EQUAL: _is,
    Op.NOT_EQUAL: lambda value, operand: (
        value is not None and operand is not None and not _is(value, operand)
    ),
    Op.IN: _among,
    Op.NOT_IN: lambda value, operands: (
        value is not None and None not in operands and not _among(value, operands)
    ),
    Op.ARRAY_CONTAINS: lambda value, operand: (
        isinstance(value, list) and any(_is(item, operand) for item in value)
    ),
    Op.ARRAY_CONTAINS_ANY: lambda value, operands: (
        isinstance(value, list) and any(_among(item, operands) for item in value)
    ),
    Op.IS_NULL: lambda value, _: value is None,
    Op.IS_NOT_NULL: lambda value, _: value is not None,
    Op.IS_NAN: lambda value, _: _is_nan(value),
    Op.IS_NOT_NAN: lambda value, _: value is not None and not _is_nan(value),
}


def _side(document: Document, orders: tuple[Order, ...], cursor: Cursor) -> int:
    """Where the document stands to the cursor's values: -1 before, 0 on, 1 after."""
    for order, value in zip(orders, cursor.values, strict=False):
        a, b = order_key(field_value(document, order.path)), order_key(value)
        if a != b:
            return 1 if (a > b) is not order.descending else -1
    return 0


# --- what a query may be -----------------------------------------------------------------------


def leaves(where: Filter | None) -> list[FieldFilter]:
    """Every field filter of a filter tree, in order."""
    if where is None:
        return []
    if isinstance(where, FieldFilter):
        return [where]
    return [leaf for inner in where.filters for leaf in leaves(inner)]


def full_order(query: Query) -> tuple[Order, ...]:
    """Explicit orders, then inequality fields by name, then `__name__`, in the last direction."""
    orders = list(query.order_by)
    seen = {order.path for order in orders}
    descending = orders[-1].descending if orders else False
    unequal = {leaf.path for leaf in leaves(query.where) if leaf.op in INEQUALITIES}
    orders += [Order(path, descending) for path in sorted(unequal - seen - {NAME})]
    if NAME not in seen:
        orders.append(Order(NAME, descending))
    return tuple(orders)


def check(query: Query) -> tuple[Order, ...]:
    """The query's full order. Raises InvalidArgument where Firestore would."""
    if query.offset < 0:
        raise InvalidArgument("query.offset: may not be negative")
    if query.limit is not None and query.limit < 0:
        raise InvalidArgument("query.limit: may not be negative")
    filters = leaves(query.where)
    if len(filters) + len(query.order_by) > MAX_FILTERS:
        raise InvalidArgument(
            f"query: {len(filters)} filters and {len(query.order_by)} orders, the limit is "
            f"{MAX_FILTERS} together"
        )
    for leaf in filters:
        _check_filter(leaf)
    if query.where is not None:
        _check_together(query.where, filters)
    _check_orders(query, filters)
    for path in query.select or ():
        check_field_path(path, "query.select")
    if query.nearest is not None:
        _check_nearest(query, query.nearest)
    orders = full_order(query)
    for name, cursor in (("start_at", query.start), ("end_at", query.end)):
        if cursor is not None:
            _check_cursor(cursor, query.order_by, f"query.{name}")
    return orders


def _check_filter(leaf: FieldFilter) -> None:
    check_field_path(leaf.path, "query.where.field")
    if leaf.op in LISTS:
        most = MAX_NOT_IN if leaf.op is Op.NOT_IN else MAX_IN
        if not isinstance(leaf.value, list) or not leaf.value:
            raise InvalidArgument(f"query.where: {leaf.op} needs an array that is not empty")
        if len(leaf.value) > most:
            raise InvalidArgument(
                f"query.where: {leaf.op} has {len(leaf.value)} values, the limit is {most}"
            )
    if leaf.path == NAME:
        if leaf.op in ARRAYS:
            raise InvalidArgument(f"query.where: __name__ is no array, {leaf.op} cannot hold")
        operands = leaf.value if isinstance(leaf.value, list) else [leaf.value]
        if not all(kind(operand) is Kind.REFERENCE for operand in operands):
            raise InvalidArgument("query.where: __name__ is compared with document references")


def _check_together(where: Filter, filters: list[FieldFilter]) -> None:
    """The rules for filters beside one another."""
    if sum(leaf.op in NEGATIONS for leaf in filters) > 1:
        raise InvalidArgument(
            "query.where: at most one NOT_EQUAL, NOT_IN, IS_NOT_NULL or IS_NOT_NAN is allowed"
        )
    if len({leaf.path for leaf in filters if leaf.op in INEQUALITIES}) > MAX_INEQUALITY_FIELDS:
        raise InvalidArgument(
            f"query.where: inequalities on more than {MAX_INEQUALITY_FIELDS} fields"
        )
    if any(leaf.op is Op.NOT_IN for leaf in filters) and (
        any(leaf.op in {Op.IN, Op.ARRAY_CONTAINS_ANY} for leaf in filters) or _has_or(where)
    ):
        raise InvalidArgument("query.where: NOT_IN may not stand beside IN, another list or OR")
    if _arrays(where) > 1:
        raise InvalidArgument(
            "query.where: at most one ARRAY_CONTAINS or ARRAY_CONTAINS_ANY in each disjunction"
        )
    if (size := _disjunctions(where)) > MAX_DISJUNCTIONS:
        raise InvalidArgument(
            f"query.where: {size} disjunctions after expansion, the limit is {MAX_DISJUNCTIONS}"
        )


def _check_orders(query: Query, filters: list[FieldFilter]) -> None:
    seen: set[FieldPath] = set()
    for order in query.order_by:
        check_field_path(order.path, "query.order_by")
        if NAME in seen:
            raise InvalidArgument("query.order_by: nothing may follow __name__")
        if order.path in seen:
            raise InvalidArgument("query.order_by: the same field twice")
        seen.add(order.path)
    if NAME in seen and any(leaf.op in INEQUALITIES and leaf.path not in seen for leaf in filters):
        raise InvalidArgument(
            "query.order_by: a field with an inequality comes before __name__, and it is not there"
        )
    by_field = any(leaf.path != NAME for leaf in filters) or bool(seen - {NAME})
    if query.collection is None and (by_field or any(order.descending for order in query.order_by)):
        raise InvalidArgument(
            "query.from.collection_id: without one, only __name__ may be filtered and ordered by"
        )
    if query.collection is not None and query.all_descendants and query.parent and by_field:
        raise InvalidArgument(
            "parent: below a document, only __name__ of a collection group may be filtered "
            "and ordered by"
        )


def _check_cursor(cursor: Cursor, orders: tuple[Order, ...], field: str) -> None:
    if len(cursor.values) > len(orders):
        raise InvalidArgument(
            f"{field}: {len(cursor.values)} values for {len(orders)} order_by fields"
        )
    for order, value in zip(orders, cursor.values, strict=False):
        if order.path == NAME and kind(value) is not Kind.REFERENCE:
            raise InvalidArgument(f"{field}: the value for __name__ is a document reference")


def _check_nearest(query: Query, nearest: Nearest) -> None:
    neighbours.check(nearest)
    if query.limit is not None:
        raise InvalidArgument("query.limit: A query limit cannot be used with FindNearest")
    if query.offset:
        raise InvalidArgument("query.offset: A query offset cannot be used with FindNearest")
    if query.start is not None or query.end is not None:
        raise InvalidArgument(
            "query.start_at, query.end_at: A cursor cannot be used with FindNearest"
        )


def _has_or(where: Filter) -> bool:
    return isinstance(where, CompositeFilter) and (where.any_of or any(map(_has_or, where.filters)))


def _arrays(where: Filter) -> int:
    """The most array operators in one term of the disjunctive normal form."""
    if isinstance(where, FieldFilter):
        return int(where.op in ARRAYS)
    counts = map(_arrays, where.filters)
    return max(counts, default=0) if where.any_of else sum(counts)


def _disjunctions(where: Filter) -> int:
    """Terms of the disjunctive normal form; a list operator is as many as it has values."""
    if isinstance(where, FieldFilter):
        if where.op in {Op.IN, Op.ARRAY_CONTAINS_ANY} and isinstance(where.value, list):
            return len({order_key(item) for item in where.value})
        return 1
    sizes = [_disjunctions(inner) for inner in where.filters]
    if where.any_of:
        return sum(sizes)
    product = 1
    for size in sizes:
        product *= size
        if product > MAX_DISJUNCTIONS:  # enough to know
            break
    return product
