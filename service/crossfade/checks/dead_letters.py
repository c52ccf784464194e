"""No document failed so often that nobody tries any more."""

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, Outcome

NAME = "dead letters"


def check(facts: Facts) -> Answer:
    if not facts.dead:
        return Answer(NAME, Outcome.PASS, "no document is a dead letter")
    if facts.dead == 1:
        return Answer(NAME, Outcome.FAIL, "1 document is a dead letter; look at it first")
    return Answer(
        NAME, Outcome.FAIL, f"{facts.dead} documents are dead letters; look at them first"
    )
