"""The search: every state a system can reach, breadth first, and the shortest way to a wrong one.

A system is what can happen next in a state, and what must never be. States are immutable and
hashable; the search keeps each once. It knows nothing of stores or protocols.
"""

import gc
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from operator import itemgetter
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """Something that may happen: in words, the state after it, and what was wrong in doing it."""

    name: str
    state: S
    wrong: str | None = None


class System(Protocol[S]):
    def initial(self) -> S: ...

    def steps(self, state: S) -> Iterator[Step[S]]:
        """All that may happen next, each on its own; the order is of no importance."""
        ...

    def wrong(self, state: S) -> str | None:
        """What must not be in any state."""
        ...

    def at_rest(self, state: S) -> str | None:
        """What must not be in a state in which nothing can happen any more."""
        ...


class Verdict(Enum):
    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    CAPPED = "CAPPED"
    """Nothing wrong was found in as many states as were allowed: that proves nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    states: int
    resting: int
    """States at rest among them. A system that never rests has not been judged at rest, either."""
    wrong: str = ""
    trace: tuple[str, ...] = ()
    """The names of the steps that lead there, one of the shortest."""


def search(system: System[S], cap: int = 10_000_000) -> Outcome:
    """Looks at whole levels: a state n steps away is judged before any that is n + 1 away."""
    start = system.initial()
    before: dict[S, S | None] = {start: None}
    level = [start]
    resting = 0
    with _without_collector():
        if wrong := system.wrong(start):
            return Outcome(Verdict.VIOLATED, 1, 0, wrong)
        while level:
            at_rest: list[tuple[str, S]] = []
            on_the_way: list[tuple[str, str, S]] = []
            following: list[S] = []
            for state in level:
                rests = True
                for step in system.steps(state):
                    rests = False
                    new = step.state not in before
                    if new:
                        before[step.state] = state
                        following.append(step.state)
                    if wrong := step.wrong or (system.wrong(step.state) if new else None):
                        on_the_way.append((wrong, step.name, state))
                if rests:
                    resting += 1
                    if wrong := system.at_rest(state):
                        at_rest.append((wrong, state))
            # Of those equally near, the first by its words: sets have no order of their own.
            if at_rest:
                wrong, state = min(at_rest, key=itemgetter(0))
                trace = _trace(system, before, state)
                return Outcome(Verdict.VIOLATED, len(before), resting, wrong, trace)
            if on_the_way:
                wrong, last, state = min(on_the_way, key=itemgetter(0, 1))
                trace = (*_trace(system, before, state), last)
                return Outcome(Verdict.VIOLATED, len(before), resting, wrong, trace)
            if following and len(before) > cap:
                return Outcome(Verdict.CAPPED, len(before), resting)
            level = following
    return Outcome(Verdict.HOLDS, len(before), resting)


def _trace(system: System[S], before: dict[S, S | None], state: S) -> tuple[str, ...]:
    """Taken again from state to state, so that millions of names need not be kept."""
    names: list[str] = []
    while (earlier := before[state]) is not None:
        names.append(next(step.name for step in system.steps(earlier) if step.state == state))
        state = earlier
    return tuple(reversed(names))


@contextmanager
def _without_collector() -> Iterator[None]:
    """States are tuples of tuples, without cycles: looking for some takes most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
