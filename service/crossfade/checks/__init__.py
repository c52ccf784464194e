"""Checks: what has to hold before a change of stage. One file for each.

Each looks at the same facts and answers pass, hold (not known, or not yet) or fail, in a
sentence with its figures. "No data" holds. A rollback is held by none of them: whoever
leaves a store must not wait until that store is well.
"""

from collections.abc import Callable
from itertools import pairwise

from crossfade.checks import (
    backfill_complete,
    certificate,
    dead_letters,
    error_rates,
    p99_ratio,
    pending_zero,
    reverse_backlog_zero,
    verdicts,
)
from crossfade.checks.facts import Facts
from crossfade.plan import Stage
from crossfade.ramp import Answer

Check = Callable[[Facts], Answer]

_COMPARED: tuple[Check, ...] = (verdicts.check, error_rates.check, p99_ratio.check)

# For each step forward; going several stages at once takes the checks of all of them.
STEPS: dict[tuple[Stage, Stage], tuple[Check, ...]] = {
    (Stage.OFF, Stage.DUAL_WRITE): (),
    (Stage.DUAL_WRITE, Stage.SHADOW): (backfill_complete.check,),
    (Stage.SHADOW, Stage.LIVE): (
        backfill_complete.check,
        dead_letters.check,
        pending_zero.check,
        *_COMPARED,
        certificate.check,
    ),
    (Stage.LIVE, Stage.RAMP_DOWN): (dead_letters.check, *_COMPARED),
    (Stage.RAMP_DOWN, Stage.COMPLETE): (dead_letters.check, reverse_backlog_zero.check),
}


def checks_of(before: Stage, target: Stage) -> tuple[Check, ...]:
    """Those of a change; none for a way back."""
    stages = list(Stage)
    way = stages[stages.index(before) : stages.index(target) + 1]
    return tuple(dict.fromkeys(check for step in pairwise(way) for check in STEPS[step]))


def run_checks(before: Stage, target: Stage, facts: Facts) -> tuple[Answer, ...]:
    return tuple(check(facts) for check in checks_of(before, target))
