"""The search itself, on systems small enough to know every answer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from tests.model.engine import Outcome, Step, Verdict, search
from tests.model.rules import TombstoneRules
from tests.model.scenarios.scenario import Scenario


class Counter(NamedTuple):
    value: int = 0
    read: tuple[int | None, int | None] = (None, None)
    done: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Increments:
    """Two processes read a counter and write it back, one more; with a lock, one at a time."""

    lock: bool

    def initial(self) -> Counter:
        return Counter()

    def steps(self, state: Counter) -> Iterator[Step[Counter]]:
        for i in range(2):
            if state.done[i]:
                continue
            value = state.read[i]
            if value is not None:
                done = state._replace(value=value + 1, read=_with(state.read, i, None))
                yield Step(f"{i} writes", done._replace(done=_with(state.done, i, True)))
            elif not (self.lock and state.read[1 - i] is not None):
                yield Step(f"{i} reads", state._replace(read=_with(state.read, i, state.value)))

    def wrong(self, state: Counter) -> str | None:
        return None

    def at_rest(self, state: Counter) -> str | None:
        return None if state.value == 2 else f"lost: {state.value}"


def _with(pair, place, value):
    return (value, pair[1]) if place == 0 else (pair[0], value)


@dataclass(frozen=True)
class Graph:
    """Named states and the steps between them; what is wrong in a state, a step, or at rest."""

    ways: dict[str, str]
    states: dict[str, str] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    resting: dict[str, str] = field(default_factory=dict)

    def initial(self) -> str:
        return "a"

    def steps(self, state: str) -> Iterator[Step[str]]:
        for to in self.ways.get(state, ""):
            yield Step(f"{state}{to}", to, self.taken.get(f"{state}{to}"))

    def wrong(self, state: str) -> str | None:
        return self.states.get(state)

    def at_rest(self, state: str) -> str | None:
        return self.resting.get(state)


def test_a_lost_update_is_caught_by_the_shortest_trace():
    outcome = search(Increments(lock=False))
    assert outcome.verdict is Verdict.VIOLATED
    assert outcome.wrong == "lost: 1"
    assert len(outcome.trace) == 4
    assert set(outcome.trace[:2]) == {"0 reads", "1 reads"}


def test_with_a_lock_every_state_is_looked_at_and_none_is_wrong():
    assert search(Increments(lock=True)) == Outcome(Verdict.HOLDS, states=8, resting=1)


def test_a_first_state_may_be_wrong():
    assert search(Graph({}, states={"a": "bad"})).wrong == "bad"


def test_a_state_that_must_not_be_ends_the_trace_that_reaches_it():
    outcome = search(Graph({"a": "b", "b": "c"}, states={"c": "bad"}))
    assert (outcome.wrong, outcome.trace) == ("bad", ("ab", "bc"))


def test_a_step_may_be_wrong_that_leads_to_a_state_known_before():
    outcome = search(Graph({"a": "b", "b": "a"}, taken={"ba": "bad"}))
    assert (outcome.wrong, outcome.trace) == ("bad", ("ab", "ba"))


def test_a_state_wrong_at_rest_is_nearer_than_a_step_from_the_same_distance():
    """The step is met first, and would make the trace one longer."""
    graph = Graph({"a": "bc", "b": "d"}, taken={"bd": "step"}, resting={"c": "rest"})
    outcome = search(graph)
    assert (outcome.wrong, outcome.trace) == ("rest", ("ac",))


def test_of_equally_near_violations_the_first_by_its_words_is_told():
    for order in ("bc", "cb"):
        outcome = search(Graph({"a": order}, states={"b": "two", "c": "one"}))
        assert (outcome.wrong, outcome.trace) == ("one", ("ac",))


def test_too_many_states_are_no_proof_and_reported_so():
    endless = {chr(n): chr(n + 1) for n in range(ord("a"), 5000)}
    outcome = search(Graph(endless), cap=100)
    assert outcome.verdict is Verdict.CAPPED
    assert outcome.states == 101


def test_a_violation_within_the_cap_is_found():
    endless = {chr(n): chr(n + 1) for n in range(ord("a"), 5000)}
    outcome = search(Graph(endless, states={chr(ord("a") + 90): "bad"}), cap=100)
    assert outcome.verdict is Verdict.VIOLATED
    assert len(outcome.trace) == 90


@pytest.mark.parametrize(
    ("graph", "wrong", "fault"),
    [
        (Graph({"a": "b"}), None, None),
        (Graph({"a": "b"}, states={"b": "lost"}), None, "must hold: VIOLATED lost"),
        (Graph({"a": "b", "b": "a"}), None, "must hold, but never comes to rest"),
        (Graph({"a": "b", "b": "c", "c": "d"}), None, "must hold: CAPPED"),
        (Graph({"a": "b"}, states={"b": "lost: x"}), "lost", None),
        (Graph({"a": "b"}), "lost", "must be violated (lost): HOLDS"),
        (Graph({"a": "b"}, states={"b": "stale"}), "lost", "must end with 'lost', not 'stale'"),
        (
            Graph({"a": "b", "b": "c"}, states={"c": "lost"}),
            "lost",
            "must be violated in 1 steps, not 2",
        ),
    ],
)
def test_a_scenario_says_what_is_not_as_expected(graph, wrong, fault):
    scenario = Scenario("toy", graph, TombstoneRules, (), wrong, steps=1, cap=2)
    assert scenario.fault(scenario.run()) == fault
