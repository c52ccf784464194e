"""The comparison of latencies: pairs by collection and operation, and over time."""

import random
from itertools import pairwise

import pytest

from crossfade.paired import SLOT_SECONDS, SLOTS, Paired


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def paired(clock: Clock) -> Paired:
    return Paired(clock)


def test_what_the_stores_share_is_not_in_their_difference(paired):
    rng = random.Random(1)
    for _ in range(5_000):
        shared = rng.lognormvariate(-5, 1)  # a hot hour, a large document
        paired.add("tasks", "get", shared + 0.004, shared + 0.001)
    (found,) = paired.comparisons()
    assert found.count == 5_000
    assert found.difference.p50 == pytest.approx(-0.003, rel=0.1)
    assert found.difference.p99 == pytest.approx(-0.003, rel=0.1)
    assert found.slower == 0
    # Each for itself says nothing of it: their spread is a hundred times the difference.
    assert found.firestore.p99 > 20 * 0.003
    assert found.firestore.p50 > found.postgresql.p50


def test_the_histogram_has_all_pairs_and_the_share_that_was_slower(paired):
    for seconds in (-0.01, -0.001, 0.001, 0.002):
        paired.add("tasks", "get", 0.02, 0.02 + seconds)
    (found,) = paired.comparisons()
    assert found.slower == 0.5
    bounds = [bound for bound, _ in found.histogram]
    assert bounds == sorted(bounds)
    assert sum(count for _, count in found.histogram) == 4
    assert sum(count for bound, count in found.histogram if bound < 0) == 2


def test_collections_and_operations_are_told_apart_and_chosen(paired):
    paired.add("users", "get", 0.001, 0.002)
    paired.add("tasks", "query", 0.001, 0.002)
    paired.add("tasks", "get", 0.001, 0.002)
    assert [(c.collection, c.operation) for c in paired.comparisons()] == [
        ("tasks", "get"),
        ("tasks", "query"),
        ("users", "get"),
    ]
    assert [c.operation for c in paired.comparisons(collection="tasks", operation="get")] == ["get"]
    assert len(paired.comparisons(60.0, operation="get")) == 2


def test_the_last_minutes_are_told_without_those_before(paired, clock):
    for _ in range(10):
        paired.add("tasks", "get", 0.001, 0.1)
    clock.now += 600
    for _ in range(10):
        paired.add("tasks", "get", 0.001, 0.002)
    (recent,) = paired.comparisons(60.0)
    assert (recent.count, recent.postgresql.p99 < 0.003) == (10, True)
    assert paired.comparisons(1_200.0)[0].count == paired.comparisons()[0].count == 20
    clock.now += 120
    assert paired.comparisons(60.0) == []


def test_an_hour_is_kept_and_no_more(paired, clock):
    for _ in range(SLOTS + 50):
        paired.add("tasks", "get", 0.001, 0.002)
        clock.now += SLOT_SECONDS
    assert paired.comparisons(86_400.0)[0].count == SLOTS
    assert paired.comparisons()[0].count == SLOTS + 50


def test_moments_are_even_and_say_where_nothing_was_compared(paired, clock):
    paired.add("tasks", "get", 0.001, 0.002)
    clock.now += 30
    paired.add("tasks", "get", 0.001, 0.004)
    paired.add("users", "get", 0.001, 0.004)
    found = paired.moments(60.0)
    assert [each.count for each in found] == [0, 0, 1, 0, 0, 2]
    assert [b.at - a.at for a, b in pairwise(found)] == [SLOT_SECONDS] * 5
    assert found[0].difference is None
    assert found[-1].difference is not None
    assert found[-1].difference.p50 == pytest.approx(0.003, rel=0.1)
    assert [each.count for each in paired.moments(60.0, collection="users")] == [0] * 5 + [1]
    assert sum(each.count for each in paired.moments(120.0, step=30.0)) == 3
    assert len(paired.moments(120.0, step=30.0)) == 4
