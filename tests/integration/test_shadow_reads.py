"""Shadow reads over real stores: races, a mirror that hangs, samples, repair, raising."""

import asyncio
import re
import time
from contextlib import suppress
from random import Random
from typing import Any

import grpc
import pytest

from crossfade.errors import Unavailable
from crossfade.plan import Stage, StoreName
from crossfade.settings import CollectionSettings, RuleSettings
from crossfade.telemetry import (
    BUDGET_LEFT,
    BUDGET_SPENT,
    MISMATCHES_DROPPED,
    REPAIRS,
    REPAIRS_GIVEN_UP,
    RULED_OUT,
    SHADOW_DROPPED,
    VERDICTS,
)
from crossfade.verdict import BAD
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2, crossfade_pb2, crossfade_pb2_grpc
from crossfade_client import FailedPreconditionError, NotFoundError, Query
from tests.sidecar import DATABASE, Running, eventually, running

WRITES = 1_200
SECRET = "mail@example.org"


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


async def counted(stack: Running, verdict: str, at_least: int = 1) -> None:
    async def enough() -> bool:
        return stack.count(VERDICTS, verdict) >= at_least

    await eventually(enough)


async def spoil(stack: Running, path: str, fields: str) -> None:
    """A hand edit of the generic table: the content changes, the version does not."""
    await stack.sql.execute(
        "update crossfade.documents set fields = $2::jsonb where path = $1", path, fields
    )


async def listed(stack: Running, **request: Any) -> list[admin_pb2.Mismatch]:
    await stack.sidecar.shadow._samples.flush()
    reply = await stack.admin.ListMismatches(admin_pb2.ListMismatchesRequest(**request))
    return list(reply.mismatches)


# --- many at once ------------------------------------------------------------------------------


async def test_of_many_reads_the_one_that_differs_is_found_and_the_rest_match(url):
    shadow = {"repair": False, "lag": 60.0, "rate": 10_000.0}
    async with running(url, Stage.SHADOW, shadow_rate=1.0, shadow=shadow) as stack:
        await stack.copy()
        for number in range(50):
            await stack.client.set(f"notes/{number}", {"n": number})
        await stack.settled()
        await spoil(stack, "notes/33", '{"n": 0}')
        paths = [f"notes/{n % 50}" for n in range(400)]
        await asyncio.gather(*(stack.client.get(path) for path in paths))
        await stack.settled()
        assert stack.telemetry.total(SHADOW_DROPPED) == 0
        assert stack.telemetry.counts(VERDICTS) == {
            ("notes", "match"): 392,
            ("notes", "wrong"): 8,
        }
        (mismatch,) = await listed(stack)
        assert (mismatch.path, mismatch.count) == ("notes/33", 8)
        (found,) = stack.telemetry.paired.comparisons()
        assert 20 <= found.count < 200  # the rest were read by a few calls


# --- races -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["shadow", "live"])
async def test_racing_writes_blame_nobody(url, stage):
    """200 writes a second of the very keys that are compared: sets, merges, deletes, and a
    field by which documents go in and out of a query's result."""
    async with running(url, Stage.SHADOW, shadow_rate=1.0) as stack:
        await stack.copy()
        if stage == "live":
            await stack.stage("live")
        paths = [f"{collection}/{n}" for collection in ("tasks", "notes") for n in range(4)]
        writing = True

        async def writer(number: int) -> None:
            draw = Random(number)
            began = time.monotonic()
            for made in range(WRITES // 4):
                path, kind = draw.choice(paths), draw.random()
                if kind < 0.15:
                    await stack.client.delete(path)
                elif kind < 0.5:
                    await stack.client.set(path, {"status": draw.choice("ab"), "n": made})
                else:
                    await stack.client.merge(path, {f"f{number}": made})
                await asyncio.sleep(max(0.0, began + made / 50 - time.monotonic()))

        async def reader(number: int) -> None:
            draw = Random(-number)
            while writing:
                kind = draw.random()
                if kind < 0.5:
                    with suppress(NotFoundError):
                        await stack.client.get(draw.choice(paths))
                elif kind < 0.7:
                    await stack.client.get_all(draw.sample(paths[:4], 3))
                else:
                    query = Query(draw.choice(["tasks", "notes"])).where("status", "==", "a")
                    _ = [found async for found in stack.client.query(query)]
                await asyncio.sleep(0.005)

        readers = [asyncio.create_task(reader(number)) for number in range(4)]
        await asyncio.gather(*map(writer, range(4)))
        writing = False
        await asyncio.gather(*readers)
        await stack.settled(20)
        verdicts = {v: n for (_, v), n in stack.telemetry.counts(VERDICTS).items()}
        assert not BAD & verdicts.keys(), verdicts
        assert verdicts["match"] > 100
        # And with the writes at an end, the same reads do find what is wrong.
        await stack.client.set("notes/1", {"n": 1})
        await stack.settled()
        await spoil(stack, "notes/1", '{"n": 2}')
        await stack.client.get("notes/1")
        await counted(stack, "wrong")


# --- a mirror that hangs -----------------------------------------------------------------------


async def test_a_mirror_that_hangs_is_invisible_to_callers(url, monkeypatch):
    async with running(
        url, Stage.SHADOW, shadow_rate=1.0, shadow={"queue": 20, "workers": 2}
    ) as stack:
        await stack.client.set("notes/1", {"n": 1})
        await stack.copy()
        await stack.settled()
        shadow = stack.sidecar.shadow
        before = sum(stack.telemetry.counts(VERDICTS).values())
        mirror = stack.sidecar.members["default"].shadow_stores[StoreName.POSTGRESQL]

        async def hangs(*_args: Any, timeout: float, **_kwargs: Any) -> Any:
            await asyncio.sleep(30)
            raise Unavailable("too late")

        monkeypatch.setattr(mirror, "get", hangs)
        began = time.monotonic()
        for _ in range(200):
            assert (await stack.client.get("notes/1")).fields == {"n": 1}
        assert time.monotonic() - began < 15  # a single wait would be 30
        offered = 200 - stack.count(SHADOW_DROPPED, "queue")
        assert offered == shadow.waiting + shadow._running == 22
        assert sum(stack.telemetry.counts(VERDICTS).values()) == before


# --- samples -----------------------------------------------------------------------------------


@pytest.fixture
async def comparing(url):
    rule = RuleSettings(name="stamps", fields=("at",), kind="ignore")
    notes = CollectionSettings(clear=("status",), rules=(rule,))
    async with running(
        url,
        Stage.SHADOW,
        shadow_rate=1.0,
        shadow={"repairs_in_a_row": 2},
        collections={"notes": notes},
    ) as stack:
        await stack.copy()
        yield stack


async def test_a_mismatch_is_listed_with_what_differs_and_no_value(comparing):
    await comparing.client.set("notes/1", {"mail": SECRET, "status": "new", "at": 1})
    await comparing.settled()
    await spoil(comparing, "notes/1", '{"mail": "m@example.org", "status": "old", "at": 2}')
    await comparing.client.get("notes/1")
    await counted(comparing, "wrong")

    (found,) = await listed(comparing)
    assert (found.collection, found.verdict, found.operation) == ("notes", "wrong", "get")
    assert (found.path, list(found.fields), found.count) == ("notes/1", ["mail", "status"], 1)
    sample = found.first
    mail, status = sample.differences
    assert (mail.authority.type, mail.authority.length) == ("string", len(SECRET))
    assert mail.authority.hash != mail.mirror.hash
    assert (status.authority.value, status.mirror.value) == ('"new"', '"old"')
    assert (sample.stage, sample.authority, sample.answered) == ("shadow", "firestore", "firestore")
    assert sample.firestore.time == sample.postgresql.time > 0
    assert SECRET not in str(found)
    rows = await comparing.sql.fetch("select first::text, latest::text from crossfade.mismatches")
    assert SECRET not in str(rows)
    assert comparing.telemetry.counts(RULED_OUT)["notes", "stamps"] >= 1


async def test_the_list_is_narrowed_by_collection_field_and_time(comparing):
    for collection in ("notes", "memos"):
        await comparing.client.set(f"{collection}/1", {"a": {"b": [1]}, "c": 1})
        await comparing.settled()
        await spoil(comparing, f"{collection}/1", '{"a": {"b": [2]}, "c": 1}')
        await comparing.client.get(f"{collection}/1")
    await counted(comparing, "wrong", 2)

    both = await listed(comparing)
    assert {each.collection for each in both} == {"notes", "memos"}
    assert [list(each.fields) for each in both] == [["a.b[0]"]] * 2
    (found,) = await listed(comparing, collection="memos")
    assert found.collection == "memos"
    for field, count in (("a", 2), ("a.b", 2), ("a.b[0]", 2), ("a.c", 0), ("c", 0)):
        assert len(await listed(comparing, field=field)) == count
    later = both[0].latest.at
    later.FromMicroseconds(later.ToMicroseconds() + 1)
    assert await listed(comparing, since=later) == []
    assert len(await listed(comparing, limit=1)) == 1
    with pytest.raises(grpc.aio.AioRpcError, match=r"limit: -1 is outside 1\.\.1000"):
        await listed(comparing, limit=-1)


async def test_the_table_is_bounded(url):
    async with running(url, Stage.SHADOW, shadow={"samples": 3}, shadow_rate=1.0) as stack:
        await stack.copy()
        for number in range(6):
            await stack.client.set(f"notes/{number}", {f"f{number}": 1})
            await stack.settled()
            await spoil(stack, f"notes/{number}", f'{{"f{number}": 2}}')
            await stack.client.get(f"notes/{number}")
            await counted(stack, "wrong", number + 1)
        found = await listed(stack)
        assert [list(each.fields) for each in found] == [["f5"], ["f4"], ["f3"]]


async def test_samples_meet_a_postgresql_that_is_away(comparing, monkeypatch):
    async def away(*_args: Any, **_kwargs: Any) -> str:
        raise Unavailable("away")

    await comparing.client.set("notes/1", {"n": 1})
    await comparing.settled()
    await spoil(comparing, "notes/1", '{"n": 2}')
    monkeypatch.setattr(comparing.sidecar.shadow._samples._table._lanes, "execute", away)
    await comparing.client.get("notes/1")
    await counted(comparing, "wrong")
    await comparing.sidecar.shadow._samples.flush()
    assert comparing.telemetry.counts(MISMATCHES_DROPPED) == {("notes",): 1}


async def test_names_that_postgresql_cannot_hold_are_kept_all_the_same(comparing):
    await comparing.client.set("notes/a\0b", {"x\0y": 1})
    await comparing.settled()
    await comparing.sql.execute("update crossfade.documents set fields = '{}'")
    await comparing.client.get("notes/a\0b")
    await counted(comparing, "wrong")
    (found,) = await listed(comparing)
    assert found.path == "notes/a\u2400b"
    # What is no name of a field may be a key that says something: it is told as a hash.
    (field,) = found.fields
    assert re.fullmatch("`#[0-9a-f]{16}`", field)


# --- explaining --------------------------------------------------------------------------------


async def explained(stack: Running, path: str) -> admin_pb2.Explanation:
    found: admin_pb2.Explanation = await stack.admin.ExplainMismatch(
        admin_pb2.ExplainMismatchRequest(name=path)
    )
    return found


async def test_a_document_is_explained_as_it_is_now(comparing):
    await comparing.client.set("notes/1", {"mail": SECRET, "n": 1})
    await comparing.settled()
    found = await explained(comparing, "notes/1")
    assert (found.verdict, list(found.differences)) == ("match", [])
    assert found.firestore.time == found.postgresql.time

    await spoil(comparing, "notes/1", '{"n": 1}')
    found = await explained(comparing, "notes/1")
    assert found.verdict == "wrong"
    (difference,) = found.differences
    assert (difference.field, difference.kind) == ("mail", "missing")
    assert difference.authority.hash
    assert not difference.HasField("mirror")
    assert SECRET not in str(found)

    await comparing.direct.commit([Write("notes/2", {"n": 1})], timeout=5)
    assert (await explained(comparing, "notes/2")).verdict == "missing"
    assert (await explained(comparing, "notes/none")).verdict == "match"
    # It looks and mends nothing.
    assert comparing.telemetry.counts(REPAIRS) == {}


async def test_there_is_nothing_to_explain_where_nothing_is_mirrored(url):
    async with running(url, Stage.OFF) as stack:
        with pytest.raises(grpc.aio.AioRpcError, match="stage off writes no mirror"):
            await explained(stack, "notes/1")
        with pytest.raises(grpc.aio.AioRpcError, match="Crossfade's own"):
            await explained(stack, "_crossfade_intents/1")


# --- repair ------------------------------------------------------------------------------------


async def test_a_document_that_is_spoilt_again_and_again_is_reported(comparing):
    await comparing.client.set("notes/1", {"n": 1})
    for round_ in range(1, 4):
        await comparing.settled()
        await spoil(comparing, "notes/1", '{"n": 2}')
        await comparing.client.get("notes/1")
        await counted(comparing, "wrong", round_)
    await comparing.settled()
    assert comparing.telemetry.counts(REPAIRS) == {("notes", "wrong"): 2}
    assert comparing.telemetry.counts(REPAIRS_GIVEN_UP) == {("notes",): 1}
    (found,) = await listed(comparing)
    assert (found.count, found.given_up) == (3, True)
    assert (await explained(comparing, "notes/1")).given_up


async def test_repair_can_be_switched_off(url):
    async with running(url, Stage.SHADOW, shadow_rate=1.0, shadow={"repair": False}) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"n": 1})
        await stack.settled()
        await spoil(stack, "notes/1", '{"n": 2}')
        await stack.client.get("notes/1")
        await counted(stack, "wrong")
        assert (await explained(stack, "notes/1")).verdict == "wrong"
        assert stack.telemetry.counts(REPAIRS) == {}


# --- aggregations ------------------------------------------------------------------------------


async def test_aggregations_are_compared_too(comparing):
    for number in range(3):
        await comparing.client.set(f"notes/{number}", {"n": number})
    await comparing.settled()
    request = crossfade_pb2.AggregateRequest(parent=DATABASE.root)
    getattr(request.query.structured_query, "from").add().collection_id = "notes"
    request.query.aggregations.add(alias="sum").sum.field.field_path = "n"
    async with grpc.aio.insecure_channel(comparing.sidecar.address) as channel:
        stub: Any = crossfade_pb2_grpc.CrossfadeStub(channel)

        async def answered() -> int:
            reply = await stub.Aggregate(request)
            return int(reply.result.aggregate_fields["sum"].integer_value)

        assert await answered() == 3
        await counted(comparing, "match")
        await spoil(comparing, "notes/2", '{"n": 40}')
        assert await answered() == 3
        await counted(comparing, "wrong")
    (found,) = await listed(comparing)
    assert (found.operation, found.path, list(found.fields)) == ("aggregate", "notes", ["sum"])
    assert comparing.telemetry.counts(REPAIRS) == {}


# --- the budget --------------------------------------------------------------------------------


async def test_a_budget_that_is_spent_ends_the_comparing_and_nothing_else(url):
    async with running(
        url, Stage.SHADOW, shadow_rate=1.0, shadow={"daily_reads": 20}, read_percent=100
    ) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"n": 1})
        await stack.settled()

        async def exhausted() -> bool:
            # PostgreSQL answers, so that every comparison costs a read of Firestore.
            assert (await stack.client.get("notes/1")).fields == {"n": 1}
            return stack.count(SHADOW_DROPPED, "budget") > 0 and await spent()

        async def spent() -> bool:
            return stack.telemetry.read_gauge(BUDGET_LEFT) == {(): 0.0}

        await eventually(exhausted, 60)
        assert await stack.sql.fetchval("select reserved from crossfade.budget") == 20
        await stack.settled()
        compared = sum(stack.telemetry.counts(VERDICTS).values())
        assert 20 <= stack.count(BUDGET_SPENT) <= 20 + 2
        for _ in range(20):
            await stack.client.get("notes/1")
        await stack.settled()
        assert sum(stack.telemetry.counts(VERDICTS).values()) == compared


# --- raising -----------------------------------------------------------------------------------


async def test_a_mismatch_is_the_callers_error_where_the_settings_say_so(url):
    async with running(
        url, Stage.SHADOW, shadow_rate=1.0, shadow={"on_mismatch": "raise", "repair": False}
    ) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"mail": SECRET})
        # Written and read at once: what is pending is no difference.
        assert (await stack.client.get("notes/1")).fields == {"mail": SECRET}
        await stack.settled()
        await spoil(stack, "notes/1", '{"mail": "m"}')
        with pytest.raises(FailedPreconditionError, match=r"notes/1 is wrong: mail \(value\)"):
            await stack.client.get("notes/1")
        with pytest.raises(FailedPreconditionError, match="the stores differ"):
            _ = [found async for found in stack.client.query("notes")]
        with pytest.raises(FailedPreconditionError) as raised:
            await stack.client.get_all(["notes/1", "notes/2"])
        assert SECRET not in str(raised.value)
