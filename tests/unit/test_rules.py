"""Rules take differences away, and nothing else."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.diff import Kind, diff, differences
from crossfade.rules import Rule, sift
from tests.strategies import field_paths, fields

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def counted(left, right, *rules):
    return [str(each) for each, rule in sift(diff(left, right), rules) if rule is None]


def test_a_field_is_ignored_with_all_that_lies_within_it():
    rule = Rule("stamps", (("meta",),))
    left = {"meta": {"at": 1, "by": "x"}, "metal": 1, "n": 1}
    right = {"meta": {"at": 2}, "metal": 2, "n": 1}
    assert counted(left, right, rule) == ["metal (value)"]
    assert counted({"meta": 1}, {}, rule) == []


def test_a_rule_of_an_inner_field_does_not_excuse_the_outer_one():
    rule = Rule("inner", (("a", "b"),))
    assert counted({"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "c": 2}}, rule) == ["a.c (value)"]
    assert counted({"a": {"b": 1}}, {}, rule) == ["a (missing)"]


def test_items_of_an_array_have_the_path_of_their_array():
    rule = Rule("prices", (("items", "price"),))
    left = {"items": [{"price": 1, "n": 1}, {"price": 2, "n": 1}]}
    right = {"items": [{"price": 3, "n": 1}, {"price": 4, "n": 2}]}
    assert counted(left, right, rule) == ["items[1].n (value)"]


def test_only_some_kinds_may_be_ignored():
    rule = Rule("tags are a set", (("tags",),), kinds=frozenset({Kind.ORDER}))
    assert counted({"tags": [1, 2]}, {"tags": [2, 1]}, rule) == []
    assert counted({"tags": [1, 2]}, {"tags": [2]}, rule) == ["tags (length)", "tags[0] (value)"]


@pytest.mark.parametrize(
    ("rule", "left", "right", "near"),
    [
        ({"absolute": 0.5}, 1.0, 1.5, True),
        ({"absolute": 0.5}, 1.0, 1.6, False),
        ({"absolute": 0}, 0.0, -0.0, True),
        ({"absolute": 1}, 2**62, 2**62 + 1, True),
        ({"absolute": 1}, 2**62, 2**62 + 2, False),
        ({"relative": 0.1}, 100, 90, True),
        ({"relative": 0.1}, 100, 89, False),
        ({"relative": 0.1}, float("inf"), 1.0, False),
        ({"absolute": 9e99}, float("inf"), float("-inf"), False),
        ({"absolute": 1}, float("nan"), 1.0, False),
        ({"absolute": 1, "relative": 0.5}, 100, 60, True),
        ({"absolute": 1}, 1, 1.0, False),  # another type is another answer
        ({"absolute": 1}, True, False, False),
        ({"absolute": 1}, "a", "b", False),
        ({"skew": 2}, NOON, NOON + timedelta(seconds=2), True),
        ({"skew": 2}, NOON, NOON - timedelta(seconds=3), False),
        ({"absolute": 9}, NOON, NOON + timedelta(seconds=1), False),
        ({"skew": 9}, 1, 2, False),
    ],
)
def test_what_is_near_enough_passes(rule, left, right, near):
    found = counted({"a": left}, {"a": right}, Rule("near", (("a",),), **rule))
    assert (found == []) is near


def test_the_first_rule_that_covers_a_difference_is_the_one_that_is_named():
    one, other = Rule("one", (("a", "b"),)), Rule("other", (("a",),))
    taken = sift(diff({"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "c": 2}}), (one, other))
    assert [rule.name for _, rule in taken] == ["one", "other"]


def rules() -> st.SearchStrategy[Rule]:
    bounds = st.none() | st.floats(0, 1e9)
    return st.builds(
        Rule,
        st.sampled_from(["r", "s"]),
        st.lists(field_paths(), min_size=1, max_size=2).map(tuple),
        st.none() | st.frozensets(st.sampled_from(list(Kind))),
        bounds,
        bounds,
        bounds,
    )


@given(fields(), fields(), st.lists(rules(), max_size=3))
def test_rules_only_ever_remove_differences(left, right, some):
    taken = list(sift(differences(left, right), some))
    assert [each for each, _ in taken] == list(differences(left, right))
    assert all(rule is None or rule.covers(each) for each, rule in taken)


@given(fields(), fields(), st.lists(rules(), max_size=2), rules())
def test_one_more_rule_never_makes_more_differences_count(left, right, some, another):
    fewer = counted(left, right, *some, another)
    more = counted(left, right, *some)
    assert [each for each in more if each in fewer] == fewer
