"""Hypothesis strategies for legal documents, writes and queries.

Values come from small pools with every kind and every hostile member, so that
documents meet, equal and nearly equal one another; paths and field names likewise.
"""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from hypothesis import strategies as st

from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import (
    INT64_MAX,
    INT64_MIN,
    NAME,
    FieldPath,
    GeoPoint,
    Reference,
)
from crossfade.nearest import Measure, Nearest
from crossfade.query import (
    ARRAYS,
    LISTS,
    CompositeFilter,
    Cursor,
    FieldFilter,
    Op,
    Order,
    Query,
    leaves,
)
from crossfade.write import Transform, TransformKind, Write

_OTHER = "projects/elsewhere/databases/(default)/documents"
_MOMENT = datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)

NUMBERS: list[int | float] = [
    *(0, 1, -1, 2, 48, 2**53, 2**53 + 1, INT64_MAX, INT64_MIN),
    *(0.0, -0.0, 1.0, 1.5, 48.0, float(2**53), float(2**63), 5e-324, 1.7e308),
    *(math.inf, -math.inf, math.nan),
]
SCALARS: list[Any] = [
    *(None, True, False),
    *NUMBERS,
    *("", "a", "b", "a\0", "ä", "z", "\uffff", "\U0001f600", "A" * 30),
    *(b"", b"a", b"\x00", b"\xff\xfe"),
    *(_MOMENT, _MOMENT - timedelta(microseconds=1), datetime(1, 1, 1, tzinfo=UTC)),
    *(datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)),
    *(Reference(f"{_OTHER}/c/a"), Reference(f"{_OTHER}/c/__id7__"), Reference(f"{_OTHER}/c/a/d/b")),
    *(GeoPoint(0.0, 0.0), GeoPoint(-0.0, 1.0), GeoPoint(90.0, -180.0), GeoPoint(-90.0, 180.0)),
]
# Their distances are exact, whatever the order in which their parts are added.
VECTORS: list[Any] = [
    {"__type__": "__vector__", "value": list(items)}
    for items in (
        *([1.0], [2.0], [-0.0], [-3.0]),
        *([1.0, 2.0], [2.0, 1.0], [3.0, 4.0], [-0.5, 8.0], [0.0, 0.0], [math.inf, 1.0]),
    )
]
FIELD_NAMES = ["a", "b", "c", "a.b", "`\\", "ünï", "0"]
# Mostly the same few, so that what is asked for is there.
_NAMES = st.sampled_from(["a"] * 6 + ["b"] * 3 + FIELD_NAMES)
_COMMON: list[Any] = [None, True, 1, 1.0, 2, math.nan, "a", "b", [1, "a"], [None, 1], {"a": 1}]
COLLECTIONS = ["c", "d", "c/a/sub", "c/b/sub", "sub"]
IDS = ["a", "b", "B", "ä", "__id7__", "__id-3__", "__id10__", "7", "a b", "\U0001f600", "\uffff"]


@cache
def scalars() -> st.SearchStrategy[Any]:
    """Mostly from the pool; sometimes any legal one."""
    return st.one_of(
        st.sampled_from(_COMMON[:8]),
        st.sampled_from(SCALARS),
        st.sampled_from(SCALARS),
        st.integers(INT64_MIN, INT64_MAX),
        st.floats(),
        st.text(st.characters(codec="utf-8"), max_size=6),
        st.binary(max_size=6),
        st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(fold=0)),
    )


@cache
def values(depth: int = 3) -> st.SearchStrategy[Any]:
    """Any value that a document may hold, at most `depth` maps and arrays deep."""
    if not depth:
        return scalars()
    return st.one_of(
        st.sampled_from(_COMMON if depth > 1 else _COMMON[:8]),
        scalars(),
        st.sampled_from(VECTORS),
        arrays(depth - 1),
        st.dictionaries(_NAMES, values(depth - 1), max_size=3),
    )


@cache
def arrays(depth: int = 1) -> st.SearchStrategy[list[Any]]:
    """Arrays, whose items are neither arrays nor vectors."""
    item = st.sampled_from(_COMMON[:8]) | scalars()
    if depth:
        item |= st.dictionaries(_NAMES, values(depth - 1), max_size=2)
    return st.lists(item, max_size=4)


@cache
def fields() -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(_NAMES, values(), max_size=5)


@cache
def paths() -> st.SearchStrategy[str]:
    """Document paths of a few collections, nested ones among them."""
    return st.builds("{}/{}".format, st.sampled_from(COLLECTIONS), st.sampled_from(IDS))


@cache
def field_paths() -> st.SearchStrategy[FieldPath]:
    single = st.tuples(_NAMES)
    return st.one_of(single, single, single, st.tuples(_NAMES, _NAMES))


@cache
def transforms() -> st.SearchStrategy[Transform]:
    numbers = st.sampled_from(NUMBERS) | st.integers(-5, 5)
    return st.one_of(
        st.builds(
            Transform,
            field_paths(),
            st.sampled_from(
                [TransformKind.INCREMENT, TransformKind.MAXIMUM, TransformKind.MINIMUM]
            ),
            numbers,
        ),
        st.builds(
            Transform,
            field_paths(),
            st.sampled_from([TransformKind.UNION, TransformKind.REMOVE]),
            arrays(),
        ),
    )


_EXISTS = st.sampled_from([None, None, None, None, True, False])
_WRITES = st.sampled_from(["set", "set", "set", "merge", "merge", "transform", "delete"])
_CHANGES = st.lists(transforms(), max_size=2).map(tuple)
_MASKS = st.lists(field_paths(), max_size=3).map(tuple)


@st.composite
def writes(draw: st.DrawFn) -> Write:
    """A set, merge, create, update, transform or delete; REQUEST_TIME is left out, because
    no two stores agree on the time."""
    path, exists, what = draw(paths()), draw(_EXISTS), draw(_WRITES)
    if what == "delete":
        return Write(path, None, exists=exists)
    if what == "transform":
        return Write(path, {}, (), draw(_CHANGES), exists)
    mask = draw(_MASKS) if what == "merge" else None
    return Write(path, draw(fields()), mask, draw(_CHANGES), exists)


@cache
def commits() -> st.SearchStrategy[list[Write]]:
    """One to four writes, also of the same document."""
    return st.lists(writes(), min_size=1, max_size=4)


_OPERATORS = st.sampled_from(list(Op))
UNARY = {Op.IS_NULL, Op.IS_NOT_NULL, Op.IS_NAN, Op.IS_NOT_NAN}
_OPERANDS = st.one_of(
    *[st.lists(values(1), min_size=1, max_size=4)] * 15,
    st.just([]),
    st.sampled_from([10, 11, 30, 31]).map(lambda size: list(range(size))),
)


@st.composite
def _leaf(draw: st.DrawFn) -> FieldFilter:
    path, operator = draw(field_paths()), draw(_OPERATORS)
    if operator in LISTS:
        return FieldFilter(path, operator, draw(_OPERANDS))
    if operator in UNARY:
        return FieldFilter(path, operator)
    return FieldFilter(path, operator, draw(scalars() if operator in ARRAYS else values(2)))


@st.composite
def filters(draw: st.DrawFn, depth: int = 2) -> FieldFilter | CompositeFilter:
    """Mostly one or two leaves; at most `depth` composite filters around one."""
    any_of = draw(_COMPOSITES) if depth else None
    if any_of is None:
        return draw(_leaf())
    return CompositeFilter(any_of, tuple(draw(_BRANCHES[depth - 1])))


_COMPOSITES = st.sampled_from([None, None, None, None, False, False, True])
_BRANCHES = [st.lists(filters(depth), min_size=1, max_size=3) for depth in range(2)]


_SCOPES = st.sampled_from([("", "c"), ("", "c"), ("", "c"), ("", "d"), ("c/a", "sub"), ("", "sub")])
_FILTERS = st.none() | filters()
_ORDERED = st.lists(field_paths(), max_size=2, unique=True)
_SELECTS = st.none() | st.none() | _MASKS | st.just((NAME,))


_OFFSETS = st.sampled_from([0, 0, 0, 0, 1, 3])
_LIMITS = st.sampled_from([None, None, None, None, 1, 1, 2, 2, 5, 0])
_RATHER_NOT = st.sampled_from([False, False, False, True])
_SELDOM = st.sampled_from([False] * 19 + [True])


@st.composite
def _cursors(draw: st.DrawFn, orders: tuple[Order, ...]) -> Cursor:
    """Sometimes fewer values than orders, rarely a value of which there is no order."""
    size = draw(st.integers(1, len(orders)))
    if draw(_SELDOM):
        return Cursor((*(draw(values(1)) for _ in orders), 1), draw(st.booleans()))
    taken = tuple(
        Reference(draw(paths())) if order.path == NAME else draw(values(1))
        for order in orders[:size]
    )
    return Cursor(taken, draw(st.booleans()))


def _maybe_cursor(draw: Any, orders: tuple[Order, ...]) -> Cursor | None:
    return draw(_cursors(orders)) if orders and draw(_RATHER_NOT) else None


@st.composite
def queries(draw: st.DrawFn) -> Query:
    """Legal and illegal queries: every operator, order, cursors, offset, limit, projection."""
    parent, collection = draw(_SCOPES)
    where = draw(_FILTERS)
    ordered = draw(_ORDERED)
    if where is not None and draw(st.booleans()):
        ordered = list(dict.fromkeys(leaf.path for leaf in leaves(where)))[:2]
    orders = [Order(path, draw(st.booleans())) for path in ordered]
    if draw(st.booleans()):
        # The emulator refuses a scan by descending names alone.
        orders.append(Order(NAME, bool(orders) and draw(st.booleans())))
    order_by = tuple(orders)
    return Query(
        parent=parent,
        collection=collection,
        all_descendants=draw(_RATHER_NOT),
        where=where,
        order_by=order_by,
        start=_maybe_cursor(draw, order_by),
        end=_maybe_cursor(draw, order_by),
        offset=draw(_OFFSETS),
        limit=draw(_LIMITS),
        select=draw(_SELECTS),
    )


@cache
def nearest() -> st.SearchStrategy[Nearest]:
    """Not at a.b: the emulator takes a field named "a.b" for it (test_known_differences.py)."""
    return st.builds(
        Nearest,
        st.sampled_from([("a",), ("a",), ("a",), ("b",), ("b", "a"), NAME]),
        st.sampled_from(VECTORS),
        st.sampled_from(Measure),
        st.sampled_from([1, 2, 10, 10, 1000]),
        st.sampled_from([None, "far", "far", "a", "a.b"]),
        st.sampled_from([None, None, 0.0, 1.0, 2.5, -1.0]),
    )


@st.composite
def neighbours(draw: st.DrawFn) -> Query:
    """A query for nearest neighbours; rarely with what may not stand beside them."""
    query = draw(queries())
    plain = {"start": None, "end": None, "offset": 0, "limit": None}
    return replace(query, nearest=draw(nearest()), **draw(_RARELY) or plain)


_RARELY = st.sampled_from([{}] * 9 + [{"start": None, "end": None}])


@cache
def aggregations() -> st.SearchStrategy[list[Aggregation]]:
    """Up to five, with and without aliases, rarely twice the same one."""
    aliases = st.sampled_from(["", "", "", "n", "s", "field_1", "a.b", "ünï"])
    return st.lists(
        st.builds(
            Aggregation,
            st.just(AggregationKind.COUNT),
            aliases,
            up_to=st.sampled_from([None, 1, 3]),
        )
        | st.builds(
            Aggregation,
            st.sampled_from([AggregationKind.SUM, AggregationKind.AVERAGE]),
            aliases,
            field_paths(),
        ),
        min_size=1,
        max_size=3,
    )
