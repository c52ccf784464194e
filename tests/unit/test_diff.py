"""Differences by place."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossfade.diff import (
    MAX_DIFFERENCES,
    Kind,
    diff,
    differences,
    displaced,
    format_place,
)
from crossfade.document import ABSENT, identical
from tests.strategies import fields, values

MIRRORED = {Kind.MISSING: Kind.EXTRA, Kind.EXTRA: Kind.MISSING}


def kinds(left, right):
    return [(format_place(each.place), each.kind) for each in diff(left, right)]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ({"a": 1}, {"a": 2}, [("a", "value")]),
        ({"a": 1}, {"a": 1.0}, [("a", "type")]),
        ({"a": True}, {"a": 1}, [("a", "type")]),
        ({"a": None}, {"a": 0}, [("a", "type")]),
        ({"a": 1}, {}, [("a", "missing")]),
        ({}, {"a": None}, [("a", "extra")]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "d": 3}}, [("a.b", "missing"), ("a.d", "extra")]),
        ({"a": [1, 2]}, {"a": [1]}, [("a", "length")]),
        ({"a": [1, 2]}, {"a": [3]}, [("a", "length"), ("a[0]", "value")]),
        ({"a": [1, 2, 2]}, {"a": [2, 1, 2]}, [("a", "order")]),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 2}, {"b": 1}]}, [("a", "order")]),
        ({"a": [1, 1.0]}, {"a": [1.0, 1]}, [("a", "order")]),
        ({"a": {"b": [{"c": 0.0}]}}, {"a": {"b": [{"c": -0.0}]}}, [("a.b[0].c", "value")]),
        ({"x-y": {"b": 1}}, {"x-y": {"b": 2}}, [("`x-y`.b", "value")]),
    ],
)
def test_every_kind_and_where_it_is(left, right, expected):
    assert kinds(left, right) == expected


def test_items_that_are_not_a_permutation_are_told_one_by_one():
    assert kinds({"a": [1, 2, 2]}, {"a": [2, 1, 1]}) == [
        ("a[0]", "value"),
        ("a[1]", "value"),
        ("a[2]", "value"),
    ]


def test_nan_equals_nan_within_arrays_too():
    nan = float("nan")
    assert diff({"a": nan, "b": [nan, 1]}, {"a": float("nan"), "b": [float("nan"), 1]}) == []
    assert kinds({"b": [nan, 1]}, {"b": [1, nan]}) == [("b", "order")]


# The first to draw from these strategies builds them, which counts as slowness.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(fields())
def test_nothing_differs_from_itself(document):
    assert diff(document, copy.deepcopy(document)) == []


@given(fields(), fields())
def test_no_difference_means_identical(left, right):
    assert (diff(left, right) == []) is identical(left, right)


@given(fields(), fields())
def test_the_other_way_round_the_kinds_are_mirrored(left, right):
    there = [(each.place, each.kind) for each in differences(left, right)]
    back = [(each.place, each.kind) for each in differences(right, left)]
    assert [(place, MIRRORED.get(kind, kind)) for place, kind in there] == back


def unshared(value: Any) -> Any:
    """A copy in which no two places are one object, as two vectors of the pool may be."""
    if isinstance(value, dict):
        return {name: unshared(item) for name, item in value.items()}
    return list(map(unshared, value)) if isinstance(value, list) else value


@given(st.data())
def test_the_differences_are_all_that_is_needed_to_mend_the_mirror(data):
    left = data.draw(fields())
    # Mostly a relative of the other, so that deep places differ and not whole fields.
    right = data.draw(st.one_of(fields(), altered(left)))
    mended = unshared(right)
    for each in differences(left, right):
        put(mended, each.place, each.authority)
    assert identical(mended, left)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """The value with some of what it holds left out, changed, added or in another order."""
    if isinstance(value, dict):
        changed = {
            name: draw(altered(item)) for name, item in value.items() if draw(st.integers(0, 4))
        }
        return changed | draw(st.just({}) | st.just({"new": 1}))
    if isinstance(value, list):
        items = [draw(altered(item)) for item in value]
        return draw(st.permutations(items)) + draw(st.just([]) | st.just([7]))
    return draw(st.just(value) | st.just(value) | values(0))


def put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    *outer, last = place
    for part in outer:
        document = document[part]
    if value is ABSENT:
        del document[last]
    else:
        document[last] = copy.deepcopy(value)


def test_a_missing_side_is_marked_and_the_list_is_bounded():
    (difference,) = diff({"a": 1}, {})
    assert difference.mirror is ABSENT
    assert len(diff({str(i): i for i in range(500)}, {})) == MAX_DIFFERENCES


def test_what_a_difference_says_of_itself_holds_no_value():
    (difference,) = diff({"items": [{"price": 4711}]}, {"items": [{"price": 4712}]})
    assert str(difference) == "items[0].price (value)"


def test_results_are_in_order_or_name_who_is_displaced():
    assert displaced(["a", "b", "c"], ["a", "b", "c"]) is None
    assert displaced(["a", "b", "c"], ["a", "c", "b"]) == "b"
