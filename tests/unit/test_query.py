"""Queries as data: full order, limits, projection, scope, raw bytes. What they find is the
contract suite's business."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.document import NAME, Document, identical, order_key
from crossfade.errors import InvalidArgument
from crossfade.query import (
    CompositeFilter,
    Cursor,
    FieldFilter,
    Op,
    Order,
    Query,
    check,
    field_value,
    full_order,
    holds,
    in_scope,
    leaves,
    project,
    run,
)
from tests import strategies as some


def leaf(name: str, op: Op = Op.GREATER_THAN, value: Any = 1) -> FieldFilter:
    return FieldFilter((name,), op, value)


def test_the_implicit_order() -> None:
    where = CompositeFilter(any_of=False, filters=(leaf("z"), leaf("a"), leaf("m", Op.EQUAL)))
    assert full_order(Query(collection="c")) == (Order(NAME),)
    assert full_order(Query(where=where)) == (Order(("a",)), Order(("z",)), Order(NAME))
    down = Order(("z",), descending=True)
    assert full_order(Query(where=where, order_by=(down,))) == (
        down,
        Order(("a",), descending=True),
        Order(NAME, descending=True),
    )
    names = (Order(("b",), descending=True), Order(NAME))
    assert full_order(Query(order_by=names)) == names


def test_leaves_in_order() -> None:
    tree = CompositeFilter(
        any_of=True,
        filters=(leaf("a"), CompositeFilter(any_of=False, filters=(leaf("b"), leaf("c")))),
    )
    assert [one.path[0] for one in leaves(tree)] == ["a", "b", "c"]
    assert leaves(None) == []


@pytest.mark.parametrize(
    ("query", "path", "inside"),
    [
        (Query(collection="c"), "c/a", True),
        (Query(collection="c"), "d/a", False),
        (Query(collection="c"), "d/a/c/b", False),
        (Query(parent="d/a", collection="c"), "d/a/c/b", True),
        (Query(parent="d/a", collection="c"), "d/ab/c/b", False),
        (Query(collection="c", all_descendants=True), "d/a/c/b", True),
        (Query(collection="c", all_descendants=True), "d/a/cc/b", False),
        (Query(parent="d/a", collection="c", all_descendants=True), "d/a/x/y/c/b", True),
        (Query(parent="d/a", collection="c", all_descendants=True), "d/ab/x/y/c/b", False),
        (Query(), "c/a", True),
        (Query(), "c/a/d/b", False),
        (Query(all_descendants=True), "c/a/d/b", True),
        (Query(parent="c/a"), "c/a/d/b", True),
        (Query(parent="c/a", all_descendants=True), "c/a", False),
    ],
)
def test_scopes(query: Query, path: str, inside: bool) -> None:
    assert in_scope(query, path) is inside


def test_projection_keeps_nested_paths() -> None:
    document = Document("c/a", {"a": {"b": 1, "c": {"d": 2}}, "x": 1}, 1, 2)
    assert project(document, None) is document
    assert project(document, ()).fields == {}
    assert project(document, (("a", "c", "d"), ("nope",), NAME)).fields == {"a": {"c": {"d": 2}}}
    assert project(document, (("a", "b"), ("a",))).fields == {"a": {"b": 1, "c": {"d": 2}}}
    assert project(document, (("x",),)).update_time == 2


def test_the_name_is_a_reference() -> None:
    document = Document("c/a", {}, 1, 1)
    assert order_key(field_value(document, NAME)) > order_key(b"\xff")


def test_raw_bytes_stay_with_the_query_they_describe() -> None:
    query = Query(collection="c")
    query.keep_raw(b"raw")
    assert query.raw == b"raw"
    assert query == Query(collection="c"), "they are not part of what it asks"
    assert replace(query, limit=1).raw is None, "a changed query is another one"


@given(some.queries())
def test_check_refuses_or_orders(query: Query) -> None:
    try:
        orders = check(query)
    except InvalidArgument as error:
        message = str(error)
    else:
        message = "query."
        assert orders[-1].path == NAME
        assert len({order.path for order in orders}) == len(orders)
    assert message.startswith(("query.", "parent")), "it names the field"


@given(
    some.queries(),
    st.dictionaries(some.paths(), some.fields(), max_size=8),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_limit_offset_and_cursors_cut_the_whole(
    query: Query, fields: dict[str, Any], offset: int, limit: int
) -> None:
    """Whatever is asked, a part of a result is a slice of the whole result."""
    documents = [Document(path, content, 1, 1) for path, content in fields.items()]
    whole_query = replace(query, offset=0, limit=None)
    try:
        whole = run(whole_query, documents)
    except InvalidArgument:
        return
    part = run(replace(whole_query, offset=offset, limit=limit), documents)
    assert [d.path for d in part] == [d.path for d in whole[offset : offset + limit]]
    if query.start is not None:
        before = replace(whole_query, start=None, end=query.start)
        if query.end is None:
            everything = run(replace(whole_query, start=None), documents)
            split = run(before, documents) + whole
            assert [d.path for d in split] == [d.path for d in everything]


@given(some.values(2), some.values(2))
def test_operators_agree_with_one_another(value: Any, operand: Any) -> None:
    less, more = holds(Op.LESS_THAN, value, operand), holds(Op.GREATER_THAN, value, operand)
    same = holds(Op.EQUAL, value, operand)
    assert less + more + same <= 1
    assert holds(Op.IN, value, [operand]) is same
    assert holds(Op.ARRAY_CONTAINS, [value], operand) is same
    if operand is not None:
        assert holds(Op.NOT_EQUAL, value, operand) is (value is not None and not same)
        assert holds(Op.NOT_IN, value, [operand]) is holds(Op.NOT_EQUAL, value, operand)
    if same:
        assert holds(Op.LESS_THAN_OR_EQUAL, value, operand)
        assert holds(Op.GREATER_THAN_OR_EQUAL, value, operand)
    assert holds(Op.IS_NULL, value, None) is not holds(Op.IS_NOT_NULL, value, None)


def test_cursors_without_an_order_have_no_values() -> None:
    with pytest.raises(InvalidArgument, match=r"query\.start_at"):
        check(Query(collection="c", start=Cursor((1,), before=True)))


@given(some.fields())
def test_a_query_returns_documents_as_they_are(fields: dict[str, Any]) -> None:
    (found,) = run(Query(collection="c"), [Document("c/a", fields, 1, 2)])
    assert identical(found.fields, fields)
    assert (found.create_time, found.update_time) == (1, 2)
