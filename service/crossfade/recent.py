"""Trouble that has just begun: what the last seconds show, and those before them hide. Pure.

A minute of good reads hides the first seconds of bad ones, all the more as slow reads are few
reads: callers that wait for one make no other. A hundredth of the window's reads may come
together only after the window is over. So the last seconds are judged by themselves as well,
in parts of a second, as shares with their confidence bounds like everything else. PostgreSQL's
p99 is beyond the limit where surely more than a hundredth of its reads took longer than the
limit: four slow reads of four tell that, and no quantile of four reads tells anything.

Against false alarms: two of the parts have to fail, for one hiccup (a checkpoint, a connection
that was lost) is over within one, unless the slow reads lasted two seconds each; the bounds are
those of a confidence that a look every second does not wear out; and Firestore is taken as the
worse of its window and its last seconds, so that what slows down the sidecar itself is held
against neither store. How often the stores differ is not judged here: a single mismatch among
few comparisons would weigh too much, and the window tells of several at once.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossfade.durations import bound
from crossfade.figures import EVERY, Tally, between, shown, total
from crossfade.ramp import Answer, Calls, Figures, Limits, Outcome, judge_errors, lower_bound

PARTS, FAILING = 5, 2
PART_SECONDS = 0.9
"""A look every second comes a little earlier or later."""
CONFIDENCE = 0.999
SLOWEST = 0.01
"""The share of the reads that a p99 leaves above it."""


class Recent:
    """The sums of the last `seconds`, as they were at every look."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._looks: deque[tuple[float, Mapping[str, Tally]]] = deque()

    def add(self, now: float, sums: Mapping[str, Tally]) -> None:
        looks = self._looks
        looks.append((now, sums))
        while len(looks) > 1 and looks[1][0] <= now - self._seconds:
            looks.popleft()

    def window(self, collection: str) -> Figures:
        """What was counted in all of the time."""
        return shown(
            between(_of(self._looks[-1][1], collection), _of(self._looks[0][1], collection))
        )

    def parts(self, collection: str, since: float = 0.0) -> list[Tally]:
        """What was counted in each of the last seconds, those that began before `since` left out;
        the newest first."""
        found: list[Tally] = []
        end, held = self._looks[-1]
        for at, sums in reversed(self._looks):
            if len(found) == PARTS or at < since:
                break
            if end - at >= PART_SECONDS:
                found.append(between(_of(held, collection), _of(sums, collection)))
                end, held = at, sums
        return found


def judge_recent(parts: Sequence[Tally], whole: Figures, limits: Limits) -> tuple[Answer, ...]:
    """The answers that fail by the last seconds alone. `whole`: the figures of the longer time."""
    lately = shown(total(parts))
    found = (
        _judge_errors(parts, whole.firestore, limits),
        _judge_latency(parts, _slower(whole.firestore, lately.firestore), limits),
    )
    return tuple(each for each in found if each is not None)


def _judge_errors(parts: Sequence[Tally], firestore: Calls, limits: Limits) -> Answer | None:
    strict = replace(limits, confidence=CONFIDENCE)

    def answer(figures: Figures) -> Answer:
        worse = _worse_errors(firestore, figures.firestore)
        return judge_errors(replace(figures, firestore=worse), strict)

    failing = [part for part in parts if answer(shown(part)).outcome is Outcome.FAIL]
    if len(failing) < FAILING:
        return None
    found = answer(shown(total(failing)))
    return replace(found, outcome=Outcome.FAIL, reason=f"{_within(failing)} {found.reason}")


def _judge_latency(parts: Sequence[Tally], firestore: Calls, limits: Limits) -> Answer | None:
    if firestore.count < limits.min_samples or not firestore.p99:
        return None
    allowed = limits.max_p99_ratio * firestore.p99
    failing = [part for part in parts if _surely_slow(part, allowed)]
    # Reads that lasted so long have seen the trouble of more than one part. Where callers wait
    # for a store that hangs, they all come back at once, and then not for a long time.
    lasting = [part for part in failing if _surely_slow(part, max(allowed, float(FAILING)))]
    if len(failing) < FAILING and not lasting:
        return None
    slow, reads = _slow(total(failing), allowed)
    return Answer(
        "p99 ratio",
        Outcome.FAIL,
        f"{_within(failing)} {slow} of {reads} reads of PostgreSQL took longer than "
        f"{limits.max_p99_ratio:g} times Firestore's p99 of {firestore.p99 * 1e3:.1f} ms, "
        f"{100 * SLOWEST:g} % are allowed",
    )


def _surely_slow(part: Tally, seconds: float) -> bool:
    return lower_bound(*_slow(part, seconds), CONFIDENCE) > SLOWEST


def _slow(part: Tally, seconds: float) -> tuple[int, int]:
    """PostgreSQL's reads that surely took longer, those of the buckets wholly above; of all."""
    buckets = part.buckets["postgresql"]
    above = (n for at, n in enumerate(buckets) if n and at and bound(at - 1) >= seconds)
    return sum(above), sum(buckets)


def _within(failing: Sequence[Tally]) -> str:
    return f"within {len(failing)} of the last {PARTS} seconds"


def _worse_errors(one: Calls, other: Calls) -> Calls:
    return max(one, other, key=lambda each: (each.errors / max(each.count, 1), each.count))


def _slower(whole: Calls, lately: Calls) -> Calls:
    """As many reads as in the whole time, with the greater p99."""
    return replace(whole, p99=max(whole.p99 or 0.0, lately.p99 or 0.0))


def _of(sums: Mapping[str, Tally], collection: str) -> Tally:
    return sums.get(collection or EVERY, Tally())
