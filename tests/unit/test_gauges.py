"""Gauges of what PostgreSQL has to be asked for."""

from dataclasses import replace
from datetime import UTC, datetime

from crossfade.gauges import _progress
from crossfade.stores.postgres.jobs import Job, JobState

JOB = Job(
    *(1, "backfill", "default", (), {}, JobState.RUNNING, "", "me", 1, "firestore", 1, 1),
    *(1_000, {}, datetime.now(UTC), None, 8, 2, 1),
)


def test_the_progress_of_a_job_is_shown_until_it_has_ended():
    paused = replace(JOB, kind="validate", state=JobState.PAUSED, partitions_done=8)
    ended = [replace(JOB, group="other", state=state) for state in JobState if state.ended]
    planned = replace(JOB, group="planned", partitions=0, partitions_done=0)
    assert ended
    assert _progress([JOB, paused, *ended, planned]) == {
        ("backfill", "default"): 25.0,
        ("validate", "default"): 100.0,
    }
