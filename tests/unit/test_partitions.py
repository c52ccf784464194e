"""Ranges of names hold every document once, however odd its name; parents come first."""

import asyncio
from bisect import bisect_left
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.document import is_own
from crossfade.jobs.partitions import NameRange, cut, lowest, only, ranked, tiles
from crossfade.jobs.planning import sampled
from crossfade.key import name_key
from crossfade.mapping import Mappings
from violet.mapping import MAPPINGS

COLLECTIONS = st.sampled_from(
    ["a", "a-b", "a\0", "b", "tasks", "tasks0", "_crossfade_intents", "_crossfade_", "_d", "`", "ä"]
) | st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text not in {".", ".."} and not text.startswith("__")
)
IDS = st.sampled_from(
    ["__id7__", "__id-9223372036854775808__", "__id9223372036854775807__", "\0", "-", "0", "~"]
) | st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text not in {".", ".."} and not text.startswith("__")
)
PATHS = st.lists(st.tuples(COLLECTIONS, IDS), min_size=1, max_size=3).map(
    lambda pairs: "/".join("/".join(pair) for pair in pairs)
)


@given(st.lists(PATHS, max_size=20), st.lists(COLLECTIONS, max_size=6), st.lists(PATHS, max_size=8))
def test_every_document_lies_in_exactly_one_range(paths, known, points):
    """Also of collections that nobody knew of when the ranges were made."""
    roots = [*known, *(path.partition("/")[0] for path in paths[::2])]
    ranges = [part for whole in tiles(roots) for part in cut(whole, points)]
    for path in paths:
        holding = [each for each in ranges if each.holds(path)]
        assert len(holding) == (0 if is_own(path) else 1), (path, holding)


@given(st.lists(PATHS, max_size=20), st.sets(COLLECTIONS, min_size=1), st.lists(PATHS, max_size=8))
def test_ranges_of_collections_hold_what_lies_below_them_and_nothing_else(paths, chosen, points):
    ranges = [part for whole in only(chosen) for part in cut(whole, points)]
    for path in paths:
        holding = [each for each in ranges if each.holds(path)]
        assert len(holding) == (path.partition("/")[0] in chosen)


@given(st.lists(PATHS, max_size=12))
def test_cutting_loses_no_name_between_the_parts(points):
    whole = NameRange("", None, None)
    parts = cut(whole, points)
    assert (parts[0].begin, parts[-1].end) == (None, None)
    for before, after in pairwise(parts):
        assert before.end == after.begin is not None
        assert before.begin is None or name_key(before.begin) < name_key(after.begin)


def test_what_is_referred_to_comes_first():
    everything = [
        NameRange(mapping.collection_id, None, None)
        for mapping in MAPPINGS
        if mapping.parent is None
    ]
    ranks = {each.collection: rank for rank, each in ranked(everything[::-1], MAPPINGS)}
    assert ranks["users"] < ranks["api_keys"]
    assert ranks["tasks"] < ranks["miner_responses"]
    tables = {mapping.table: mapping.collection_id for mapping in MAPPINGS}
    references = [
        (mapping.collection_id, tables[reference.target])
        for mapping in MAPPINGS
        for reference in mapping.references
        if mapping.parent is None and reference.target is not mapping.table
    ]
    assert references
    assert all(ranks[parent] < ranks[child] for child, parent in references)


def test_unmapped_collections_come_with_the_last_ones_and_ranges_stay_in_order():
    ranges = [NameRange("notes", "notes/a", "notes/b"), NameRange("notes", "notes/b", None)]
    assert [each for _, each in ranked(ranges, Mappings())] == ranges


# --- looking for names -------------------------------------------------------------------------


def _cutting(identities: list[str], parts: int, probes: int = 120) -> tuple[list[NameRange], int]:
    """The ranges that the sampled points make, and how many reads they cost."""
    names = sorted((f"c/{identity}" for identity in identities), key=name_key)
    keys = [name_key(name) for name in names]
    asked = 0

    async def first(name: str) -> str | None:
        nonlocal asked
        asked += 1
        place = bisect_left(keys, name_key(name))
        return names[place] if place < len(names) else None

    points = asyncio.run(sampled(first, "c", parts, probes))
    return cut(only(["c"])[0], points), asked


@pytest.mark.parametrize(
    "identities",
    [
        [f"{number:08x}" for number in range(0, 2**32, 2**32 // 4_000)],
        [f"user.{number}@example.org" for number in range(4_000)],
        [str(number) for number in range(4_000)],
        [f"2026-01-{day:02}T{hour:02}" for day in range(1, 31) for hour in range(24)],
        [chr(0x4E00 + number) * 3 for number in range(2_000)],
    ],
    ids=["hex", "a common beginning", "numbers", "times", "another script"],
)
def test_sampled_names_cut_a_collection(identities: list[str]):
    ranges, asked = _cutting(identities, 8)
    assert asked <= 121
    sizes = [sum(each.holds(f"c/{identity}") for identity in identities) for each in ranges]
    assert sum(sizes) == len(identities)
    assert len(sizes) > 3
    assert max(sizes) < 0.5 * len(identities)


@given(st.lists(IDS, max_size=30), st.integers(2, 9))
def test_sampled_names_lose_no_document(identities, parts):
    ranges, asked = _cutting(identities, parts, 40)
    assert asked <= 41
    for identity in identities:
        assert sum(each.holds(f"c/{identity}") for each in ranges) == 1
    assert ranges[0].begin == lowest("c")
