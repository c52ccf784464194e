"""The checker passes every history that one order explains, and none that no order does."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.fault.history import (
    COUNTER,
    MOST_UNKNOWN,
    Act,
    Effect,
    Fields,
    History,
    Operation,
    Outcome,
    as_fields,
    check,
)

A, B = "notes/a", "notes/b"


class Told:
    """A history told in words, with times of its own."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def _add(self, start: float, end: float, **what: Any) -> None:
        number = len(self.operations)
        what = {"outcome": Outcome.OK} | what
        self.operations.append(Operation(number, "c", start=start, end=end, **what))

    def write(self, start: float, end: float, *effects: Effect, **what: Any) -> "Told":
        self._add(start, end, effects=effects, **what)
        return self

    def read(self, start: float, end: float, **seen: int | None) -> "Told":
        found = {f"notes/{key}": None if v is None else fields(v) for key, v in seen.items()}
        self._add(start, end, seen=found)
        return self

    def query(self, start: float, end: float, **seen: int) -> "Told":
        found: dict[str, Fields | None] = {f"notes/{key}": fields(v) for key, v in seen.items()}
        self._add(start, end, seen=found, collection="notes")
        return self

    def counted(self, start: float, end: float, number: int) -> "Told":
        self._add(start, end, seen={A: as_fields({COUNTER: number})})
        return self

    @property
    def ok(self) -> bool:
        return check(self.operations).ok


def fields(value: int) -> Fields:
    return as_fields({"v": value})


def put(path: str, value: int) -> Effect:
    return Effect(Act.SET, path, fields(value))


def create(path: str, value: int) -> Effect:
    return Effect(Act.CREATE, path, fields(value))


def delete(path: str) -> Effect:
    return Effect(Act.DELETE, path)


def add(amount: int) -> Effect:
    return Effect(Act.ADD, A, amount=amount)


UNKNOWN = {"outcome": Outcome.UNKNOWN}


# --- documents ---------------------------------------------------------------------------------


def test_one_after_the_other_is_explained():
    told = Told().read(0, 1, a=None).write(2, 3, put(A, 1)).read(4, 5, a=1)
    assert told.write(6, 7, delete(A)).read(8, 9, a=None).ok


def test_a_stale_read_is_not():
    assert not Told().write(0, 1, put(A, 1)).write(2, 3, put(A, 2)).read(4, 5, a=1).ok


def test_while_a_write_is_under_way_both_can_be_seen_but_not_new_then_old():
    told = Told().write(0, 1, put(A, 1)).write(2, 9, put(A, 2))
    assert told.read(3, 4, a=1).read(5, 6, a=2).ok
    assert not told.read(7, 8, a=1).ok


def test_a_read_from_the_future_is_not_explained():
    assert not Told().read(0, 1, a=1).write(2, 3, put(A, 1)).ok


def test_a_read_of_what_nobody_wrote_is_not_explained():
    assert not Told().write(0, 1, put(A, 1)).read(2, 3, a=7).ok


def test_a_lost_write_is_not_explained_unless_its_outcome_is_unknown():
    assert not Told().write(0, 1, put(A, 1)).read(2, 3, a=None).ok
    assert Told().write(0, 1, put(A, 1), **UNKNOWN).read(2, 3, a=None).ok


def test_an_acknowledged_write_may_be_overwritten_by_one_at_the_same_time():
    assert Told().write(0, 4, put(A, 1)).write(1, 3, put(A, 2)).read(5, 6, a=1).ok
    assert Told().write(0, 4, put(A, 1)).write(1, 3, put(A, 2)).read(5, 6, a=2).ok


def test_a_deleted_document_does_not_come_back():
    told = Told().write(0, 1, put(A, 1)).write(2, 3, delete(A)).read(4, 5, a=None)
    assert told.ok
    assert not told.read(6, 7, a=1).ok


def test_queries_are_judged_though_too_many_increments_are_unknown():
    """The sums are then judged apart, and no order has to explain that they were there."""
    told = Told().write(0, 1, put(B, 1))
    for number in range(MOST_UNKNOWN + 1):
        told.write(2 + number, 20, add(1), **UNKNOWN)
    seen = {A: as_fields({COUNTER: 7}), B: fields(1)}
    told._add(10, 11, seen=seen, collection="notes")
    told.read(12, 13, b=1)
    assert check(told.operations, {A: as_fields({COUNTER: 5})}).ok
    told.read(14, 15, b=2)
    assert not check(told.operations, {A: as_fields({COUNTER: 5})}).ok


def test_a_write_of_unknown_outcome_happens_once_late_or_never():
    told = Told().write(0, 9, put(A, 1), **UNKNOWN).write(1, 2, put(A, 2)).read(3, 4, a=2)
    assert told.ok
    assert told.read(5, 6, a=1).ok
    assert told.write(6.1, 6.2, put(A, 3)).read(6.3, 6.4, a=3).ok
    assert not told.read(7, 8, a=1).ok


def test_a_write_of_unknown_outcome_does_not_happen_when_it_is_over():
    told = Told().write(0, 2, put(A, 1), **UNKNOWN).read(3, 4, a=None)
    assert told.ok
    assert not told.read(5, 6, a=1).ok
    # Nor because a read of something else was taken first.
    assert Told().write(0, 2, put(A, 1), **UNKNOWN).read(3, 4, b=None).read(5, 6, a=1).ok


def test_a_refused_write_does_nothing():
    told = Told().write(0, 1, put(A, 1), outcome=Outcome.REFUSED).read(2, 3, a=None)
    assert told.ok
    assert not told.read(4, 5, a=1).ok


def test_a_create_needs_that_there_is_nothing_and_a_refused_one_that_there_is():
    assert Told().write(0, 1, create(A, 1)).read(2, 3, a=1).ok
    assert not Told().write(0, 1, create(A, 1)).write(2, 3, create(A, 2)).ok
    told = Told().write(0, 1, put(A, 1))
    told._add(2, 3, effects=(), existed=A)
    assert told.ok
    told._add(4, 5, effects=(), existed=B)
    assert not told.ok


def test_a_merge_keeps_what_it_does_not_name():
    merge = Effect(Act.MERGE, A, as_fields({"m": 5}))
    told = Told().write(0, 1, put(A, 1)).write(2, 3, merge)
    told._add(4, 5, seen={A: as_fields({"m": 5, "v": 1})})
    assert told.ok
    told._add(6, 7, seen={A: as_fields({"m": 5})})
    assert not told.ok


# --- counters ----------------------------------------------------------------------------------


def test_increments_add_up():
    told = Told().write(0, 1, add(1)).write(0, 1, add(2)).counted(2, 3, 3)
    assert told.ok
    assert not told.counted(4, 5, 4).ok


def test_a_doubled_and_a_lost_increment_are_found():
    assert not Told().write(0, 1, add(1)).counted(2, 3, 2).ok
    assert not Told().write(0, 1, add(1)).write(2, 3, add(1)).counted(4, 5, 1).ok


def test_an_increment_of_unknown_outcome_counts_at_most_once():
    told = Told().write(0, 9, add(1), **UNKNOWN).write(1, 2, add(1))
    assert told.counted(3, 4, 1).counted(5, 6, 2).ok
    assert not told.counted(7, 8, 3).ok


def test_a_sum_does_not_shrink_and_many_unknown_increments_are_judged_by_it():
    told = Told()
    for number in range(12):
        told.write(number, 99, add(1), **UNKNOWN)
    assert told.counted(50, 51, 7).counted(52, 53, 8).ok
    assert not told.counted(54, 55, 7).ok


# --- several documents -------------------------------------------------------------------------


def test_a_commit_is_seen_as_a_whole():
    told = Told().write(0, 1, put(A, 1), put(B, 1)).write(2, 9, put(A, 2), put(B, 2))
    assert told.read(3, 4, a=1, b=1).read(5, 6, a=2, b=2).ok
    assert not told.read(7, 8, a=2, b=1).ok


def test_a_query_sees_one_moment():
    told = Told().write(0, 1, put(A, 1)).write(0, 1, put(B, 1))
    told.write(2, 3, delete(A)).write(4, 5, delete(B))
    assert told.ok
    assert Told().write(0, 1, put(A, 1)).write(2, 9, put(B, 1)).query(3, 4, a=1).ok
    # b went after a did: never b without a's deletion... but also never a alone.
    assert not told.query(6, 7, a=1).ok


def test_a_torn_query_is_found():
    told = Told().write(0, 1, put(A, 1), put(B, 1))
    told.write(2, 9, put(A, 2)).write(10, 19, put(B, 2))
    assert told.query(11, 12, a=2, b=1).ok
    assert not told.query(13, 14, a=1, b=2).ok


def test_a_query_that_misses_a_document_or_shows_one_too_many_is_found():
    assert not Told().write(0, 1, put(A, 1)).query(2, 3).ok
    assert not Told().write(0, 1, put(A, 1)).query(2, 3, a=1, b=2).ok


def test_two_reads_that_saw_the_writes_in_different_orders_are_found():
    told = Told().write(0, 9, put(A, 1)).write(0, 9, put(B, 1))
    told.read(1, 2, a=1, b=None)
    assert told.ok
    assert not told.read(3, 4, a=None, b=1).ok


# --- the recorder ------------------------------------------------------------------------------


def test_the_recorder_judges_what_was_recorded_with_what_the_stores_hold_in_the_end():
    history = History({B: fields(9)})
    write = history.begin("c", effects=(put(A, 1),))
    history.end(write, Outcome.OK)
    lost = history.begin("c", effects=(delete(B),))
    history.end(lost, Outcome.UNKNOWN)
    final = {A: fields(1)}
    history.finish(final, final)
    assert history.check().ok
    history.finish(final, {A: fields(1), B: fields(9)})
    verdict = history.check()
    assert not verdict.ok
    assert "notes/b" in str(verdict)


def test_a_budget_that_is_used_up_is_no_success():
    told = Told()
    for number in range(9):
        told.write(0, 1, put(A, number))
    told.read(2, 3, a=99)
    verdict = check(told.operations, budget=80)
    assert not verdict.ok
    assert "20 states" in verdict.reason


# --- simulated clients -------------------------------------------------------------------------


def simulated(seed: int, clients: int = 4, steps: int = 40) -> list[Operation]:
    """A history of a store that does everything right: each operation takes effect at a moment
    of its own; some answers are lost, of which some were done."""
    random = Random(seed)
    paths = [A, B, "notes/c", "tasks/a"]
    state: dict[str, Fields] = {}
    ready = [0.0] * clients
    plans = []
    for number in range(steps):
        client = random.randrange(clients)
        start = ready[client] + random.random()
        moment = start + random.random()
        end = moment + random.random()
        ready[client] = end
        plans.append((moment, number, client, start, end))
    found = []
    for moment, number, client, start, end in sorted(plans):
        operation = Operation(number, f"c{client}", start=start, end=end, outcome=Outcome.OK)
        kind = random.choice(("set", "merge", "add", "delete", "two", "get", "batch", "query"))
        chosen = random.sample(paths, 2)
        if kind == "get":
            operation.seen = {chosen[0]: state.get(chosen[0])}
        elif kind == "batch":
            operation.seen = {path: state.get(path) for path in chosen}
        elif kind == "query":
            operation.collection = "notes"
            operation.seen = {p: f for p, f in state.items() if p.startswith("notes/")}
        else:
            value = as_fields({"v": number})
            operation.effects = {
                "set": (Effect(Act.SET, chosen[0], value),),
                "merge": (Effect(Act.MERGE, chosen[0], as_fields({"m": number})),),
                "add": (Effect(Act.ADD, chosen[0], amount=1 + number % 3),),
                "delete": (Effect(Act.DELETE, chosen[0]),),
                "two": tuple(Effect(Act.SET, path, value) for path in chosen),
            }[kind]
            operation.hint = moment
            lost = random.random() < 0.15
            if lost:
                operation.outcome = Outcome.UNKNOWN
            if not lost or random.random() < 0.5:
                left = operation.after(state)
                assert left is not None
                state = dict(left)
        found.append(operation)
    last = 1 + max(operation.end for operation in found)
    everything = {path: state.get(path) for path in paths}
    found.append(Operation(steps, "end", start=last, end=last + 1, seen=everything))
    found[-1].outcome = Outcome.OK
    return found


def spoilt(operations: Sequence[Operation], random: Random) -> list[Operation] | None:
    """The history with one answer that cannot be; None where it has no place for it."""
    reads = [o for o in operations if any(o.seen.values())]
    if not reads:
        return None
    bad = random.choice(reads)
    path = random.choice([path for path, found in bad.seen.items() if found])
    held = dict(bad.seen[path] or ())
    name = random.choice(sorted(held))
    # A value that no write has: negative for a field, and too many for a counter.
    held[name] = -1 if name != COUNTER else 1_000
    changed = replace(bad, seen=bad.seen | {path: as_fields(held)})
    return [changed if o is bad else o for o in operations]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_what_a_right_store_did_is_explained(seed):
    operations = simulated(seed)
    verdict = check(operations)
    assert verdict.ok, str(verdict)
    # The hints only guide.
    blind = [replace(operation, hint=0.0) for operation in operations]
    assert check(blind).ok


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_an_answer_that_cannot_be_is_found(seed):
    operations = simulated(seed, steps=25)
    changed = spoilt(operations, Random(seed))
    assume(changed is not None)
    assert not check(changed or [], budget=20_000).ok


@pytest.mark.parametrize("seed", range(20))
def test_a_forgotten_acknowledged_write_is_found(seed):
    """All writers of one document; what the last read saw is taken away."""
    random = Random(seed)
    told = Told()
    for number in range(10):
        start = number * 2
        told.write(start, start + 1 + random.random() * 0.9, put(A, number))
    assert told.read(30, 31, a=9).ok
    assert not told.read(32, 33, a=random.randrange(9)).ok
