"""The ramp's statistics and its steps."""

from dataclasses import replace
from math import comb
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossfade.plan import Stage, StoreName, decide, plan
from crossfade.ramp import (
    MAX_SETBACKS,
    Answer,
    Calls,
    Figures,
    Limits,
    Outcome,
    Plan,
    State,
    Status,
    Verb,
    advance,
    breach,
    difference_bounds,
    judge,
    judge_errors,
    judge_latency,
    judge_verdicts,
    lower_bound,
    overall,
    upper_bound,
)

# --- confidence bounds -------------------------------------------------------------------------

CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.99, 0.999])


@st.composite
def trials(draw: st.DrawFn, most: int = 5_000) -> tuple[int, int]:
    count = draw(st.integers(1, most))
    return draw(st.integers(0, count)), count


def at_most(hits: int, count: int, share: float) -> float:
    """Term by term, for small numbers."""
    return sum(comb(count, i) * share**i * (1 - share) ** (count - i) for i in range(hits + 1))


@given(trials(60), CONFIDENCES)
def test_the_bound_is_where_the_seen_becomes_too_unlikely(pair, confidence):
    hits, count = pair
    bound = upper_bound(hits, count, confidence)
    if hits < count:
        assert at_most(hits, count, bound) == pytest.approx(1 - confidence, rel=1e-6)
    else:
        assert bound == 1


@given(st.integers(1, 1_000_000), CONFIDENCES)
def test_without_a_hit_the_bound_has_a_closed_form(count, confidence):
    expected = 1 - (1 - confidence) ** (1 / count)
    assert upper_bound(0, count, confidence) == pytest.approx(expected, rel=1e-6)
    assert lower_bound(0, count, confidence) == 0


@given(trials(1_000_000), CONFIDENCES)
def test_the_bounds_hold_the_share_that_was_seen(pair, confidence):
    hits, count = pair
    low, high = lower_bound(hits, count, confidence), upper_bound(hits, count, confidence)
    assert 0 <= low <= hits / count <= high <= 1


@given(trials(), st.integers(1, 100), CONFIDENCES)
def test_more_hits_raise_the_bound_and_more_trials_narrow_it(pair, more, confidence):
    hits, count = pair
    assert upper_bound(min(hits + more, count), count, confidence) >= upper_bound(
        hits, count, confidence
    )
    assert upper_bound(hits, count + more, confidence) <= upper_bound(hits, count, confidence)


@given(trials())
def test_more_confidence_is_a_wider_interval(pair):
    hits, count = pair
    bounds = [upper_bound(hits, count, confidence) for confidence in (0.8, 0.95, 0.999)]
    assert bounds == sorted(bounds)


@given(trials(), trials(), CONFIDENCES)
def test_a_difference_lies_within_its_bounds_and_turns_its_sign(one, other, confidence):
    (hits, count), (base, total) = one, other
    low, high = difference_bounds(hits, count, base, total, confidence)
    assert low - 1e-9 <= hits / count - base / total <= high + 1e-9
    back_low, back_high = difference_bounds(base, total, hits, count, confidence)
    assert back_low == pytest.approx(-high)
    assert back_high == pytest.approx(-low)


def test_without_data_nothing_is_known():
    assert difference_bounds(0, 0, 0, 10, 0.95) == (-1, 1)
    assert (lower_bound(0, 0, 0.95), upper_bound(0, 0, 0.95)) == (0, 1)


# --- judgements --------------------------------------------------------------------------------

LIMITS = Limits()
CALM = Calls(50_000, 5, 0.010)
GOOD = Figures(50_000, 0, CALM, replace(CALM, p99=0.012))


@pytest.mark.parametrize(
    ("compared", "bad", "outcome"),
    [
        (0, 0, "hold"),
        (500, 0, "hold"),  # too few
        (5_000, 0, "hold"),  # none bad, but 0.01 % cannot be told from 0.05 % yet
        (29_000, 0, "hold"),
        (31_000, 0, "pass"),
        (31_000, 1, "hold"),
        (50_000, 1, "pass"),
        (1_000, 1, "hold"),  # one may be chance
        (100, 1, "fail"),  # and this is none, few as they are
        (100_000, 40, "fail"),
    ],
)
def test_verdicts_are_judged_by_their_bounds(compared, bad, outcome):
    assert judge_verdicts(Figures(compared, bad), LIMITS).outcome == outcome


@pytest.mark.parametrize(
    ("postgresql", "firestore", "outcome"),
    [
        (Calls(0), Calls(0), "hold"),
        (Calls(100), Calls(10_000), "hold"),
        (Calls(20_000, 2), Calls(20_000, 2), "pass"),
        (Calls(2_000, 0), Calls(2_000, 0), "hold"),
        (Calls(20_000, 100), Calls(20_000, 2), "fail"),
        (Calls(20_000, 100), Calls(20_000, 100), "hold"),
        (Calls(20_000, 2), Calls(20_000, 400), "pass"),
        (Calls(50, 25), Calls(10_000, 0), "fail"),
    ],
)
def test_error_rates_are_judged_by_their_difference(postgresql, firestore, outcome):
    figures = Figures(firestore=firestore, postgresql=postgresql)
    assert judge_errors(figures, LIMITS).outcome == outcome


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (Calls(2_000, 0, 0.015), Calls(2_000, 0, 0.010), "pass"),
        (Calls(2_000, 0, 0.016), Calls(2_000, 0, 0.010), "fail"),
        (Calls(999, 0, 0.016), Calls(2_000, 0, 0.010), "hold"),
        (Calls(2_000, 0, None), Calls(2_000, 0, 0.010), "hold"),
    ],
)
def test_latencies_are_judged_by_their_ratio(ours, theirs, outcome):
    figures = Figures(firestore=theirs, postgresql=ours)
    assert judge_latency(figures, LIMITS).outcome == outcome


def test_every_answer_says_why_in_figures():
    reasons = {each.name: each.reason for each in judge(GOOD, LIMITS)}
    assert reasons["verdicts"].startswith("0 of 50000 comparisons were bad: at most 0.00599 %")
    assert "5 of 50000 reads of PostgreSQL failed" in reasons["error rates"]
    assert reasons["p99 ratio"].endswith("1.20 times, 1.5 allowed")
    assert overall(judge(GOOD, LIMITS)) is Outcome.PASS


COUNTS = st.integers(0, 60_000)


@st.composite
def figures(draw: st.DrawFn) -> Figures:
    def calls() -> Calls:
        count = draw(COUNTS)
        p99 = draw(st.sampled_from([0.01, 0.012, 0.1])) if count else None
        return Calls(count, draw(st.integers(0, min(count, 200))), p99)

    compared = draw(COUNTS)
    return Figures(compared, draw(st.integers(0, min(compared, 50))), calls(), calls())


ORDER = [Outcome.PASS, Outcome.HOLD, Outcome.FAIL]


@given(figures(), st.integers(1, 50))
def test_more_mismatches_never_look_better(seen, more):
    worse = replace(seen, bad=min(seen.bad + more, seen.compared))
    before, after = (judge_verdicts(each, LIMITS).outcome for each in (seen, worse))
    assert ORDER.index(after) >= ORDER.index(before)


# --- the steps ---------------------------------------------------------------------------------

PLAN = Plan(steps=(1.0, 25.0, 100.0), bake=60.0, settle=5.0)


def test_a_ramp_without_trouble_goes_up_step_by_step_and_is_done():
    state, now, percents = State(since=0.0), 0.0, []
    for _ in range(100):
        move = advance(PLAN, state, GOOD, now)
        state, now = move.state, now + 20.0
        percents.append(state.percent(PLAN))
        if state.status is Status.DONE:
            break
    assert sorted(set(percents)) == [0, 1, 25, 100]
    assert percents == sorted(percents)
    assert state.status is Status.DONE
    assert advance(PLAN, state, Figures(100, 100), now).verb is Verb.HOLD
    assert now >= 4 * 60


@pytest.mark.parametrize(
    ("seen", "percent", "words"),
    [
        (replace(GOOD, bad=500), 0, "verdicts: 500 of 50000"),
        (replace(GOOD, postgresql=Calls(20_000, 2_000, 0.01)), 1, "error rates: 2000 of 20000"),
        (replace(GOOD, postgresql=Calls(20_000, 0, 0.1)), 1, "p99 ratio"),
    ],
)
def test_a_failure_steps_back_at_once_and_says_why(seen, percent, words):
    at_25 = State(step=1, since=100.0, settled=True)
    move = advance(PLAN, at_25, seen, 101.0)
    assert (move.verb, move.state.percent(PLAN)) == (Verb.BACK, percent)
    assert words in move.reason
    assert move.state.status is Status.RUNNING
    # And when the trouble is over it goes on from there.
    counting = advance(PLAN, move.state, seen, 107.0)
    assert (counting.verb, counting.state.settled) == (Verb.HOLD, True)
    resumed = advance(PLAN, counting.state, GOOD, 162.0)
    assert (resumed.verb, resumed.state.step) == (Verb.ADVANCE, move.state.step + 1)


def test_wrong_data_take_it_back_before_it_has_settled():
    wrong = replace(GOOD, bad=500)
    move = advance(PLAN, State(step=2, since=100.0), wrong, 100.5)
    assert (move.verb, move.state.step, move.state.settled) == (Verb.BACK, -1, False)
    # There is nothing more to take back, and what was counted is told but once.
    again = advance(PLAN, move.state, wrong, 101.5)
    assert (again.verb, again.state) == (Verb.HOLD, move.state)


def test_what_fails_by_the_last_seconds_alone_takes_it_back_once_it_has_settled():
    late = Answer("p99 ratio", Outcome.FAIL, "4 of 4 were slow")
    at_25 = State(step=1, since=100.0, settled=True)
    move = advance(PLAN, at_25, GOOD, 101.0, (late,))
    assert (move.verb, move.state.step) == (Verb.BACK, 0)
    assert move.reason == "p99 ratio: 4 of 4 were slow"
    unsettled = replace(at_25, settled=False)
    assert advance(PLAN, unsettled, GOOD, 101.0, (late,)).state == unsettled


def test_a_ramp_that_fails_again_and_again_stops_at_nothing():
    state = State(step=1)
    for number in range(MAX_SETBACKS):
        at_25 = replace(state, step=1, settled=True)
        move = advance(PLAN, at_25, replace(GOOD, bad=500), float(number))
        state = move.state
    assert (state.status, state.percent(PLAN)) == (Status.STOPPED, 0)
    assert "the ramp stops" in move.reason
    assert advance(PLAN, state, GOOD, 1e9).verb is Verb.HOLD


def test_at_nothing_a_failure_holds_and_counting_begins_anew():
    bad = replace(GOOD, bad=500)
    state = State(step=-1, since=0.0, settled=True, setbacks=1)
    held = advance(PLAN, state, bad, 50.0)
    assert held.verb is Verb.HOLD
    assert held.reason.startswith("not begun: verdicts: 500")
    assert held.state == State(step=-1, since=50.0, settled=False, setbacks=1)
    again = advance(PLAN, held.state, bad, 50.0 + PLAN.settle)
    assert (again.state.settled, again.reason) == (True, "counting begins")
    later = 50.0 + PLAN.settle + PLAN.bake
    assert advance(PLAN, again.state, GOOD, later).verb is Verb.ADVANCE


def test_thin_data_hold_however_long_it_takes():
    state = State(step=0, since=0.0, settled=True)
    move = advance(PLAN, state, Figures(5, 0, Calls(5), Calls(5)), 1e9)
    assert move.verb is Verb.HOLD
    assert "5 comparisons" in move.reason


def test_what_was_begun_before_a_move_does_not_count_after_it():
    failing = replace(GOOD, postgresql=Calls(20_000, 2_000, 0.01))
    moved = advance(PLAN, State(step=2, since=0.0, settled=True), failing, 10.0)
    assert (moved.verb, moved.state.step, moved.state.settled) == (Verb.BACK, 1, False)
    for now in (10.0, 12.0, 14.9):
        held = advance(PLAN, moved.state, failing, now)
        assert (held.verb, held.state) == (Verb.HOLD, moved.state)


@settings(deadline=None)  # bounds of many figures take their time
@given(st.lists(st.tuples(figures(), st.floats(0, 100)), max_size=10))
def test_whatever_is_seen_the_percent_is_one_of_the_plan_and_rises_one_step_at_a_time(history):
    state, now = State(), 0.0
    for seen, seconds in history:
        now += seconds
        before, move = state, advance(PLAN, state, seen, now)
        state = move.state
        outcome = overall(judge(seen, PLAN.limits))
        assert state.percent(PLAN) in {0.0, *PLAN.steps}
        assert move.reason
        if move.verb is Verb.ADVANCE:
            assert state.step == before.step + 1
            assert outcome is Outcome.PASS
            assert now - before.since >= PLAN.bake
        elif move.verb is Verb.BACK:
            assert outcome is Outcome.FAIL
            assert state.step < before.step
        else:
            assert state.step == before.step
            judged = before.settled and before.status is Status.RUNNING and before.step >= 0
            assert outcome is not Outcome.FAIL or not judged
            assert state.setbacks == before.setbacks


@pytest.mark.parametrize(
    ("steps", "words"),
    [((), "at least one"), ((0.0,), "above 0"), ((5.0, 5.0), "greater"), ((101.0,), "at most 100")],
)
def test_a_plan_that_is_none_is_refused(steps, words):
    with pytest.raises(ValueError, match=words):
        Plan(steps=steps)


def test_the_guard_hears_of_failures_alone():
    assert breach(judge(GOOD, LIMITS)) is None
    assert breach(judge(Figures(), LIMITS)) is None
    assert breach(judge(replace(GOOD, bad=500), LIMITS)).startswith("verdicts: 500")


# --- a rehearsal -------------------------------------------------------------------------------


class Rehearsal:
    """A ramp over simulated reads: routed as real ones are, all of them compared, by a clock of
    its own. `trouble` says, by percent, which share of the comparisons is bad, which share of
    PostgreSQL's reads fails, and its p99."""

    def __init__(self, trouble: dict[float, tuple[float, float, float]]) -> None:
        self.trouble = trouble
        self.plan = Plan(
            bake=60.0, settle=10.0, limits=Limits(max_mismatch=0.001, max_error_delta=0.002)
        )
        self.state, self.now, self.reads = State(), 0.0, 0
        self.percents: list[float] = []
        self.seen = Figures()

    def run(self, reads: int) -> None:
        draw = Random(7)
        while self.reads < reads and self.state.status is Status.RUNNING:
            percent = self.state.percent(self.plan)
            routed = plan(Stage.SHADOW, "rehearsal", percent, 1.0)
            bad, failing, p99 = self.trouble.get(percent, (0.0, 0.0, 0.01))
            paths = [f"tasks/{draw.randrange(1_000_000)}" for _ in range(500)]
            answered = sum(
                decide(routed, path, 0.0).answer is StoreName.POSTGRESQL for path in paths
            )
            assert abs(answered / 5 - percent) < 10
            before = self.seen
            self.seen = Figures(
                before.compared + 500,
                before.bad + sum(draw.random() < bad for _ in paths),
                Calls(before.firestore.count + 500, 0, 0.01),
                Calls(
                    before.postgresql.count + 500,
                    before.postgresql.errors + sum(draw.random() < failing for _ in paths),
                    p99,
                ),
            )
            self.reads, self.now = self.reads + 500, self.now + 5.0
            move = advance(self.plan, self.state, self.seen, self.now)
            if move.state.settled and not self.state.settled:
                self.seen = Figures()
            if move.verb is not Verb.HOLD:
                self.percents.append(move.state.percent(self.plan))
            self.state = move.state


def test_a_rehearsal_of_a_hundred_thousand_reads_reaches_its_end():
    rehearsal = Rehearsal({})
    rehearsal.run(100_000)
    assert rehearsal.state.status is Status.DONE
    assert rehearsal.percents == [1, 5, 25, 50, 100]


@pytest.mark.parametrize(
    ("trouble", "percents"),
    [
        ({25.0: (0.05, 0.0, 0.01)}, [1, 5, 25, 0, 1, 5, 25, 0]),
        ({25.0: (0.0, 0.05, 0.01)}, [1, 5, 25, 5, 25, 5, 25]),
        ({25.0: (0.0, 0.0, 0.05)}, [1, 5, 25, 5, 25, 5, 25]),
    ],
)
def test_a_rehearsal_with_trouble_at_one_percent_never_goes_beyond_it(trouble, percents):
    rehearsal = Rehearsal(trouble)
    rehearsal.run(100_000)
    assert rehearsal.percents[: len(percents)] == percents
    assert max(rehearsal.percents) == 25
    assert rehearsal.state.status is Status.STOPPED


def test_a_rehearsal_goes_on_when_the_trouble_is_over():
    rehearsal = Rehearsal({25.0: (0.0, 0.05, 0.01)})
    rehearsal.run(30_000)
    rehearsal.trouble = {}
    rehearsal.run(100_000)
    assert rehearsal.state.status is Status.DONE
    assert rehearsal.percents[-3:] == [25, 50, 100]
