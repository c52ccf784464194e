"""Everything is in Firestore: after the next stage nothing is written there any more."""

from crossfade.checks.facts import Facts
from crossfade.checks.pending_zero import KEEPS_UP_SECONDS
from crossfade.ramp import Answer, Outcome

NAME = "reverse backlog"


def check(facts: Facts) -> Answer:
    if facts.oldest_seconds <= KEEPS_UP_SECONDS:
        return Answer(
            NAME, Outcome.PASS, f"{facts.pending} documents are on their way to Firestore"
        )
    return Answer(
        NAME,
        Outcome.HOLD,
        f"{facts.pending} documents are not in Firestore, the oldest for "
        f"{facts.oldest_seconds:.1f} s",
    )
