"""PostgreSQL's reads fail no more often than Firestore's."""

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, judge_errors


def check(facts: Facts) -> Answer:
    return judge_errors(facts.figures, facts.limits)
