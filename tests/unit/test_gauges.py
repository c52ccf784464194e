"""Gauges of what PostgreSQL has to be asked for."""

from dataclasses import replace
from datetime import UTC, datetime

from crossfade.apart import _telemetry
from crossfade.gauges import _documents, _progress, _unfinished
from crossfade.settings import Settings, TelemetrySettings
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
    assert _progress(_unfinished([JOB, paused, *ended, planned])) == {
        ("backfill", "default"): 25.0,
        ("validate", "default"): 100.0,
    }


def test_the_documents_of_a_job_are_shown_by_what_came_of_them():
    counts = {
        "tasks": {"copied": 5, "beside": 2, "digest:firestore:0": 77},
        "users": {"copied": 3, "letters": 1},
    }
    assert _documents([replace(JOB, counts=counts)]) == {
        ("backfill", "default", "copied"): 8,
        ("backfill", "default", "beside"): 2,
        ("backfill", "default", "letters"): 1,
    }


def test_a_process_of_jobs_is_not_counted_as_a_sidecar():
    settings = Settings(telemetry=TelemetrySettings(service_name="mine"))
    assert _telemetry(settings)._settings.service_name == "mine-jobs"
