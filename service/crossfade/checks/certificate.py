"""A validation of everything has found the stores equal, and not long ago."""

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, Outcome

NAME = "validated"
MAX_AGE_SECONDS = 86_400.0
"""Since then the shadow reads have gone on comparing; they do not read everything."""


def check(facts: Facts) -> Answer:
    found = facts.certificate
    if found is None:
        return Answer(
            NAME, Outcome.HOLD, "no validation has compared everything; run crossfade validate"
        )
    told = f"validation {found.job}, of {found.at:%Y-%m-%d %H:%M} UTC,"
    if (found.epoch, found.generation) != (facts.epoch, facts.generation):
        return Answer(NAME, Outcome.HOLD, f"{told} is from before a change of authority")
    if found.fingerprint != facts.fingerprint:
        return Answer(NAME, Outcome.HOLD, f"{told} is of another schema or mapping")
    if found.age > MAX_AGE_SECONDS:
        hours = found.age / 3_600
        return Answer(NAME, Outcome.HOLD, f"{told} is {hours:.0f} h old; 24 h are allowed")
    if not found.equal:
        return Answer(NAME, Outcome.FAIL, f"{told} found differences")
    return Answer(NAME, Outcome.PASS, f"{told} found both stores equal")
