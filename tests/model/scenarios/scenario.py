"""One scenario: a system with its bounds, and the verdict that it must get."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tests.model.engine import Outcome, System, Verdict, search
from tests.model.rules import AnyRules


@dataclass(frozen=True)
class Scenario:
    name: str
    system: System[Any]
    rules: type[AnyRules]
    without: tuple[str, ...] = ()
    """The rules that are off."""
    wrong: str | None = None
    """How the words of the violation begin; None: the system must hold."""
    steps: int | None = None
    """The length of the shortest trace."""
    slow: bool = False
    """More than a few seconds: left to `make model`."""
    cap: int = 12_000_000

    def run(self) -> Outcome:
        return search(self.system, self.cap)

    def fault(self, outcome: Outcome) -> str | None:
        """What is not as expected. A system that never rests was not judged at rest: no proof."""
        if self.wrong is None:
            if outcome.verdict is not Verdict.HOLDS:
                return f"must hold: {outcome.verdict.value} {outcome.wrong}".rstrip()
            return None if outcome.resting else "must hold, but never comes to rest"
        if outcome.verdict is not Verdict.VIOLATED:
            return f"must be violated ({self.wrong}): {outcome.verdict.value}"
        if not outcome.wrong.startswith(self.wrong):
            return f"must end with '{self.wrong}', not '{outcome.wrong}'"
        if self.steps is not None and len(outcome.trace) != self.steps:
            return f"must be violated in {self.steps} steps, not {len(outcome.trace)}"
        return None


def off(without: Collection[str]) -> dict[str, bool]:
    """For the constructor of a table of rules; an unknown name is refused there."""
    return dict.fromkeys(without, False)
