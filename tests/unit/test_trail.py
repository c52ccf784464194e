"""The audit trail while PostgreSQL is away: nothing is lost, and times are those of the changes."""

import asyncio
from datetime import UTC, datetime

import pytest

from crossfade.errors import Unavailable
from crossfade.jobs.settings_watch import Changed
from crossfade.jobs.trail import MOST, Trail
from crossfade.stores.postgres.audit import Audit, Change


class Table(Audit):
    def __init__(self) -> None:
        self.rows: list[Change] = []
        self.away = False

    async def add(self, change: Change) -> None:
        if self.away:
            raise Unavailable("away")
        self.rows.append(change)


@pytest.fixture
def table() -> Table:
    return Table()


def change(number: int = 1) -> Change:
    return Change("me", "stage", "live", "shadow", f"reason {number}")


async def test_a_change_is_written_at_once(table):
    await Trail(table).add(change())
    (row,) = table.rows
    assert (row.who, row.reason) == ("me", "reason 1")


async def test_what_cannot_be_written_is_when_postgresql_is_back(table, monkeypatch):
    monkeypatch.setattr("crossfade.jobs.trail.PERIOD_SECONDS", 0.01)
    trail = Trail(table)
    running = asyncio.create_task(trail.run())
    try:
        table.away = True
        before = datetime.now(UTC)
        await trail.add(change(1))
        after = datetime.now(UTC)
        await trail.add(change(2))
        await asyncio.sleep(0.1)
        assert table.rows == []
        table.away = False
        async with asyncio.timeout(10):
            while len(table.rows) < 2:  # noqa: ASYNC110 - until it is there
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert [row.reason for row in table.rows] == ["reason 1", "reason 2"]
        assert before <= table.rows[0].at <= after
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_later_change_brings_those_before_it(table):
    trail = Trail(table)
    table.away = True
    await trail.add(change(1))
    table.away = False
    await trail.add(change(2))
    assert [row.reason for row in table.rows] == ["reason 1", "reason 2"]


async def test_what_waits_is_bounded_and_the_latest_is_kept(table):
    trail = Trail(table)
    table.away = True
    for number in range(MOST + 5):
        await trail.add(change(number))
    table.away = False
    await trail.add(change(MOST + 5))
    assert len(table.rows) == MOST
    assert table.rows[-1].reason == f"reason {MOST + 5}"


async def test_a_settings_file_is_named_as_who_changed_it(table):
    await Trail(table).add_of_file("crossfade.toml", [Changed("tasks", "the defaults", "{}")])
    (row,) = table.rows
    assert (row.who, row.action, row.collection) == ("settings file", "traffic", "tasks")
    assert row.reason == "crossfade.toml"
