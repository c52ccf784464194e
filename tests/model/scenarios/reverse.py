"""The reverse put. R1 to R3a take the rules away as the design grew, R6 those that are left."""

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
        "R1 nothing but the claim",
        "precondition",
        "remember_attempt",
        "revoke_former",
        operations=("set", "set"),
        wrong="lost",
        steps=12,
    ),
    _reverse(
        "R2 attempts not written down, a crash before remembering",
        "remember_attempt",
        operations=("set", "set"),
        wrong="false alarm",
        steps=13,
    ),
    _reverse("R2a attempts written down before they are sent", operations=("set", "set")),
    _reverse(
        "R3 created and deleted: absence has no update_time",
        "revoke_former",
        exists=False,
        operations=("set", "delete"),
        wrong="resurrected",
        steps=12,
    ),
    _reverse("R3a former attempts revoked", exists=False, crashes=2, operations=("set", "delete")),
    _reverse("R4 complete", crashes=2, operations=("set", "delete", "set")),
    _reverse(
        "R4a complete, three workers",
        workers=3,
        crashes=2,
        claims=6,
        intents=7,
        operations=("set", "delete", "set"),
        slow=True,
    ),
    _reverse(
        "R4b complete, three workers, created and deleted",
        workers=3,
        crashes=3,
        exists=False,
        operations=("set", "delete"),
        slow=True,
    ),
    _reverse(
        "R5 complete, and somebody writes around the sidecar",
        foreign=1,
        crashes=2,
        operations=("set", "set"),
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
        "R6 minus the check to be the claimant still",
        "still_claimant",
        operations=("set", "set"),
        wrong="wrong peer",
        steps=15,
    ),
    _reverse(
        "R6 minus deleting only the own rows",
        "own_rows_only",
        operations=("set", "set"),
        wrong="lost",
        steps=7,
    ),
)
