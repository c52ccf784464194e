"""A validation of everything has found the stores equal, and not long ago."""

from dataclasses import dataclass

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, Outcome
from crossfade.stores.postgres.findings import Certificate

NAME = "validated"


def check(facts: Facts) -> Answer:
    found = facts.certificate
    if found is None:
        return Answer(
            NAME, Outcome.HOLD, "no validation has compared everything; run crossfade validate"
        )
    told = f"validation {found.job}, of {found.at:%Y-%m-%d %H:%M} UTC,"
    standard = Standard(facts.epoch, facts.generation, facts.fingerprint, facts.certificate_age)
    if reason := outdated(found, standard):
        return Answer(NAME, Outcome.HOLD, f"{told} {reason}")
    if not found.equal:
        return Answer(NAME, Outcome.FAIL, f"{told} found differences")
    return Answer(NAME, Outcome.PASS, f"{told} found both stores equal")


@dataclass(frozen=True, slots=True)
class Standard:
    """What a certificate has to agree with now; and `age`, seconds that it may be old."""

    epoch: int
    generation: int
    fingerprint: str
    age: float


def outdated(found: Certificate, standard: Standard) -> str:
    """Why what was found says nothing of how the stores are now; empty: it does. Since then the
    shadow reads have gone on comparing, but they do not read everything."""
    if (found.epoch, found.generation) != (standard.epoch, standard.generation):
        return "is from before a change of authority"
    if found.fingerprint != standard.fingerprint:
        return "is of another schema or mapping"
    if found.age > standard.age:
        # Enough digits that what is just over the limit reads so.
        return f"is {found.age / 3_600:.4g} h old; {standard.age / 3_600:.4g} h are allowed"
    return ""
