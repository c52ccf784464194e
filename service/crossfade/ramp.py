"""Whether reads may move on to PostgreSQL: the statistics, and the steps of a ramp. Pure.

Three figures are judged, each with a sentence that says why: how often the stores
differ, how much more often PostgreSQL fails than Firestore, how much slower its slow
reads are. The first two are shares of samples, so not the share that was seen is
compared with the limit, but the bound that the true share does not pass with the wanted
confidence (Clopper and Pearson's, which is never too narrow). Between "surely below"
and "surely above" lies "not known yet", and then nothing moves.

The bounds take samples to be independent. Reads of one hot document are not; a shadow
rate below 1 spreads them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import exp, lgamma, log, log1p, sqrt

MAX_SETBACKS = 3
"""A ramp that had to step back so often waits for a person."""


class Outcome(StrEnum):
    PASS = "pass"  # noqa: S105 - no password
    HOLD = "hold"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one check says. `reason` is a sentence with the figures."""

    name: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_mismatch` and `max_error_delta` are shares (0..1), `max_p99_ratio` is PostgreSQL's p99
    over Firestore's. Below `min_samples` nothing is decided for the better."""

    max_mismatch: float = 0.0001
    max_error_delta: float = 0.001
    max_p99_ratio: float = 1.5
    min_samples: int = 1_000
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Calls:
    """A store's reads. `p99` in seconds; None without one."""

    count: int = 0
    errors: int = 0
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen since a step began: comparisons and the bad ones among them, and the
    reads of both stores, the shadow reads with them."""

    compared: int = 0
    bad: int = 0
    firestore: Calls = Calls()
    postgresql: Calls = Calls()


# --- confidence bounds -------------------------------------------------------------------------


def upper_bound(hits: int, trials: int, confidence: float) -> float:
    """The share that the true one exceeds with no more than 1 - confidence. 1 without trials."""
    if hits >= trials:
        return 1.0
    allowed = 1 - confidence
    return _crossing(lambda share: _at_most(hits, trials, share) > allowed, hits / trials, 1.0)


def lower_bound(hits: int, trials: int, confidence: float) -> float:
    """The share that the true one is below with no more than 1 - confidence. 0 without trials."""
    return 1 - upper_bound(trials - hits, trials, confidence)


def difference_bounds(
    hits: int, trials: int, base_hits: int, base_trials: int, confidence: float
) -> tuple[float, float]:
    """Bounds of how much the first share exceeds the second (Newcombe's way of joining the
    bounds of each). (-1, 1) where one has no trials."""
    if not trials or not base_trials:
        return -1.0, 1.0
    share, base = hits / trials, base_hits / base_trials
    low, high = (bound(hits, trials, confidence) for bound in (lower_bound, upper_bound))
    base_low, base_high = (
        bound(base_hits, base_trials, confidence) for bound in (lower_bound, upper_bound)
    )
    return (
        share - base - sqrt((share - low) ** 2 + (base_high - base) ** 2),
        share - base + sqrt((high - share) ** 2 + (base - base_low) ** 2),
    )


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where a falling condition ends to hold, to the last bit but a few."""
    for _ in range(60):
        middle = (low + high) / 2
        if above(middle):
            low = middle
        else:
            high = middle
    return high


def _at_most(hits: int, trials: int, share: float) -> float:
    """The probability of at most so many hits (hits < trials, 0 < share < 1)."""
    # The terms fall on both sides of the mean: summed away from it they soon are nothing.
    if hits < trials * share:
        return _run(hits, -1, trials, share)
    return 1 - _run(hits + 1, 1, trials, share)


def _run(hits: int, step: int, trials: int, share: float) -> float:
    """The probabilities of `hits`, `hits + step`, ... together."""
    term = exp(
        lgamma(trials + 1)
        - lgamma(hits + 1)
        - lgamma(trials - hits + 1)
        + hits * log(share)
        + (trials - hits) * log1p(-share)
    )
    odds, total = share / (1 - share), 0.0
    while 0 <= hits <= trials and term > total * 1e-17:
        total += term
        if step < 0:
            term *= hits / ((trials - hits + 1) * odds)
        else:
            term *= (trials - hits) * odds / (hits + 1)
        hits += step
    return total


# --- the three judgements ----------------------------------------------------------------------


def judge(figures: Figures, limits: Limits) -> tuple[Answer, ...]:
    return (
        judge_verdicts(figures, limits),
        judge_errors(figures, limits),
        judge_latency(figures, limits),
    )


def judge_verdicts(figures: Figures, limits: Limits) -> Answer:
    """How often the stores differ."""
    name, seen = "verdicts", f"{figures.bad} of {figures.compared} comparisons were bad"
    allowed = limits.max_mismatch
    if not figures.compared:
        return Answer(name, Outcome.HOLD, "nothing was compared")
    low = lower_bound(figures.bad, figures.compared, limits.confidence)
    high = upper_bound(figures.bad, figures.compared, limits.confidence)
    sure = f"{limits.confidence:.0%} sure"
    if low > allowed:
        return Answer(
            name,
            Outcome.FAIL,
            f"{seen}: at least {_share(low)} ({sure}), {_share(allowed)} allowed",
        )
    if figures.compared < limits.min_samples:
        return Answer(name, Outcome.HOLD, f"{seen}; {limits.min_samples} are needed")
    if high > allowed:
        return Answer(
            name, Outcome.HOLD, f"{seen}: up to {_share(high)} ({sure}), {_share(allowed)} allowed"
        )
    return Answer(
        name, Outcome.PASS, f"{seen}: at most {_share(high)} ({sure}), {_share(allowed)} allowed"
    )


def judge_errors(figures: Figures, limits: Limits) -> Answer:
    """How much more often PostgreSQL's reads fail than Firestore's."""
    ours, theirs, name = figures.postgresql, figures.firestore, "error rates"
    seen = (
        f"{ours.errors} of {ours.count} reads of PostgreSQL failed, {theirs.errors} of "
        f"{theirs.count} of Firestore"
    )
    low, high = difference_bounds(
        ours.errors, ours.count, theirs.errors, theirs.count, limits.confidence
    )
    allowed = limits.max_error_delta
    if low > allowed:
        return Answer(
            name, Outcome.FAIL, f"{seen}: {_share(low)} more at least, {_share(allowed)} allowed"
        )
    if min(ours.count, theirs.count) < limits.min_samples:
        return Answer(name, Outcome.HOLD, f"{seen}; {limits.min_samples} of each are needed")
    if high > allowed:
        return Answer(
            name, Outcome.HOLD, f"{seen}: up to {_share(high)} more, {_share(allowed)} allowed"
        )
    return Answer(
        name,
        Outcome.PASS,
        f"{seen}: {_share(max(high, 0.0))} more at most, {_share(allowed)} allowed",
    )


def judge_latency(figures: Figures, limits: Limits) -> Answer:
    """How much slower PostgreSQL's slowest hundredth is."""
    ours, theirs, name = figures.postgresql, figures.firestore, "p99 ratio"
    if min(ours.count, theirs.count) < limits.min_samples or not ours.p99 or not theirs.p99:
        return Answer(
            name,
            Outcome.HOLD,
            f"{ours.count} reads of PostgreSQL and {theirs.count} of Firestore; "
            f"{limits.min_samples} of each are needed",
        )
    ratio = ours.p99 / theirs.p99
    seen = (
        f"p99 is {ours.p99 * 1e3:.1f} ms in PostgreSQL and {theirs.p99 * 1e3:.1f} ms in Firestore: "
        f"{ratio:.2f} times, {limits.max_p99_ratio:g} allowed"
    )
    return Answer(name, Outcome.PASS if ratio <= limits.max_p99_ratio else Outcome.FAIL, seen)


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


def overall(answers: Iterable[Answer]) -> Outcome:
    """Fail if one fails, else hold if one holds."""
    outcomes = {answer.outcome for answer in answers}
    return next((each for each in (Outcome.FAIL, Outcome.HOLD) if each in outcomes), Outcome.PASS)


# --- the steps ---------------------------------------------------------------------------------


class Status(StrEnum):
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """It stepped back too often, or an operator stopped it."""


class Verb(StrEnum):
    HOLD = "hold"
    ADVANCE = "advance"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Plan:
    """Percents, rising, in 0..100 (0 not among them), and the seconds that each is looked at
    before the next. Raises ValueError, with a sentence, for what is none.

    `settle`: seconds after a move before anything is counted. Reads that were begun before
    it end after it, and the slow ones last: they would be taken for those of the new percent,
    so that one trouble would cost several steps.
    """

    steps: tuple[float, ...] = (1.0, 5.0, 25.0, 50.0, 100.0)
    bake: float = 600.0
    settle: float = 6.0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("steps: at least one percent is needed")
        if any(not 0 < step <= 100 for step in self.steps):
            raise ValueError("steps: percents are above 0 and at most 100")
        if any(one >= other for one, other in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("steps: each percent is greater than the one before")
        if not self.bake >= 0:
            raise ValueError("bake: it is not negative")


@dataclass(frozen=True, slots=True)
class State:
    """Where a ramp stands. `step`: index in the plan's steps, -1 before the first (0 percent).
    `since`: seconds since 1970 when it came there. `settled`: what is counted is of this percent
    alone. `setbacks`: how often it had to go back."""

    step: int = -1
    since: float = 0.0
    settled: bool = False
    setbacks: int = 0
    status: Status = Status.RUNNING

    def percent(self, plan: Plan) -> float:
        return 0.0 if self.step < 0 else plan.steps[self.step]


@dataclass(frozen=True, slots=True)
class Move:
    """What to do now, and the sentence why."""

    verb: Verb
    state: State
    reason: str


def advance(
    plan: Plan, state: State, figures: Figures, now: float, recent: tuple[Answer, ...] = ()
) -> Move:
    """The next move. `figures` are those since the ramp has settled at its present percent, before
    that those since it had at the former: where the move's state is settled for the first time,
    counting begins. `recent`: what fails by the last seconds of that time alone.

    One step forward at most, after the bake and when every judgement passes. Back at once
    when one fails: to the step before, or, where the data differ, to 0: wrong data are no
    matter of how many see them. At 0 it holds instead, and counts anew.
    """
    if state.status is not Status.RUNNING:
        return Move(Verb.HOLD, state, f"the ramp is {state.status}")
    if not state.settled:
        # Whenever a read was begun, what it found wrong is wrong now, and may be mended (and
        # never be heard of again) before counting begins.
        wrong = judge_verdicts(figures, plan.limits)
        if wrong.outcome is Outcome.FAIL and state.step >= 0:
            return _back(state, [wrong], now)
        if now - state.since < plan.settle:
            return Move(Verb.HOLD, state, "reads that were begun before are still under way")
        return Move(Verb.HOLD, replace(state, settled=True), "counting begins")
    answers = with_recent(judge(figures, plan.limits), recent)
    failed = [answer for answer in answers if answer.outcome is Outcome.FAIL]
    if failed and state.step < 0:
        # There is nothing to take back: it is looked at anew until it is well.
        why = "; ".join(f"{each.name}: {each.reason}" for each in failed)
        return Move(Verb.HOLD, replace(state, since=now, settled=False), f"not begun: {why}")
    if failed:
        return _back(state, failed, now)
    left = plan.bake - (now - state.since)
    if left > 0:
        return Move(Verb.HOLD, state, f"{state.percent(plan):g} % bakes for another {left:.0f} s")
    held = [answer for answer in answers if answer.outcome is Outcome.HOLD]
    if held:
        return Move(Verb.HOLD, state, "; ".join(f"{each.name}: {each.reason}" for each in held))
    why = "; ".join(answer.reason for answer in answers)
    if state.step == len(plan.steps) - 1:
        return Move(Verb.HOLD, replace(state, status=Status.DONE), f"done: {why}")
    return Move(Verb.ADVANCE, State(state.step + 1, now, setbacks=state.setbacks), why)


def _back(state: State, failed: list[Answer], now: float) -> Move:
    why = "; ".join(f"{each.name}: {each.reason}" for each in failed)
    differ = any(each.name == "verdicts" for each in failed)
    step = -1 if differ else max(state.step - 1, -1)
    setbacks = state.setbacks + 1
    moved = State(step, now, setbacks=setbacks)
    if setbacks >= MAX_SETBACKS:
        moved = replace(moved, step=-1, status=Status.STOPPED)
        why += f"; that was the setback number {setbacks}, so the ramp stops"
    return Move(Verb.BACK, moved, why)


def with_recent(answers: tuple[Answer, ...], recent: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """The answers, with those in the place of their namesakes that fail by the last seconds."""
    by_name = {each.name: each for each in recent}
    return tuple(
        each if each.outcome is Outcome.FAIL else by_name.get(each.name, each) for each in answers
    )


def breach(answers: Iterable[Answer]) -> str | None:
    """For the guard: why the percent has to go to 0 now; None: it need not."""
    failed = [each for each in answers if each.outcome is Outcome.FAIL]
    return "; ".join(f"{each.name}: {each.reason}" for each in failed) or None
