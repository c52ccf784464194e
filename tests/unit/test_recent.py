"""Trouble that has just begun: how soon it shows under the default settings, and that nothing
else does. Reads are simulated, a second of them at a time."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from crossfade.durations import BUCKETS, bucket_of
from crossfade.figures import Tally, total
from crossfade.ramp import Answer, Outcome, breach, judge, with_recent
from crossfade.recent import PARTS, Recent, judge_recent
from crossfade.settings import RampSettings

LIMITS = RampSettings().limits()
WINDOW = RampSettings().window
ALONE = 20
"""Shadow reads in a second that are timed, of each store at most."""

Read = Callable[[Random], tuple[float, bool]]
"""Seconds that a read takes, and whether it fails."""


def calm(draw: Random) -> tuple[float, bool]:
    return draw.lognormvariate(-5.5, 0.5), False


def slow(times: float) -> Read:
    return lambda draw: (times * calm(draw)[0], False)


def failing(share: float) -> Read:
    return lambda draw: (calm(draw)[0], draw.random() < share)


def second(draw: Random, reads: dict[str, tuple[int, Read]]) -> Tally:
    counts, errors, buckets = {}, {}, {}
    for store, (count, read) in reads.items():
        made = [read(draw) for _ in range(count)]
        counts[store], errors[store] = count, sum(failed for _, failed in made)
        buckets[store] = [0] * (BUCKETS + 1)
        for seconds, _ in made:
            buckets[store][bucket_of(seconds)] += 1
    return Tally(0, 0, counts, errors, buckets)


class Guarded:
    """A guard's looks, one a second, at so many reads in each."""

    def __init__(self, rate: int, percent: float, seed: int = 1) -> None:
        self.draw = Random(seed)
        by_postgresql = round(rate * percent / 100)
        shadows = min(ALONE, rate)
        self.rates = {
            "firestore": rate - by_postgresql + min(shadows, by_postgresql),
            "postgresql": by_postgresql + min(shadows, rate - by_postgresql),
        }
        self.recent, self.now, self.sum = Recent(WINDOW), 0.0, Tally()
        self.recent.add(self.now, {"notes": self.sum})

    def after(
        self, ours: Read = calm, theirs: Read = calm, count: int | None = None
    ) -> tuple[Answer, ...]:
        """Another second, and what fails by the last ones. `count`: PostgreSQL's reads in it."""
        many = self.rates["postgresql"] if count is None else count
        reads = {"firestore": (self.rates["firestore"], theirs), "postgresql": (many, ours)}
        self.sum, self.now = total((self.sum, second(self.draw, reads))), self.now + 1.0
        self.recent.add(self.now, {"notes": self.sum})
        return judge_recent(self.recent.parts("notes"), self.recent.window("notes"), LIMITS)

    def goes(self, **reads: Any) -> bool:
        """Whether the percent has to go, after another second."""
        lately = self.after(**reads)
        return breach(with_recent(judge(self.recent.window("notes"), LIMITS), lately)) is not None

    def calmed(self) -> "Guarded":
        """After a minute in which all is well."""
        assert not any(self.goes() for _ in range(round(WINDOW)))
        return self

    def seconds_until_it_goes(self, **trouble: Any) -> int:
        self.calmed()
        return next(passed for passed in range(1, 61) if self.goes(**trouble))


# A second is lost between two looks, and what a change of the percent takes comes on top.
SOON = 7


@pytest.mark.parametrize(("rate", "percent"), [(50, 50), (100, 5), (100, 100)])
@pytest.mark.parametrize("trouble", [slow(5.0), slow(1_000.0), failing(1.0), failing(0.2)])
def test_under_the_default_settings_trouble_shows_within_seconds(rate, percent, trouble):
    assert Guarded(rate, percent).seconds_until_it_goes(ours=trouble) <= SOON


@pytest.mark.parametrize("trouble", [slow(1_000.0), failing(1.0)])
def test_slow_reads_are_few_reads_and_show_all_the_same(trouble):
    """Sixteen callers who wait four seconds each make four reads a second, after two hundred."""
    assert Guarded(200, 50).seconds_until_it_goes(ours=trouble, count=4) <= 3


def test_reads_that_hang_to_their_deadline_show_when_the_first_are_over():
    """Four callers, all of whom come back at once, and not again for another five seconds."""
    guarded = Guarded(200, 50).calmed()
    assert not any(guarded.goes(count=0) for _ in range(4))
    assert guarded.goes(ours=lambda _: (5.0, True), count=4)


def test_one_hiccup_is_no_trouble_and_the_second_is():
    guarded = Guarded(200, 50).calmed()
    stall = slow(100.0)
    for ours in (stall, calm, calm, calm, calm, stall, calm):
        assert guarded.after(ours=ours) == ()
    assert [each.outcome for each in guarded.after(ours=stall)] == [Outcome.FAIL]


@pytest.mark.parametrize("both", [slow(20.0), failing(0.5)])
def test_what_befalls_both_stores_is_held_against_neither(both):
    guarded = Guarded(200, 50).calmed()
    for _ in range(20):
        assert guarded.after(ours=both, theirs=both) == ()


def almost(draw: Random) -> tuple[float, bool]:
    """Half of what the limits allow: slow reads, and failed ones."""
    return (1.0 if draw.random() < 0.005 else calm(draw)[0]), draw.random() < 0.0005


@pytest.mark.parametrize(("rate", "percent"), [(20, 5), (60, 50), (200, 100)])
def test_what_the_limits_allow_raises_no_alarm(rate, percent):
    guarded = Guarded(rate, percent, seed=rate)
    for _ in range(300):
        assert guarded.after(ours=almost) == ()


def test_without_enough_of_firestore_nothing_is_said_of_latency():
    guarded = Guarded(10, 50).calmed()
    for _ in range(20):
        assert not guarded.goes(ours=slow(1_000.0))


def test_parts_are_of_a_second_each_and_never_of_before_what_is_asked_for():
    recent, held = Recent(60.0), Tally()
    for half in range(41):
        held = total((held, Tally(counts={"postgresql": 1})))
        recent.add(half / 2, {"notes": held})
    counts = [part.counts["postgresql"] for part in recent.parts("notes")]
    assert counts == [2] * PARTS
    assert len(recent.parts("notes", since=18.0)) == 2
    assert recent.parts("notes", since=19.5) == []


def test_an_answer_that_fails_by_the_whole_time_is_told_by_that():
    guarded = Guarded(200, 50).calmed()
    whole = judge(guarded.recent.window("notes"), LIMITS)
    (late,) = [guarded.after(ours=failing(0.5)) for _ in range(2)][-1]
    assert late.reason.startswith("within 2 of the last 5 seconds ")
    assert [each for each in with_recent(whole, (late,)) if each.outcome is Outcome.FAIL] == [late]
    failed = replace(whole[1], outcome=Outcome.FAIL)
    assert with_recent((failed,), (late,)) == (failed,)
