"""The mirror keeps up: a barrier waits until nothing is pending, and writes wait for it."""

from crossfade.checks.facts import Facts
from crossfade.ramp import Answer, Outcome

NAME = "pending"
KEEPS_UP_SECONDS = 2.0
"""Under steady writes something is always pending; it must not be old."""


def check(facts: Facts) -> Answer:
    what = "document is" if facts.pending == 1 else "documents are"
    seen = f"{facts.pending} {what} pending, the oldest for {facts.oldest_seconds:.1f} s"
    if not facts.pending:
        return Answer(NAME, Outcome.PASS, "nothing is pending")
    if facts.oldest_seconds <= KEEPS_UP_SECONDS:
        return Answer(NAME, Outcome.PASS, seen)
    return Answer(NAME, Outcome.HOLD, f"{seen}; {KEEPS_UP_SECONDS:g} s are allowed")
