"""A change of authority that several coordinators carry on."""

from typing import Any

from tests.model.authority.state import POSTGRESQL
from tests.model.coordinators import Coordinators
from tests.model.rules import CoordinatorRules
from tests.model.scenarios.scenario import Scenario, off


def _coordinators(
    name: str,
    *without: str,
    wrong: str | None = None,
    steps: int | None = None,
    slow: bool = False,
    **bounds: Any,
) -> Scenario:
    system = Coordinators(rules=CoordinatorRules(**off(without)), **bounds)
    return Scenario(name, system, CoordinatorRules, without, wrong, steps, slow)


COORDINATORS: tuple[Scenario, ...] = (
    _coordinators(
        "C1 the next step set without comparing",
        "step_compares",
        changes=1,
        wrong="two authorities",
        steps=18,
    ),
    _coordinators(
        "C2 an authority opened without comparing",
        "open_compares",
        changes=1,
        wrong="two authorities",
        steps=15,
    ),
    _coordinators(
        "C3 a change given up without comparing",
        "give_up_compares",
        changes=1,
        start=POSTGRESQL,
        wrong="two authorities",
        steps=9,
    ),
    _coordinators(
        "C4 a change ended without comparing",
        "settle_compares",
        wrong="nobody decides",
        steps=13,
    ),
    _coordinators(
        "C5 the document written over whatever is there",
        "document_compares",
        wrong="two authorities",
        steps=20,
    ),
    _coordinators(
        "C6 the document of a later epoch written over",
        "no_later_document",
        wrong="two authorities",
        steps=20,
    ),
    _coordinators(
        "C7 a coordinator that goes on in a later epoch",
        "epoch_of_its_turn",
        wrong="two authorities",
        steps=21,
    ),
    _coordinators(
        "C7a the same, one change: the document is ahead of the row for ever",
        "epoch_of_its_turn",
        changes=1,
        wrong="nobody is served",
        steps=12,
    ),
    _coordinators(
        "C8 leases are not waited for",
        "waits_for_leases",
        changes=1,
        leases=1,
        wrong="stale read",
        steps=11,
    ),
    _coordinators(
        "C9 what is pending is not waited for",
        "waits_for_pending",
        changes=1,
        writes=1,
        wrong="lost",
        steps=11,
    ),
    _coordinators("C10 two coordinators, there and back", writes=1, leases=1),
    _coordinators("C10a back and there", start=POSTGRESQL, writes=1, leases=1),
    _coordinators("C10b three changes, each may be late", changes=3, late=3, slow=True),
    _coordinators("C11 three coordinators", coordinators=3, slow=True),
    _coordinators("C11a three coordinators, and crashes", coordinators=3, crashes=2, slow=True),
    _coordinators(
        "C12 a turn is taken without comparing: slower, and not wrong",
        blind_take_over=True,
        writes=1,
        leases=1,
    ),
    _coordinators(
        "C12a the same, three coordinators",
        blind_take_over=True,
        coordinators=3,
        slow=True,
    ),
)
