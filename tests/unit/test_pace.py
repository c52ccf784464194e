"""When PostgreSQL counts as slow, and when no longer: decided from seconds alone."""

from random import Random

import pytest

from crossfade.pace import FIRST_REST, MOST_REST, OPENINGS, PROBES, Pace

USUAL, COMMIT = 0.002, 0.02


class Days:
    """A sidecar that commits, and a clock that it is told."""

    def __init__(self, usual: float = USUAL, commit: float = COMMIT) -> None:
        self.pace, self.now, self.commit = Pace(), 1000.0, commit
        self.work(usual, 3 * OPENINGS)

    def work(self, opening: float, times: int = 1, apart: float = 0.1) -> None:
        for _ in range(times):
            self.now += apart
            self.pace.committed(self.commit)
            self.pace.opened(opening, self.now)

    def probe(self, seconds: float, times: int = PROBES, apart: float = 0.5) -> None:
        for _ in range(times):
            self.now += apart
            self.pace.probed(seconds, self.now)

    def turns(self, seconds: float, opening: float) -> int:
        """How often it becomes slow, with a mirror that is slow whenever it is waited for."""
        times, ends = 0, self.now + seconds
        while self.now < ends:
            was = self.pace.slow
            if was:
                self.probe(USUAL, 1)
            else:
                self.work(opening)
            times += self.pace.slow and not was
        return times


def test_it_is_slow_when_a_commit_takes_half_as_long_again():
    days = Days(commit=0.1)
    days.work(0.052, OPENINGS)  # the rows take 26 times as long, a commit 1.49 times
    assert not days.pace.slow
    days.work(0.055, OPENINGS)
    assert days.pace.slow
    assert days.pace.usual == pytest.approx(USUAL, abs=0.001)


def test_what_a_busy_machine_loses_is_no_slowness():
    days = Days(commit=0.004)
    days.work(0.021, OPENINGS)  # a commit takes four times as long, and 19 ms more
    assert not days.pace.slow
    days.work(0.03, OPENINGS)
    assert days.pace.slow
    days.probe(0.009)  # it would be three times as long for ever
    assert not days.pace.slow


def test_single_openings_that_take_long_say_nothing():
    days, random = Days(), Random(1)
    for _ in range(300):
        days.work(0.3 if random.random() < 0.2 else USUAL)
        assert not days.pace.slow


def test_half_of_the_last_openings_are_enough():
    days = Days()
    days.work(0.04, OPENINGS // 2)
    assert not days.pace.slow
    days.work(0.04)
    assert days.pace.slow


def test_it_is_quick_again_when_several_probes_in_a_row_were():
    days = Days()
    days.work(0.04, OPENINGS)
    days.probe(USUAL, PROBES - 1)
    days.probe(0.04, 1)
    days.probe(USUAL, PROBES - 1)
    assert days.pace.slow
    days.probe(USUAL, 1)
    assert not days.pace.slow


def test_between_slow_and_quick_it_stays_what_it_was():
    """A commit that takes a third more: not enough to go around, too much to come back."""
    third = USUAL + (USUAL + 0.06) / 3
    days = Days(commit=0.06)
    days.work(third, OPENINGS)
    assert not days.pace.slow
    days.work(0.06, OPENINGS)
    days.probe(third, 20)
    assert days.pace.slow


def test_probes_of_one_moment_count_once():
    days = Days()
    days.work(0.04, OPENINGS)
    days.probe(USUAL, 50, apart=0.001)
    assert days.pace.slow


def test_rows_that_were_begun_before_it_was_slow_change_nothing():
    days = Days()
    days.work(0.04, OPENINGS)
    days.work(USUAL, 3 * OPENINGS)
    assert days.pace.slow


def test_slowness_does_not_become_usual_however_long_it_lasts():
    days = Days()
    days.work(0.04, OPENINGS)
    days.probe(0.04, 7_200)  # an hour
    assert days.pace.slow


def test_what_is_usual_falls_quickly_and_rises_slowly():
    days = Days(usual=0.012)
    days.work(0.002, 600)  # a minute
    assert days.pace.usual < 0.004
    days.work(0.012, 600)
    assert days.pace.usual < 0.005
    days.work(0.012, 18_000)
    assert days.pace.usual > 0.01


def test_a_quiet_night_makes_one_opening_no_rule():
    days = Days()
    days.work(0.012, OPENINGS, apart=3600)
    assert days.pace.usual < 0.005


def test_a_sidecar_that_starts_beside_a_slow_mirror_knows_no_better():
    days = Days(usual=0.04)
    assert not days.pace.slow
    days.work(USUAL, 600)
    days.work(0.04, OPENINGS)
    assert days.pace.slow


def test_nothing_is_said_before_enough_was_seen():
    pace = Pace()
    for number in range(OPENINGS - 1):
        pace.committed(0.01)
        pace.opened(5.0, float(number))
        assert not pace.slow
    assert pace.usual == 0


def test_a_mirror_that_changes_its_mind_is_gone_around_ever_more_rarely():
    days = Days()
    minute = days.turns(60, 0.04)
    assert 2 <= minute < 60 / FIRST_REST / 2
    days.turns(600, 0.04)
    assert 2 <= days.turns(3600, 0.04) <= 3600 / MOST_REST


def test_one_that_was_well_for_long_is_gone_around_at_once_again():
    days = Days()
    days.turns(3600, 0.04)
    days.probe(USUAL, 10)
    days.work(USUAL, 30_000)
    days.work(0.04, OPENINGS)
    assert days.pace.slow
    days.probe(USUAL, PROBES)
    days.work(0.04, OPENINGS, apart=FIRST_REST / OPENINGS + 0.1)
    assert days.pace.slow
