"""Sums, averages and counts. The values come from the official emulator."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.aggregate import Aggregation, AggregationKind, aggregate, check, named
from crossfade.document import INT64_MAX, INT64_MIN, NAME, Document, FieldPath, identical
from crossfade.errors import InvalidArgument
from crossfade.query import FieldFilter, Op, Order, Query
from tests import strategies as some

COUNT = Aggregation(AggregationKind.COUNT, "n")


def total(*path: str) -> Aggregation:
    return Aggregation(AggregationKind.SUM, "s", path)


def mean(*path: str) -> Aggregation:
    return Aggregation(AggregationKind.AVERAGE, "a", path)


def documents(*values: Any) -> list[Document]:
    """One document for each value, in the field v; a dict gives all fields."""
    return [
        Document(f"c/{index:02}", value if isinstance(value, dict) else {"v": value}, 1, 1)
        for index, value in enumerate(values)
    ]


def result(*values: Any) -> list[Any]:
    """Sum and average of the values."""
    found = aggregate(Query(collection="c"), documents(*values), [total("v"), mean("v")])
    return [found["s"], found["a"]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], [0, None]),
        (["a", None, True, [1], {"v": {"x": 1}}], [0, None]),
        ([1, 2, 3], [6, 2.0]),
        ([1, 2.5], [3.5, 1.75]),
        ([1, "a", True], [1, 1.0]),
        ([1.0, 2], [3.0, 1.5]),
        ([INT64_MAX, 1], [2.0**63, 2.0**62]),
        ([INT64_MAX, 1, -1], [INT64_MAX, 2.0**63 / 3]),
        ([INT64_MIN, -1], [-(2.0**63), -(2.0**62)]),
        ([INT64_MAX, INT64_MAX], [2.0**64, 2.0**63]),
        ([2**53 + 1, 2**53 + 1], [2**54 + 2, 2.0**53]),
        ([-0.0, -0.0], [0.0, 0.0]),
        ([0.1] * 10, [1.0, 0.1]),
        ([0.1, 0.2, 0.3], [0.6, 0.6 / 3]),
        ([1e100, 1.0, -1e100], [1.0, 1 / 3]),
        ([math.inf, 1], [math.inf, math.inf]),
        ([math.inf, -math.inf], [math.nan, math.nan]),
        ([math.nan, 1], [math.nan, math.nan]),
        ([1.7e308, 1.7e308], [math.inf, math.inf]),
        ([-1.7e308, -1.7e308], [-math.inf, -math.inf]),
        ([1.7e308, 1.7e308, -1.7e308], [1.7e308, 1.7e308 / 3]),
    ],
)
def test_sum_and_average(values: list[Any], expected: list[Any]) -> None:
    assert identical(result(*values), expected)


@given(st.lists(st.sampled_from(some.NUMBERS), max_size=6), st.randoms())
def test_the_order_of_the_documents_does_not_show(values: list[Any], random: Any) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert identical(result(*values), result(*shuffled))


def test_a_missing_field_drops_the_document_from_everything() -> None:
    given_ = documents({"v": 1, "w": 2}, {"v": 2}, {"w": 5}, {"v": "x", "w": None}, {})
    query = Query(collection="c")
    assert aggregate(query, given_, [COUNT]) == {"n": 5}
    assert aggregate(query, given_, [COUNT, total("v")]) == {"n": 3, "s": 3}
    assert aggregate(query, given_, [COUNT, total("v"), mean("w")]) == {"n": 2, "s": 1, "a": 2.0}


def test_up_to() -> None:
    given_ = documents(1, 2, 3)
    some_of_them = Aggregation(AggregationKind.COUNT, "few", up_to=2)
    assert aggregate(Query(), given_, [some_of_them, COUNT]) == {"few": 2, "n": 3}


def test_aliases() -> None:
    unnamed = Aggregation(AggregationKind.COUNT, "")
    assert [a.alias for a in named([unnamed, COUNT, unnamed])] == ["field_1", "n", "field_2"]


def test_a_limit_cuts_by_the_values() -> None:
    """Summed fields are implicit orders, in the direction of the last explicit one."""
    given_ = documents({"v": 1, "w": 9}, {"v": 2, "w": 3}, {"v": 2, "w": 1}, {"v": 3, "w": 3})
    query = Query(collection="c", limit=2)
    assert aggregate(query, given_, [total("w")]) == {"s": 4}
    assert aggregate(query, given_, [total("w"), mean("v")]) == {"s": 10, "a": 1.5}
    down = Query(collection="c", limit=2, order_by=(Order(("v",), descending=True),))
    assert aggregate(down, given_, [total("w")]) == {"s": 6}
    above = Query(collection="c", limit=2, where=FieldFilter(("w",), Op.GREATER_THAN, 0))
    assert check(above, [total("v")]) == (Order(("w",)), Order(("v",)), Order(NAME))
    assert aggregate(above, given_, [total("v")]) == {"s": 4}


@pytest.mark.parametrize(
    "aggregations",
    [
        [],
        [Aggregation(AggregationKind.COUNT, str(index)) for index in range(6)],
        [COUNT, COUNT],
        [Aggregation(AggregationKind.COUNT, "__x__")],
        [Aggregation(AggregationKind.COUNT, "ü" * 751)],
        [Aggregation(AggregationKind.COUNT, "n", up_to=0)],
        [Aggregation(AggregationKind.COUNT, "n", up_to=-1)],
        [total("__name__")],
        [total("a", "__x__")],
    ],
)
def test_illegal_aggregations(aggregations: list[Aggregation]) -> None:
    with pytest.raises(InvalidArgument):
        check(Query(), aggregations)


@pytest.mark.parametrize(
    "query",
    [
        Query(select=(("v",),)),
        Query(collection="c", order_by=(Order(NAME),)),
        Query(collection="c", parent="c/a", all_descendants=True),
        Query(limit=-1),
    ],
)
def test_illegal_together(query: Query) -> None:
    with pytest.raises(InvalidArgument):
        check(query, [COUNT, total("v")])


@pytest.mark.parametrize("path", [("v",), ("a", "b"), ("odd name",)])
def test_five_and_long_names_are_allowed(path: FieldPath) -> None:
    counts = [Aggregation(AggregationKind.COUNT, str(index) * 1500) for index in range(4)]
    assert check(Query(), [*counts, total(*path)]) == (Order(path), Order(NAME))
    assert check(Query(select=()), counts) == (Order(NAME),)
