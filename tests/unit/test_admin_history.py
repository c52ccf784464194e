"""What the plots remember: intervals, and the last minute as a whole."""

import pytest

from crossfade.admin.history import KEPT, MINUTE, History, Keeping
from crossfade.telemetry import OLDEST_PENDING, PENDING, RECOPIES, VERDICTS, Telemetry


def test_a_point_is_what_came_since_the_one_before():
    telemetry = Telemetry()
    history = History(telemetry, clock=lambda: 1000.0)
    telemetry.record_store("tasks", "get", "firestore", "answered", 0.010)
    telemetry.record_store("tasks", "get", "postgresql", "shadow", 0.002, "UNAVAILABLE")
    telemetry.record_store("tasks", "commit", "firestore", "answered", 9.0)
    telemetry.count(VERDICTS, "tasks", "match", by=3)
    history.observe()
    telemetry.record_store("tasks", "get", "firestore", "answered", 0.040)
    telemetry.count(VERDICTS, "tasks", "wrong")
    history.observe()
    history.observe()

    first, second, third = history.since(0)
    assert first.reads["tasks"]["firestore"].count == 1
    assert first.reads["tasks"]["firestore"].p50 == pytest.approx(0.01, rel=0.2), (
        "without the commit"
    )
    assert first.reads["tasks"]["postgresql"].errors == 1
    assert first.verdicts == {"tasks": {"match": 3}, "": {"match": 3}}
    assert second.reads[""]["firestore"].p99 == pytest.approx(0.04, rel=0.2)
    assert second.reads["tasks"]["postgresql"].count == 0
    assert second.reads["tasks"]["postgresql"].p50 is None
    assert second.verdicts[""] == {"wrong": 1}
    assert (third.reads, third.verdicts) == ({}, {})
    assert history.since(second.serial) == [third]
    plain = first.plain()
    assert plain["reads"]["tasks"]["firestore"][:2] == [1, 0]
    assert plain["at"] == 1000.0


def test_the_last_minute_is_counted_and_not_put_together_from_points():
    telemetry = Telemetry()
    history = History(telemetry)
    telemetry.record_store("tasks", "get", "firestore", "answered", 0.5)
    for _ in range(MINUTE):
        history.observe()
    telemetry.record_store("tasks", "get", "firestore", "answered", 0.01)
    held = history.last_minute()["tasks"]["firestore"]
    assert held.count == 1, "what came before the minute is not in it"
    assert held.p99 == pytest.approx(0.01, rel=0.2)


def test_the_backlog_of_all_groups_together_and_none_where_it_is_not_known():
    telemetry = Telemetry()
    history = History(telemetry)
    history.observe()
    telemetry.gauge(PENDING, lambda: {("default",): 2.0, ("accounts",): 3.0})
    telemetry.gauge(OLDEST_PENDING, lambda: {("default",): 0.5, ("accounts",): 7.0})
    history.observe()
    unknown, known = history.since(0)
    assert (unknown.pending, unknown.oldest_seconds) == (None, None)
    assert (known.pending, known.oldest_seconds) == (5.0, 7.0)


def test_only_so_many_points_are_kept():
    history = History(Telemetry())
    for _ in range(KEPT + 5):
        history.observe()
    points = history.since(0)
    assert (len(points), points[-1].serial) == (KEPT, KEPT + 5)


def test_how_the_mirror_kept_up_is_of_the_last_minute_alone():
    telemetry = Telemetry()
    history = History(telemetry)
    assert history.keeping() == Keeping(0, None, None, 0)
    telemetry.record_lag("put", 5.0)
    telemetry.count(RECOPIES, "settled", by=7)
    for _ in range(MINUTE):
        history.observe()
    for way in ("put", "recopy"):
        telemetry.record_lag(way, 0.01)
    telemetry.count(RECOPIES, "settled", by=2)
    found = history.keeping()
    assert (found.count, found.recopied) == (2, 2)
    assert found.p50 == pytest.approx(0.01, rel=0.2)
    assert found.p99 == pytest.approx(0.01, rel=0.2), "what was slow is longer ago"
