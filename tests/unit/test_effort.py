"""What a process spends on a job: pages, retries, and the time in which it waited."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from crossfade.job_display import JobLine, effort_text
from crossfade.jobs.effort import OF_BUDGET, RESUMED, Effort
from crossfade.stores.postgres.jobs import Job, JobState

JOB = Job(
    *(7, "backfill", "default", (), {}, JobState.RUNNING, "", "me", 1, "firestore", 1, 1),
    *(1_000, {"swept": 0}, datetime.now(UTC), None, 8, 2, 1),
    effort={
        "pages": 1_200,
        "retries.RESOURCE_EXHAUSTED": 4,
        "retries.UNAVAILABLE": 1,
        "waited.budget": 7_500.2,
        "waited.store": 12.34,
        "waited.pause": 0.2,
    },
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_counts_from_when_nothing_could_be_done_to_the_next_page():
    clock = Clock()
    effort = Effort(clock)
    clock.now += 5
    effort.page()
    effort.retry("RESOURCE_EXHAUSTED")
    clock.now += 1
    effort.retry("UNAVAILABLE")
    assert (effort.waits_for, effort.reason) == ("a store (UNAVAILABLE)", "store")
    clock.now += 2
    effort.page()
    effort.waits_for = OF_BUDGET
    clock.now += 10
    effort.waits_for = OF_BUDGET
    clock.now += 10
    effort.waits_for = RESUMED
    clock.now += 30
    effort.page()
    clock.now += 100
    assert effort.take() == {
        "pages": 3,
        "retries.RESOURCE_EXHAUSTED": 1,
        "retries.UNAVAILABLE": 1,
        "waited.store": 3,
        "waited.budget": 20,
        "waited.pause": 30,
    }
    assert (effort.take(), effort.waits_for, effort.reason) == ({}, "", "")


def test_a_wait_that_goes_on_is_told_in_parts():
    clock = Clock()
    effort = Effort(clock)
    effort.waits_for = OF_BUDGET
    clock.now += 2
    assert effort.take() == {"waited.budget": 2}
    clock.now += 3
    assert effort.take() == {"waited.budget": 3}
    assert effort.waits_for == OF_BUDGET


def test_what_could_not_be_told_is_told_the_next_time():
    clock = Clock()
    effort = Effort(clock)
    effort.page()
    words = effort.take()
    effort.page()
    effort.back(words)
    assert effort.take() == pytest.approx({"pages": 2})


# --- shown -------------------------------------------------------------------------------------


def test_the_last_line_says_what_a_job_was_held_up_by():
    assert effort_text(JOB) == (
        "1,200 pages; 5 read again (RESOURCE_EXHAUSTED 4, UNAVAILABLE 1); "
        "waited 2 h 05 min for the day's budget of Firestore reads; waited 12 s for a store"
    )
    assert effort_text(replace(JOB, effort={"pages": 3})) == "3 pages"


def test_what_was_read_again_is_seen_while_a_job_runs(capsys):
    screen = Console(file=io.StringIO(), width=200)
    with JobLine(screen) as line:
        line.update(JOB, now=1.0)
    assert " | 5 read again" in screen.file.getvalue()  # type: ignore[attr-defined]
    with JobLine(as_json=True) as line:
        line.update(JOB, "a store (UNAVAILABLE)", now=1.0)
    told = json.loads(capsys.readouterr().out)
    assert (told["pages"], told["retries"]) == (
        1_200,
        {"RESOURCE_EXHAUSTED": 4, "UNAVAILABLE": 1},
    )
    assert told["waited"] == {"budget": 7_500.2, "pause": 0.2, "store": 12.3}
    assert told["waits_for"] == "a store (UNAVAILABLE)"
