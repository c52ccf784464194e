"""The stores agree, as far as enough comparisons can tell."""

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, judge_verdicts


def check(facts: Facts) -> Answer:
    return judge_verdicts(facts.figures, facts.limits)
