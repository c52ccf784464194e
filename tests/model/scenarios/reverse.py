"""The reverse put. R1 to R3a take the rules away one after the other, as the design grew."""

from typing import Any

from tests.model.reverse import Reverse
from tests.model.rules import ReverseRules
from tests.model.scenarios.scenario import Scenario, off


def _reverse(
    name: str,
    *without: str,
    wrong: str | None = None,
    steps: int | None = None,
    slow: bool = False,
    **bounds: Any,
) -> Scenario:
    system = Reverse(rules=ReverseRules(**off(without)), **bounds)
    return Scenario(name, system, ReverseRules, without, wrong, steps, slow)


REVERSE: tuple[Scenario, ...] = (
    _reverse(
        "R1 lock only, the session is lost",
        "precondition",
        "remember_attempt",
        "fence_per_claim",
        advisory_lock=True,
        operations=("set", "set"),
        wrong="lost",
        steps=12,
    ),
    _reverse(
        "R2 lock and precondition, crash before remembering",
        "remember_attempt",
        "fence_per_claim",
        advisory_lock=True,
        operations=("set", "set"),
        wrong="false alarm",
        steps=12,
    ),
    _reverse(
        "R2a attempts remembered before the write",
        "fence_per_claim",
        advisory_lock=True,
        operations=("set", "set"),
    ),
    _reverse(
        "R3 created and deleted: absence has no update_time",
        "fence_per_claim",
        advisory_lock=True,
        exists=False,
        operations=("set", "delete"),
        wrong="resurrected",
        steps=12,
    ),
    _reverse(
        "R3a a fence per claim",
        advisory_lock=True,
        exists=False,
        crashes=2,
        operations=("set", "delete"),
    ),
    _reverse(
        "R4 complete, with the lock",
        advisory_lock=True,
        exists=False,
        crashes=2,
        operations=("set", "delete", "set"),
    ),
    _reverse("R4a complete, without it", crashes=2, operations=("set", "delete", "set"), slow=True),
    _reverse("R4b complete, without it, two operations", operations=("set", "delete")),
    _reverse(
        "R5 complete, and somebody writes around the sidecar",
        foreign=1,
        operations=("set", "set"),
        slow=True,
    ),
    _reverse("R5a the same, one operation", foreign=1, operations=("set",)),
    _reverse(
        "R6 minus the precondition",
        "precondition",
        foreign=1,
        operations=("set",),
        wrong="overwritten",
        steps=7,
    ),
    _reverse(
        "R6 minus the remembered attempt",
        "remember_attempt",
        operations=("set", "set"),
        wrong="false alarm",
        steps=9,
    ),
    _reverse(
        "R6 minus the fence per claim",
        "fence_per_claim",
        exists=False,
        operations=("set", "delete"),
        wrong="false alarm",
        steps=12,
    ),
    _reverse(
        "R6 minus the check to be the claimant still",
        "still_claimant",
        operations=("set", "set"),
        wrong="false alarm",
        steps=7,
    ),
    _reverse(
        "R6 minus deleting only the rows seen",
        "rows_seen_only",
        operations=("set", "set"),
        wrong="lost",
        steps=7,
    ),
)
