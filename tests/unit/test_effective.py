"""The share that PostgreSQL really answered."""

from crossfade.effective import WINDOW_SECONDS, Effective
from crossfade.telemetry import READS, Telemetry


def test_the_share_is_that_of_the_last_minute():
    now = 0.0
    telemetry = Telemetry()
    effective = Effective(telemetry, clock=lambda: now)
    telemetry.count(READS, "tasks", "firestore", by=30)
    telemetry.count(READS, "tasks", "postgresql", by=10)
    telemetry.count(READS, "files", "firestore", by=5)
    assert effective.percents() == {"tasks": 25.0, "files": 0.0}
    effective.observe()
    now = WINDOW_SECONDS + 1
    effective.observe()
    assert effective.percents() == {}
    telemetry.count(READS, "tasks", "postgresql", by=4)
    assert effective.percents() == {"tasks": 100.0}
