"""The first copy has ended, so the mirror holds everything."""

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, Outcome

NAME = "backfill complete"


def check(facts: Facts) -> Answer:
    if facts.copied:
        return Answer(NAME, Outcome.PASS, "the first copy has ended")
    return Answer(NAME, Outcome.HOLD, "the first copy has not ended; run the copy")
