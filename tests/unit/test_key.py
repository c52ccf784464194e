"""Byte keys against the comparison that they stand for."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.document import INT64_MAX, INT64_MIN, Kind, Reference, compare, kind, path_key
from crossfade.key import after, below_key, name_key, path_of, prefix_of, value_key
from tests import strategies as some

IDS = st.one_of(
    st.sampled_from([*some.IDS, "__id0__", "a\0", "a\0\1", "a!", "a/", "\1", "__id1", "__id1__x"]),
    st.integers(INT64_MIN, INT64_MAX).map(lambda number: f"__id{number}__"),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=4),
).filter(lambda text: "/" not in text)
PATHS = st.lists(IDS, min_size=1, max_size=4).map("/".join)
# Integers around doubles: where an exact comparison is easily lost.
NEAR = st.one_of(
    st.integers(INT64_MIN, INT64_MAX),
    st.floats(),
    st.builds(
        lambda power, sign, off: max(INT64_MIN, min(INT64_MAX, sign * 2**power + off)),
        st.integers(0, 63),
        st.sampled_from([-1, 1]),
        st.integers(-2, 2),
    ),
    st.builds(lambda power, sign: sign * 2.0**power, st.integers(0, 64), st.sampled_from([-1, 1])),
)


def sign(left: Any, right: Any) -> int:
    return (left > right) - (left < right)


@given(some.values(), some.values())
def test_keys_sort_as_values_do(left: Any, right: Any) -> None:
    assert sign(value_key(left), value_key(right)) == compare(left, right)


@given(NEAR, NEAR)
def test_keys_of_numbers_are_exact(left: float, right: float) -> None:
    assert sign(value_key(left), value_key(right)) == compare(left, right)


def test_the_keys_of_hostile_values_sort_as_they_do() -> None:
    values = [*some.SCALARS, *some.VECTORS, [], [None], {}, {"a": None}, {"a": {}}, {"a\0": 1}]
    for left, right in itertools.product(values, values):
        assert sign(value_key(left), value_key(right)) == compare(left, right), (left, right)


@given(some.values(), some.values())
def test_no_key_begins_with_another(left: Any, right: Any) -> None:
    a, b = value_key(left), value_key(right)
    assert a == b or not a.startswith(b)


@given(some.values())
def test_the_keys_of_a_kind_lie_between_its_prefix_and_after_it(value: Any) -> None:
    which = kind(value)
    for other in Kind:
        inside = prefix_of(other) <= value_key(value) < after(prefix_of(other))
        assert inside == (other is which)


@given(PATHS, PATHS)
def test_keys_of_names_sort_as_names_do(left: str, right: str) -> None:
    a, b = path_key(left), path_key(right)
    assert sign(name_key(left), name_key(right)) == sign(a, b)
    assert sign(value_key(Reference(left)), value_key(Reference(right))) == sign(a, b)


@given(PATHS)
def test_a_key_gives_its_name_back(path: str) -> None:
    assert path_of(name_key(path)) == path
    assert path_of(below_key(path)) == path


@given(PATHS, PATHS)
def test_what_lies_below_a_path_begins_with_its_key(path: str, other: str) -> None:
    prefix = below_key(path)
    for name, inside in ((path, True), (f"{path}/{other}", True), (other, None)):
        expected = name == path or name.startswith(f"{path}/") if inside is None else inside
        assert name_key(name).startswith(prefix) == expected
        assert (prefix <= name_key(name) < after(prefix)) == expected


@pytest.mark.parametrize("number", [math.nan, -math.inf, -0.0, 0, math.inf])
def test_equal_numbers_have_one_key(number: float) -> None:
    assert value_key(number) == value_key(-0.0 if number == 0 else number)
