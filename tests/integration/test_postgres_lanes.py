"""Lanes: bounded, clean, reconnecting; and no driver error leaves them untranslated."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from crossfade.errors import (
    CrossfadeError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Unavailable,
)
from crossfade.stores.postgres.lanes import Lanes
from tests.postgres_fixture import MakeDatabase, MakeLanes


async def pid(lanes: Lanes) -> int:
    return int(await lanes.fetchval("select pg_backend_pid()", timeout=5))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(500):
        if await condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not happen within five seconds")


async def test_the_lane_used_last_is_used_next(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=4)
    await asyncio.gather(*(lanes.fetchval("select pg_sleep(0.05)", timeout=5) for _ in range(4)))
    assert len({await pid(lanes) for _ in range(8)}) == 1


async def test_never_more_connections_than_lanes(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=3)
    pids = await asyncio.gather(
        *(
            lanes.fetchval("select pg_backend_pid() from pg_sleep(0.02)", timeout=5)
            for _ in range(30)
        )
    )
    assert len(set(pids)) == 3
    assert lanes.in_use == 0


async def test_no_lane_free_before_the_deadline(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    busy = asyncio.create_task(lanes.fetchval("select pg_sleep(0.5)", timeout=5))
    await asyncio.sleep(0.05)
    with pytest.raises(DeadlineExceeded, match="all 1 connections were busy"):
        await lanes.fetchval("select 1", timeout=0.1)
    await busy
    assert await lanes.fetchval("select 1", timeout=5) == 1


async def test_an_idle_lane_has_no_open_transaction(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=4)
    own = await pid(lanes)
    for query in ("select 1", "select count(*) from crossfade.pending", "select 2"):
        await lanes.fetch(query, timeout=5)
    async with lanes.transaction(5) as connection:
        await connection.execute("select 1")
    with pytest.raises(CrossfadeError):
        await lanes.fetch("select 1/0", timeout=5)
    watcher = await postgres_lanes(size=1)
    row = await watcher.fetchrow(
        "select state, xact_start from pg_stat_activity where pid = $1", own, timeout=5
    )
    assert row is not None
    assert (row["state"], row["xact_start"]) == ("idle", None)


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_an_interrupted_query_costs_its_connection(postgres_lanes: MakeLanes, how: str):
    lanes = await postgres_lanes(size=1)
    watcher = await postgres_lanes(size=1)
    first = await pid(lanes)
    task = asyncio.create_task(
        lanes.fetchval("select pg_sleep(20)", timeout=0.1 if how == "timeout" else 30)
    )
    await asyncio.sleep(0.05)
    if how == "cancel":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(DeadlineExceeded):
            await task
    assert await pid(lanes) != first

    async def gone() -> bool:
        query = "select count(*) from pg_stat_activity where pid = $1"
        return not await watcher.fetchval(query, first, timeout=5)

    # The server has stopped working on it, too.
    await until(gone)


async def test_a_waiter_gets_the_place_of_a_lost_connection(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    busy = asyncio.create_task(lanes.fetchval("select pg_sleep(20)", timeout=30))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(lanes.fetchval("select 7", timeout=5))
    await asyncio.sleep(0.05)
    busy.cancel()
    assert await waiting == 7


async def test_a_cancelled_waiter_keeps_nothing(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    for _ in range(20):
        busy = asyncio.create_task(lanes.fetchval("select pg_sleep(0.005)", timeout=5))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(lanes.fetchval("select 1", timeout=5)) for _ in range(3)]
        await asyncio.sleep(0.005)
        waiting[0].cancel()
        await asyncio.gather(busy, *waiting, return_exceptions=True)
    assert lanes.in_use == 0
    assert await lanes.fetchval("select 1", timeout=5) == 1


async def test_lanes_reconnect_after_the_server_ended_them(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=2)
    watcher = await postgres_lanes(size=1)
    await asyncio.gather(*(lanes.fetchval("select pg_sleep(0.05)", timeout=5) for _ in range(2)))
    busy = asyncio.create_task(lanes.fetchval("select pg_sleep(20)", timeout=30))
    await asyncio.sleep(0.05)
    database = await lanes.fetchval("select current_database()", timeout=5)
    await watcher.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1",
        database,
        timeout=5,
    )
    with pytest.raises(Unavailable):
        await busy

    async def back() -> bool:
        try:
            return bool(await lanes.fetchval("select 1", timeout=5))
        except Unavailable:
            return False

    await until(back)
    assert lanes.in_use == 0


async def test_a_driver_that_lost_the_thread_is_an_outage_and_costs_the_connection(
    postgres_lanes: MakeLanes, monkeypatch: pytest.MonkeyPatch
):
    lanes = await postgres_lanes(size=1)
    before = await lanes.fetchval("select pg_backend_pid()", timeout=5)

    async def broken(*_args: object, **_kwargs: object) -> None:
        raise asyncpg.InternalClientError("got result for unknown protocol state")

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "_execute", broken)
        with pytest.raises(Unavailable, match="broke"):
            await lanes.fetchval("select 1", timeout=5)
    assert await lanes.fetchval("select pg_backend_pid()", timeout=5) != before
    assert lanes.in_use == 0


async def test_a_block_that_leaves_a_transaction_open_loses_the_connection(
    postgres_lanes: MakeLanes,
):
    lanes = await postgres_lanes(size=1)
    first = await pid(lanes)
    async with lanes.acquire(5) as connection:
        await connection.execute("begin")
    assert await pid(lanes) != first


async def test_a_block_has_its_time_and_no_more(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    with pytest.raises(DeadlineExceeded):
        async with lanes.transaction(0.1) as connection:
            await connection.execute("select pg_sleep(20)")
    assert await lanes.fetchval("select 1", timeout=5) == 1


async def test_a_failed_transaction_leaves_nothing_and_keeps_the_lane(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    first = await pid(lanes)

    async def fail() -> None:
        async with lanes.transaction(5) as connection:
            await connection.execute(
                "insert into crossfade.requests values ('x', 1, array[1]::int8[])"
            )
            await connection.execute("select 1/0")

    with pytest.raises(Internal):
        await fail()
    assert await lanes.fetchval("select count(*) from crossfade.requests", timeout=5) == 0
    assert await pid(lanes) == first


async def test_errors_never_tell_values(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    insert = "insert into crossfade.requests values ($1, 1, array[1]::int8[])"
    await lanes.execute(insert, "geheim", timeout=5)
    with pytest.raises(Internal) as raised:
        await lanes.execute(insert, "geheim", timeout=5)
    assert "23505" in str(raised.value)
    assert "geheim" not in str(raised.value)
    assert raised.value.__suppress_context__
    with pytest.raises(Internal) as raised:
        await lanes.fetchval("select $1::int8", "geheim", timeout=5)
    assert "geheim" not in str(raised.value)
    assert lanes.in_use == 0


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("53100", Unavailable),  # disk full
        ("53300", Unavailable),  # too many connections
        ("57P01", Unavailable),  # shutdown
        ("58030", Unavailable),  # input/output error
        ("25006", Unavailable),  # read-only
        ("57014", DeadlineExceeded),  # statement_timeout
        ("54000", InvalidArgument),  # too long for an index
        ("42P01", Internal),
    ],
)
async def test_sqlstates(postgres_lanes: MakeLanes, state: str, error: type[CrossfadeError]):
    lanes = await postgres_lanes(size=1)
    with pytest.raises(error, match=f"SQLSTATE {state}"):
        await lanes.execute(
            f"do $$ begin raise exception 'geheim' using errcode = '{state}'; end $$", timeout=5
        )


async def test_a_read_only_server_is_unavailable(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    with pytest.raises(Unavailable, match="25006"):
        async with lanes.transaction(5, "read committed, read only") as connection:
            await connection.execute("delete from crossfade.pending")


async def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(Unavailable):
        await Lanes.open(f"postgresql://postgres@/none?host={tmp_path}", size=1, timeout=2)
    with pytest.raises(Unavailable):
        await Lanes.open("postgresql://postgres@127.0.0.1:1/none", size=1, timeout=2)


async def test_a_database_that_is_not_there(postgres_database: MakeDatabase):
    url = re.sub(r"crossfade_\d+_\d+", "nowhere", await postgres_database())
    with pytest.raises(Unavailable, match="no such database"):
        await Lanes.open(url, size=1, timeout=5)


async def test_closed_lanes_are_unavailable(postgres_database: MakeDatabase):
    url = await postgres_database()
    lanes = await Lanes.open(url, size=1)
    busy = asyncio.create_task(lanes.fetchval("select pg_sleep(0.2)", timeout=5))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(lanes.fetchval("select 1", timeout=5))
    await asyncio.sleep(0.05)
    await lanes.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await lanes.fetchval("select 1", timeout=5)
    await busy
    await lanes.close()
    watcher = await asyncpg.connect(url)
    left = "select count(*) from pg_stat_activity where datname = current_database()"
    assert await watcher.fetchval(left) == 1
    await watcher.close()


async def test_a_read_goes_on_after_its_table_was_altered(postgres_lanes: MakeLanes):
    lanes = await postgres_lanes(size=1)
    await lanes.execute("create table altered (id int8, a int8)", timeout=5)
    await lanes.execute("insert into altered values (1, 2)", timeout=5)
    query = "select * from altered where id = $1"

    async def read(key: int) -> tuple[Any, ...] | None:
        row = await lanes.read(query, key, timeout=5)
        return None if row is None else tuple(row)

    before = await pid(lanes)
    assert (await read(1), await read(7)) == ((1, 2), None)
    await lanes.execute("alter table altered alter a type text", timeout=5)
    assert [await read(1) for _ in range(3)] == [(1, "2")] * 3
    await lanes.execute("alter table altered add b int8 default 3", timeout=5)
    assert [await read(1) for _ in range(3)] == [(1, "2", 3)] * 3
    assert await pid(lanes) == before
    with pytest.raises(DeadlineExceeded):
        await lanes.read("select pg_sleep(9)", timeout=0.1)
