"""PostgreSQL's slow reads are not much slower than Firestore's."""

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, judge_latency


def check(facts: Facts) -> Answer:
    return judge_latency(facts.figures, facts.limits)
