"""Queries: the same documents in the same order from every store."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from crossfade.document import NAME, GeoPoint, Reference
from crossfade.errors import CrossfadeError, InvalidArgument
from crossfade.query import CompositeFilter, Cursor, FieldFilter, Filter, Op, Order, Query
from crossfade.write import Write
from tests.contract.conftest import Bench

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
# In Firestore's order; equal ones side by side, by id.
MIXED: dict[str, Any] = {
    "null": None,
    "no": False,
    "yes": True,
    "nan": math.nan,
    "minus-inf": -math.inf,
    "minus": -1,
    "zero-a": 0,
    "zero-b": -0.0,
    "one-a": 1,
    "one-b": 1.0,
    "half-more": 1.5,
    "big-a": float(2**53),
    "big-b": 2**53 + 1,
    "inf": math.inf,
    "time-a": MOMENT,
    "time-b": MOMENT + timedelta(microseconds=1),
    "text-a": "",
    "text-b": "A",
    "text-c": "a",
    "text-d": "a\0",
    "text-e": "ä",
    "text-f": "\uffff",
    "text-g": "\U0001f600",
    "bytes-a": b"",
    "bytes-b": b"\x00",
    "bytes-c": b"\xff",
    "ref-a": Reference("projects/p/databases/(default)/documents/c/__id7__"),
    "ref-b": Reference("projects/p/databases/(default)/documents/c/__id10__"),
    "ref-c": Reference("projects/p/databases/(default)/documents/c/7"),
    "ref-d": Reference("projects/p/databases/(default)/documents/c/7/d/a"),
    "geo-a": GeoPoint(-10.0, 5.0),
    "geo-b": GeoPoint(1.0, -1.0),
    "geo-c": GeoPoint(1.0, 1.0),
    "array-a": [],
    "array-b": [None, 1],
    "array-c": [math.nan],
    "array-d": [1, 2],
    "array-e": ["x", {"k": 1}],
    "vector-a": {"__type__": "__vector__", "value": [5.0]},
    "vector-b": {"__type__": "__vector__", "value": [1.0, 2.0]},
    "map-a": {},
    "map-b": {"a": 1},
    "map-c": {"a": 1, "b": None},
    "map-d": {"b": 0},
}
NAMES = list(MIXED)


def between(first: str, last: str) -> set[str]:
    return set(NAMES[NAMES.index(first) : NAMES.index(last) + 1])


ALL = set(NAMES)
NOT_NULL = ALL - {"null"}
ONES = {"one-a", "one-b"}

# operator, operand, the documents it finds
FILTERS: list[tuple[Op, Any, set[str]]] = [
    (Op.EQUAL, 1, ONES),
    (Op.EQUAL, 1.0, ONES),
    (Op.EQUAL, 0, {"zero-a", "zero-b"}),
    (Op.EQUAL, True, {"yes"}),
    (Op.EQUAL, 2**53 + 1, {"big-b"}),
    (Op.EQUAL, "a", {"text-c"}),
    (Op.EQUAL, "a\0", {"text-d"}),
    (Op.EQUAL, b"\x00", {"bytes-b"}),
    (Op.EQUAL, MOMENT, {"time-a"}),
    (Op.EQUAL, GeoPoint(1.0, 1.0), {"geo-c"}),
    (Op.EQUAL, MIXED["ref-a"], {"ref-a"}),
    (Op.EQUAL, [1.0, 2], {"array-d"}),
    (Op.EQUAL, [math.nan], {"array-c"}),
    (Op.EQUAL, {"b": None, "a": 1.0}, {"map-c"}),
    (Op.EQUAL, MIXED["vector-b"], {"vector-b"}),
    (Op.EQUAL, {}, {"map-a"}),
    (Op.EQUAL, None, set()),
    (Op.EQUAL, math.nan, set()),
    (Op.NOT_EQUAL, 1, NOT_NULL - ONES),
    (Op.NOT_EQUAL, math.nan, NOT_NULL),
    (Op.NOT_EQUAL, None, set()),
    (Op.LESS_THAN, 1, between("minus-inf", "zero-b")),
    (Op.LESS_THAN_OR_EQUAL, 1, between("minus-inf", "one-b")),
    (Op.GREATER_THAN, 1.0, between("half-more", "inf")),
    (Op.GREATER_THAN_OR_EQUAL, 2**53, between("big-a", "inf")),
    (Op.GREATER_THAN, float(2**53), {"big-b", "inf"}),
    (Op.GREATER_THAN_OR_EQUAL, -math.inf, between("minus-inf", "inf")),
    (Op.LESS_THAN, math.nan, set()),
    (Op.GREATER_THAN_OR_EQUAL, math.nan, set()),
    (Op.GREATER_THAN_OR_EQUAL, None, set()),
    (Op.GREATER_THAN_OR_EQUAL, False, {"no", "yes"}),
    (Op.GREATER_THAN, "a", between("text-d", "text-g")),
    (Op.LESS_THAN, "ä", between("text-a", "text-d")),
    (Op.GREATER_THAN, "\uffff", {"text-g"}),
    (Op.GREATER_THAN, b"", {"bytes-b", "bytes-c"}),
    (Op.LESS_THAN, MOMENT + timedelta(microseconds=1), {"time-a"}),
    (Op.GREATER_THAN, MIXED["ref-b"], {"ref-c", "ref-d"}),
    (Op.LESS_THAN, GeoPoint(1.0, 0.0), {"geo-a", "geo-b"}),
    (Op.GREATER_THAN_OR_EQUAL, [None, 1], between("array-b", "array-e")),
    (Op.GREATER_THAN, MIXED["vector-a"], {"vector-b"}),
    (Op.GREATER_THAN, {"a": 1}, {"map-c", "map-d"}),
    (Op.IN, [1, "a", None, math.nan], ONES | {"text-c"}),
    (Op.IN, [[1, 2], {}], {"array-d", "map-a"}),
    (Op.IN, [None], set()),
    (Op.NOT_IN, [1, "a"], NOT_NULL - ONES - {"text-c"}),
    (Op.NOT_IN, [1, None], set()),
    (Op.NOT_IN, [math.nan], NOT_NULL),
    (Op.ARRAY_CONTAINS, 1, {"array-b", "array-d"}),
    (Op.ARRAY_CONTAINS, {"k": 1.0}, {"array-e"}),
    (Op.ARRAY_CONTAINS, None, set()),
    (Op.ARRAY_CONTAINS, math.nan, set()),
    (Op.ARRAY_CONTAINS_ANY, ["x", 2.0], {"array-d", "array-e"}),
    (Op.ARRAY_CONTAINS_ANY, [None, math.nan], set()),
    (Op.IS_NULL, None, {"null"}),
    (Op.IS_NOT_NULL, None, NOT_NULL),
    (Op.IS_NAN, None, {"nan"}),
    (Op.IS_NOT_NAN, None, NOT_NULL - {"nan"}),
]


async def test_every_operator_over_every_kind(bench: Bench) -> None:
    await bench.put(**MIXED)
    await bench.commit(Write(bench.path("absent"), {"other": 1}))
    wrong = {}
    for operator, operand, expected in FILTERS:
        found = await bench.matching(operator, operand)
        if found != expected:
            wrong[f"{operator} {operand!r}"] = (found - expected, expected - found)
    assert not wrong


async def test_the_order_of_kinds_and_values(bench: Bench) -> None:
    await bench.put(**MIXED)
    await bench.commit(Write(bench.path("absent"), {"other": 1}))
    f = (bench.field,)
    assert await bench.ids(order_by=(Order(f),)) == NAMES
    assert await bench.ids(order_by=(Order(f, descending=True),)) == NAMES[::-1]


async def test_without_order_the_order_is_that_of_names(bench: Bench) -> None:
    numeric = ["__id-3__", "__id7__", "__id10__"]
    ids = [*numeric, "10", "7", "A", "a", "a\0", "a b", "ä", "\uffff", "\U0001f600"]
    await bench.put(**dict.fromkeys(reversed(ids), 1))
    assert await bench.ids() == ids
    assert await bench.ids(order_by=(Order(NAME),)) == ids
    assert await bench.ids(limit=3) == ids[:3]
    assert await bench.ids(FieldFilter((bench.field,), Op.EQUAL, 1), limit=3) == ids[:3]


# --- order, cursors, offset, limit, projection -------------------------------------------------


async def numbered(bench: Bench) -> None:
    """Documents a..f with two fields."""
    f = bench.field
    rows = {"a": (3, 1), "b": (1, 2), "c": (2, 1), "d": (2, 2), "e": (1, 1), "f": (2, 1)}
    await bench.commit(
        *(Write(bench.path(name), {f: one, "w": two}) for name, (one, two) in rows.items())
    )


async def test_several_orders_then_the_name(bench: Bench) -> None:
    await numbered(bench)
    f, w = (bench.field,), ("w",)
    assert await bench.ids(order_by=(Order(f),)) == list("becdfa")
    assert await bench.ids(order_by=(Order(f, descending=True),)) == list("afdceb")
    assert await bench.ids(order_by=(Order(f), Order(w, descending=True))) == list("bedfca")
    assert await bench.ids(order_by=(Order(w), Order(f))) == list("ecfabd")
    by_name = (Order(f), Order(NAME, descending=True))
    assert await bench.ids(order_by=by_name) == list("ebfdca")


async def test_inequalities_order_too(bench: Bench) -> None:
    await numbered(bench)
    f, w = (bench.field,), ("w",)
    assert await bench.ids(FieldFilter(f, Op.GREATER_THAN, 1)) == list("cdfa")
    assert await bench.ids(FieldFilter(f, Op.NOT_EQUAL, 2)) == list("bea")
    both = CompositeFilter(
        any_of=False,
        filters=(FieldFilter(f, Op.GREATER_THAN, 0), FieldFilter(w, Op.GREATER_THAN, 0)),
    )
    expected = "ebcfda" if f < w else "ecfabd"
    assert await bench.ids(both) == list(expected)
    down = (Order(w, descending=True),)
    assert await bench.ids(both, order_by=down) == list("dbafce")


async def test_orders_leave_out_who_lacks_the_field(bench: Bench) -> None:
    f = (bench.field,)
    await bench.put(a=1, b=None)
    await bench.commit(Write(bench.path("c"), {"w": 1}))
    assert await bench.ids(order_by=(Order(f),)) == ["b", "a"]
    assert await bench.ids(order_by=(Order(("w",)), Order(f))) == []
    assert await bench.ids() == ["a", "b", "c"]


CURSORS: list[tuple[tuple[Any, ...], bool, str]] = [
    ((2,), True, "cdfa"),
    ((2,), False, "a"),
    ((2, 1), True, "cfda"),
    ((2, 1), False, "da"),
    ((1.5,), True, "cdfa"),
    (("text",), True, ""),
    ((None,), True, "becdfa"),
]


@pytest.mark.parametrize(("values", "before", "expected"), CURSORS)
async def test_cursors_start(
    bench: Bench, values: tuple[Any, ...], before: bool, expected: str
) -> None:
    await numbered(bench)
    orders = (Order((bench.field,)), Order(("w",)))[: max(1, len(values))]
    whole = await bench.ids(order_by=orders)
    found = await bench.ids(order_by=orders, start=Cursor(values, before))
    assert found == list(expected)
    rest = await bench.ids(order_by=orders, end=Cursor(values, before))
    assert rest + found == whole


async def test_a_cursor_without_values_stands_outside(bench: Bench) -> None:
    await numbered(bench)
    orders = (Order((bench.field,)),)
    whole = await bench.ids(order_by=orders)
    assert await bench.ids(order_by=orders, start=Cursor((), before=True)) == whole
    assert await bench.ids(order_by=orders, start=Cursor((), before=False)) == []


async def test_cursors_at_names(bench: Bench) -> None:
    await numbered(bench)
    here = Reference(bench.path("c"))
    names = (Order(NAME),)
    assert await bench.ids(order_by=names, start=Cursor((here,), before=True)) == list("cdef")
    assert await bench.ids(order_by=names, start=Cursor((here,), before=False)) == list("def")
    assert await bench.ids(order_by=names, end=Cursor((here,), before=True)) == list("ab")
    both = (Order((bench.field,)), Order(NAME))
    after = Cursor((2, here), before=False)
    assert await bench.ids(order_by=both, start=after) == list("dfa")
    deeper = Cursor((Reference(bench.path("c/sub/x")),), before=True)
    assert await bench.ids(order_by=names, start=deeper) == list("def")


async def test_descending_cursors(bench: Bench) -> None:
    await numbered(bench)
    down = (Order((bench.field,), descending=True),)
    assert await bench.ids(order_by=down, start=Cursor((2,), before=True)) == list("fdceb")
    assert await bench.ids(order_by=down, start=Cursor((2,), before=False)) == list("eb")


async def test_offset_and_limit(bench: Bench) -> None:
    await numbered(bench)
    assert await bench.ids(limit=2) == list("ab")
    assert await bench.ids(offset=4) == list("ef")
    assert await bench.ids(offset=1, limit=2) == list("bc")
    assert await bench.ids(offset=99) == []
    assert await bench.ids(limit=0) == []
    order = (Order((bench.field,)),)
    assert await bench.ids(order_by=order, offset=1, limit=3) == list("ecd")
    start = Cursor((2,), before=True)
    assert await bench.ids(order_by=order, start=start, offset=1, limit=2) == list("df")


async def test_projection(bench: Bench) -> None:
    f = bench.field
    await bench.commit(Write(bench.path("a"), {f: 1, "m": {"x": 1, "y": {"z": 2}}, "o.o": 3}))

    async def projected(*select: tuple[str, ...]) -> Any:
        query = Query(collection=bench.kind, select=select)
        (document,) = await bench.run(query)
        assert document.update_time == (await bench.document(bench.path("a"))).update_time
        return document.fields

    assert await projected((f,)) == {f: 1}
    assert await projected(("m", "y", "z"), ("o.o",)) == {"m": {"y": {"z": 2}}, "o.o": 3}
    assert await projected(("m", "x"), ("m",)) == {"m": {"x": 1, "y": {"z": 2}}}
    assert await projected(("nope",), ("m", "nope")) in ({}, {"m": {}})
    assert await projected(NAME) == {}
    assert await projected() == {}


async def test_many_documents_come_in_pages(bench: Bench) -> None:
    names = [f"{number:04d}" for number in range(700)]
    for start in range(0, 700, 350):
        await bench.put(**dict.fromkeys(names[start : start + 350], "x" * 20))
    assert await bench.ids() == names
    query = Query(collection=bench.kind)
    pages = [page async for page in bench.store.query(query, timeout=30)]
    assert len(pages) > 1


async def test_large_documents_come_in_pages(bench: Bench) -> None:
    for name in "abc":
        await bench.put(**{name: "x" * 800_000})
    assert await bench.ids() == list("abc")


# --- composite filters -------------------------------------------------------------------------


async def test_and_or(bench: Bench) -> None:
    await numbered(bench)
    f, w = (bench.field,), ("w",)

    def both(*filters: Filter) -> CompositeFilter:
        return CompositeFilter(any_of=False, filters=filters)

    def either(*filters: Filter) -> CompositeFilter:
        return CompositeFilter(any_of=True, filters=filters)

    one, two = FieldFilter(f, Op.EQUAL, 1), FieldFilter(f, Op.EQUAL, 2)
    first = FieldFilter(w, Op.EQUAL, 1)
    assert await bench.ids(both(two, first)) == list("cf")
    assert await bench.ids(either(one, first)) == list("abcef")
    assert await bench.ids(both(either(one, two), first)) == list("cef")
    assert await bench.ids(either(both(two, first), both(one, first))) == list("cef")
    assert await bench.ids(both(one)) == list("be")
    assert await bench.ids(either(one, FieldFilter(f, Op.GREATER_THAN, 2))) == list("bea")
    assert await bench.ids(either(one, two), limit=3) == list("bcd")
    assert await bench.ids(both(FieldFilter(f, Op.IN, [1, 3]), first)) == list("ae")


async def test_nested_fields(bench: Bench) -> None:
    f = bench.field
    await bench.put(a={"x": {"y.z": 1}}, b={"x": 1}, c=1)
    path = (f, "x", "y.z")
    assert await bench.ids(FieldFilter(path, Op.EQUAL, 1)) == ["a"]
    assert await bench.ids(order_by=(Order((f, "x")),)) == ["b", "a"]


# --- scopes ------------------------------------------------------------------------------------


async def family(bench: Bench) -> None:
    k = bench.kind
    paths = [f"{k}/a", f"{k}/b", f"{k}/a/{k}/x", f"{k}/a/sub/{k}", f"other/a/{k}/y", f"{k}2/a"]
    paths += [f"{k}/missing/{k}/z/deep/1"]
    await bench.commit(*(Write(path, {bench.field: 1}) for path in paths))


async def found(bench: Bench, **query: Any) -> list[str]:
    return [document.path for document in await bench.run(Query(**query))]


async def test_a_collection_is_not_its_namesakes(bench: Bench) -> None:
    await family(bench)
    k = bench.kind
    assert await found(bench, collection=k) == [f"{k}/a", f"{k}/b"]
    assert await found(bench, parent=f"{k}/a", collection=k) == [f"{k}/a/{k}/x"]
    assert await found(bench, parent=f"{k}/b", collection=k) == []
    assert await found(bench, parent=f"{k}/nobody", collection="sub") == []
    assert await found(bench, collection="unheard-of") == []


async def test_collection_groups(bench: Bench) -> None:
    await family(bench)
    k, f = bench.kind, (bench.field,)
    group = sorted([f"{k}/a", f"{k}/b", f"{k}/a/{k}/x", f"other/a/{k}/y"])
    assert await found(bench, collection=k, all_descendants=True) == group
    equal = FieldFilter(f, Op.EQUAL, 1)
    assert await found(bench, collection=k, all_descendants=True, where=equal) == group
    ordered = (Order(f),)
    assert await found(bench, collection=k, all_descendants=True, order_by=ordered) == group
    below = await found(bench, parent=f"{k}/a", collection=k, all_descendants=True)
    assert below == [f"{k}/a/{k}/x"]
    deep = await found(bench, collection="deep", all_descendants=True)
    assert deep == [f"{k}/missing/{k}/z/deep/1"]


async def test_every_collection(bench: Bench) -> None:
    await family(bench)
    k = bench.kind
    top = [f"{k}/a", f"{k}/b", f"{k}2/a"]
    assert await found(bench) == top
    everything = await found(bench, all_descendants=True)
    assert len(everything) == 7
    below = await found(bench, parent=f"{k}/a", all_descendants=True)
    assert below == sorted([f"{k}/a/{k}/x", f"{k}/a/sub/{k}"])
    after = Cursor((Reference(f"{k}/b"),), before=False)
    rest = await found(bench, all_descendants=True, order_by=(Order(NAME),), start=after)
    assert rest == everything[everything.index(f"{k}/b") + 1 :]


async def test_names_as_operands(bench: Bench) -> None:
    await numbered(bench)

    def name(op: Op, *ids: str) -> FieldFilter:
        refs: list[Any] = [Reference(bench.path(one)) for one in ids]
        return FieldFilter(NAME, op, refs if op in {Op.IN, Op.NOT_IN} else refs[0])

    assert await bench.ids(name(Op.EQUAL, "c")) == ["c"]
    assert await bench.ids(name(Op.NOT_EQUAL, "c")) == list("abdef")
    assert await bench.ids(name(Op.GREATER_THAN, "c")) == list("def")
    assert await bench.ids(name(Op.LESS_THAN_OR_EQUAL, "c")) == list("abc")
    assert await bench.ids(name(Op.IN, "f", "a", "zz")) == list("af")
    assert await bench.ids(name(Op.NOT_IN, "f", "a")) == list("bcde")


# --- what is refused ---------------------------------------------------------------------------

V, W = ("v",), ("w",)


def leaf(op: Op, value: Any = 1, path: tuple[str, ...] = V) -> FieldFilter:
    return FieldFilter(path, op, value)


def conj(*filters: Filter) -> CompositeFilter:
    return CompositeFilter(any_of=False, filters=filters)


def disj(*filters: Filter) -> CompositeFilter:
    return CompositeFilter(any_of=True, filters=filters)


REFUSED: dict[str, dict[str, Any]] = {
    "negative limit": {"limit": -1},
    "negative offset": {"offset": -1},
    "31 in": {"where": leaf(Op.IN, list(range(31)))},
    "31 array-contains-any": {"where": leaf(Op.ARRAY_CONTAINS_ANY, list(range(31)))},
    "11 not-in": {"where": leaf(Op.NOT_IN, list(range(11)))},
    "empty in": {"where": leaf(Op.IN, [])},
    "in without a list": {"where": leaf(Op.IN, 1)},
    "31 disjunctions": {
        "where": conj(leaf(Op.IN, list(range(16))), leaf(Op.IN, [1, 2], W)),
    },
    "two array-contains": {
        "where": conj(leaf(Op.ARRAY_CONTAINS), leaf(Op.ARRAY_CONTAINS_ANY, [1], W))
    },
    "two not-equals": {"where": conj(leaf(Op.NOT_EQUAL), leaf(Op.NOT_EQUAL, 2, W))},
    "not-equal and is not null": {"where": conj(leaf(Op.NOT_EQUAL), leaf(Op.IS_NOT_NULL, None))},
    "not-in with in": {"where": conj(leaf(Op.NOT_IN, [1]), leaf(Op.IN, [1], W))},
    "not-in with or": {"where": disj(leaf(Op.NOT_IN, [1]), leaf(Op.EQUAL, 1, W))},
    "11 inequality fields": {
        "where": conj(*(leaf(Op.GREATER_THAN, 1, (f"f{n}",)) for n in range(11)))
    },
    "a reserved field": {"where": leaf(Op.EQUAL, 1, ("__x__",))},
    "order by a reserved field": {"order_by": (Order(("__x__",)),)},
    "select a reserved field": {"select": (("__x__",),)},
    "the same order twice": {"order_by": (Order(V), Order(V, descending=True))},
    "an order behind the name": {"order_by": (Order(NAME), Order(V))},
    "an inequality behind the name": {
        "where": leaf(Op.GREATER_THAN),
        "order_by": (Order(NAME),),
    },
    "a name that is no reference": {"where": leaf(Op.EQUAL, "a", NAME)},
    "a name as an array": {"where": leaf(Op.ARRAY_CONTAINS, Reference("c/a"), NAME)},
    "a cursor longer than the orders": {
        "order_by": (Order(V),),
        "start": Cursor((1, 2), before=True),
    },
    "a cursor without orders": {"start": Cursor((Reference("c/a"),), before=True)},
    "a cursor at no name": {"order_by": (Order(NAME),), "end": Cursor(("a",), before=True)},
    "a field of every collection": {"collection": None, "where": leaf(Op.EQUAL)},
    "an order of every collection": {"collection": None, "order_by": (Order(V),)},
    "a field of a group below a document": {
        "parent": "c/a",
        "all_descendants": True,
        "where": leaf(Op.EQUAL),
    },
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_queries(bench: Bench, name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await bench.run(Query(**({"collection": bench.kind} | REFUSED[name])))
    assert str(refused.value)


ALLOWED: dict[str, Filter] = {
    "30 in": leaf(Op.IN, list(range(30))),
    "10 not-in": leaf(Op.NOT_IN, list(range(10))),
    "30 disjunctions": conj(leaf(Op.IN, list(range(15))), leaf(Op.IN, [1, 2], W)),
    "31 of which are the same": leaf(Op.IN, [1] * 15 + list(range(15))),
    "array-contains in each of or": disj(
        leaf(Op.ARRAY_CONTAINS), leaf(Op.ARRAY_CONTAINS_ANY, [1], W)
    ),
    "not-equal with or": disj(leaf(Op.NOT_EQUAL), leaf(Op.EQUAL)),
    "10 inequality fields": conj(*(leaf(Op.GREATER_THAN, 1, (f"f{n}",)) for n in range(10))),
}


@pytest.mark.parametrize("name", ALLOWED)
async def test_allowed_queries(bench: Bench, name: str) -> None:
    try:
        assert await bench.ids(ALLOWED[name]) == []
    except CrossfadeError as error:
        pytest.fail(f"{type(error).__name__}: {error}")
