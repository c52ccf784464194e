"""Ranges of names as intervals of paths: nothing of a range is missed, and little else is read."""

from random import Random

import pytest

from crossfade.document import path_key
from crossfade.mapping import escape_path
from crossfade.stores.postgres.intervals import (
    END,
    Interval,
    Span,
    behind,
    below,
    intersection,
    nested,
    union,
)

IDS = [
    *("a", "a-", "a-1", "a.b", "ab", "B", "~", "\0", "a\0", "a\1", "0", "é", "\U0010ffff"),
    *("__id7__", "__id10__", "__id-3__", "__id-30__", "__id9223372036854775807__"),
    *("__id7x", "__ie", "__"),
]
PATHS = [f"{name}/{key}" for name in ("c", "c-d", "tasks", "c\1") for key in IDS]
DEEP = [f"{path}/{below}/{key}" for path in PATHS[::2] for below in ("x", "x-") for key in IDS[::3]]
ALL = PATHS + DEEP


def within(intervals: list[Interval], key: str) -> bool:
    return any(low <= key < high for low, high in intervals)


@pytest.mark.parametrize("seed", range(6))
def test_a_range_is_covered(seed):
    random = Random(seed)
    for _ in range(400):
        span = Span(
            random.choice([*ALL, None]),
            random.choice([*ALL, None]),
            included=random.random() < 0.5,
            excluded=random.random() < 0.5,
        )
        intervals = span.intervals()
        assert intervals == union(intervals)
        for path in random.sample(ALL, 25):
            text = escape_path(path)
            root, key, *deeper = text.split("/")
            if not span.holds(path):
                continue
            assert within(intervals, text), (span, path)
            if deeper:
                assert within(nested(intervals, root), f"{key}/{deeper[1]}"), (span, path)
            else:
                assert within(below(intervals, f"{root}/"), key), (span, path)


def test_a_page_reads_no_other_documents_but_numeric_ones():
    """Of ids like these, the bytes of paths order otherwise than names do."""
    random = Random(1)
    plain = sorted((path for path in ALL if "__id" not in path), key=path_key)
    for _ in range(500):
        first, last = sorted(random.sample(range(len(plain)), 2))
        intervals = Span(plain[first], plain[last]).intervals()
        covered = [path for path in plain if within(intervals, escape_path(path))]
        covered = [path for path in covered if path != plain[first]]
        assert covered == plain[first + 1 : last + 1]


def test_a_page_of_numeric_ids_reads_about_as_many():
    ids = [f"c/__id{10**15 + 977 * n}__" for n in range(1_000)]
    intervals = Span(ids[500], ids[510]).intervals()
    assert sum(within(intervals, path) for path in ids) <= 12
    others = Span("c/a", "c/b").intervals()
    assert not any(within(others, path) for path in ids)


def test_sets_of_intervals():
    assert union([("b", "c"), ("a", "b"), ("d", "d"), ("e", "f")]) == [("a", "c"), ("e", "f")]
    assert intersection([("a", "c"), ("e", "h")], [("b", "f")]) == [("b", "c"), ("e", "f")]
    assert behind([("a", "c"), ("d", END)], "b") == [("b\1", "c"), ("d", END)]
    assert behind([("a", "c")], "d") == []
    assert below([("a", "c/x")], "c/") == [("", "x")]
    assert below([("a", "d")], "c/") == [("", END)]
