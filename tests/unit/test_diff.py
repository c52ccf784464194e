"""Differences by field path."""

from hypothesis import given

from crossfade.diff import MAX_DIFFERENCES, diff
from crossfade.document import ABSENT, identical
from tests.strategies import fields


def kinds(left, right):
    return [(difference.path, difference.kind) for difference in diff(left, right)]


def test_every_kind():
    assert kinds({"a": 1}, {"a": 2}) == [(("a",), "value")]
    assert kinds({"a": 1}, {"a": 1.0}) == [(("a",), "type")]
    assert kinds({"a": 1}, {}) == [(("a",), "missing")]
    assert kinds({}, {"a": None}) == [(("a",), "extra")]
    assert kinds({"a": [1, 2]}, {"a": [1]}) == [(("a",), "length")]
    assert kinds({"a": {"b": [{"c": 0.0}]}}, {"a": {"b": [{"c": -0.0}]}}) == [
        (("a", "b[0]", "c"), "value")
    ]


def test_nan_equals_nan_and_true_is_not_one():
    assert diff({"a": float("nan")}, {"a": float("nan")}) == []
    assert kinds({"a": True}, {"a": 1}) == [(("a",), "type")]


@given(fields(), fields())
def test_no_difference_means_identical(left, right):
    assert (diff(left, right) == []) is identical(left, right)


def test_a_missing_side_is_marked_and_the_list_is_bounded():
    (difference,) = diff({"a": 1}, {})
    assert difference.mirror is ABSENT
    assert len(diff({str(i): i for i in range(500)}, {})) == MAX_DIFFERENCES
