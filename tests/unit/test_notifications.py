"""What a commit tells listeners: all its paths, in texts that PostgreSQL takes."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.stores.postgres.changes import notifications

LIMIT = 7_999
"""Bytes of a notification's text, by PostgreSQL's manual."""


def told(texts: list[str]) -> list[str]:
    return [path for text in texts for path in orjson.loads(text)]


def test_few_paths_are_one_text():
    assert notifications(["tasks/1", "tasks/ä"]) == ['["tasks/1","tasks/ä"]']
    assert notifications([]) == []


@pytest.mark.parametrize("count", [1, 2, 1_000])
@pytest.mark.parametrize("size", [1, 700, 3_000, 6_144])
def test_many_and_long_paths_are_several(count, size):
    paths = [f"c/{number}{'x' * size}"[:6_144] for number in range(count)]
    texts = notifications(paths)
    assert all(len(text.encode()) <= LIMIT for text in texts)
    assert told(texts) == paths
    assert len(texts) <= count


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), max_size=80))
def test_whatever_a_path_is_made_of(paths):
    texts = notifications(paths)
    assert all(len(text.encode()) <= LIMIT for text in texts)
    assert not any("\0" in text for text in texts)
    assert told(texts) == paths
