"""Shadow reads over real stores: races, a mirror that hangs, samples, repair, raising."""

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import grpc
import pytest
import structlog

from crossfade.errors import Unavailable
from crossfade.plan import Stage, StoreName
from crossfade.settings import CollectionSettings, RuleSettings
from crossfade.shadow import BATCH, COMPARE_SECONDS
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
from crossfade.verdict import Offer, Verdict
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2, crossfade_pb2, crossfade_pb2_grpc
from crossfade_client import AsyncCrossfade, Count, FailedPreconditionError, Query, Sum
from crossfade_client import Write as ClientWrite
from tests.sidecar import DATABASE, Running, eventually, running

FAST_SECONDS, RIGHT, MOST_SECONDS = 4, 20, 30
"""Writes race until so many seconds have had 200 of them and so many reads of each kind were found
to be right meanwhile, and no longer than the last."""
LONG = 10.0
"""A lease that no busy machine outlasts: without a valid one nothing is compared."""
HANG_SECONDS = float(os.environ.get("HANG_SECONDS", "1.5"))
"""How long a mirror hangs; the bounds of comparisons are in the proportion that they have to 30
seconds, with which `make hang` runs it."""
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
    async with running(url, Stage.SHADOW, shadow_rate=1.0, shadow=shadow, lease=LONG) as stack:
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

Read = Callable[[AsyncCrossfade, str], Awaitable[Any]]


async def find_all(client: AsyncCrossfade, collection: str) -> list[Any]:
    return [found async for found in client.query(Query(collection).where("status", "==", "a"))]


KINDS: dict[str, Read] = {
    "get": lambda client, collection: client.find(f"{collection}/1"),
    "batch get": lambda client, collection: client.get_all([f"{collection}/{n}" for n in range(2)]),
    "query": find_all,
    "aggregate": lambda client, collection: client.aggregate(
        Query(collection).where("status", "==", "a"), {"sum": Sum("n"), "count": Count()}
    ),
}
"""One read of each kind, of documents 0 to 3 of a collection."""


def by_kind(stack: Running, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Counts verdicts by the kind of the read, which the metrics do not tell apart."""
    counts: Counter[tuple[str, str]] = Counter()
    shadow = stack.sidecar.shadow
    found = shadow._found

    def note(offer: Offer, verdict: Verdict, *args: Any, **options: Any) -> None:
        several = isinstance(offer.asked, tuple) and len(offer.asked) > 1
        counts["batch get" if several else offer.operation, verdict.value] += 1
        found(offer, verdict, *args, **options)

    monkeypatch.setattr(shadow, "_found", note)
    return counts


def a_write(draw: Random, path: str, made: int) -> ClientWrite:
    """A set, a merge or a delete, and with it a change of a query's result."""
    kind = draw.random()
    if kind < 0.15:
        return ClientWrite.delete(path)
    if kind < 0.5:
        return ClientWrite.set(path, {"status": draw.choice("ab"), "n": made})
    return ClientWrite.merge(path, {f"f{made % 4}": made})


@pytest.mark.parametrize("stage", ["shadow", "live"])
async def test_racing_writes_blame_nobody(url, stage, monkeypatch):
    """200 writes a second of the very keys that are compared: sets, merges, deletes, and a
    field by which documents go in and out of a query's result."""
    shadow = {"workers": 8, "age": 60.0}
    # With less patience, or a shorter lease, a busy machine leaves out comparisons.
    async with running(
        url, Stage.SHADOW, shadow_rate=1.0, shadow=shadow, patience=10.0, lease=2.0
    ) as stack:
        await stack.copy()
        if stage == "live":
            await stack.stage("live")
        collections = ("tasks", "notes")
        paths = [f"{collection}/{n}" for collection in collections for n in range(4)]
        verdicts = by_kind(stack, monkeypatch)
        asked: Counter[str] = Counter()
        written, writing = 0, True

        async def writer(number: int) -> None:
            nonlocal written
            draw, made, began = Random(number), 0, time.monotonic()
            while writing:
                some = draw.sample(paths, draw.choice((2, 8, 8)))
                await stack.client.commit([a_write(draw, path, made) for path in some])
                made += len(some)
                written += len(some)
                await asyncio.sleep(max(0.0, began + made / 65 - time.monotonic()))

        async def reader(kind: str) -> None:
            while writing:
                for collection in collections:
                    await KINDS[kind](stack.client, collection)
                    asked[kind] += 1
                    await asyncio.sleep(0.03)

        tasks = [*map(writer, range(4)), *map(reader, KINDS)]
        racing = asyncio.gather(*tasks)
        fast, right = 0, 0
        for _ in range(MOST_SECONDS):  # on a busy machine some of them have fewer writes
            before, began = written, time.monotonic()
            await asyncio.sleep(1)
            fast += (written - before) / (time.monotonic() - began) >= 200
            right = min(verdicts[kind, "match"] for kind in KINDS)
            if fast >= FAST_SECONDS and right >= RIGHT:
                break
        writing = False
        await racing
        await stack.settled(20)
        assert fast >= FAST_SECONDS
        assert right >= RIGHT, verdicts
        # Every read was offered, and no comparison failed or blamed a document.
        assert {verdict for _, verdict in verdicts} <= {"match", "behind"}, verdicts
        left_out = stack.telemetry.total(SHADOW_DROPPED)
        assert sum(verdicts.values()) == asked.total() - left_out
        assert left_out < asked.total() / 10
        # And with the writes at an end, the same reads do find what is wrong.
        await stack.client.set("notes/1", {"status": "a", "n": 1})
        await stack.settled()
        for number, (kind, read) in enumerate(KINDS.items()):
            await spoil(stack, "notes/1", f'{{"status": "a", "n": {number + 2}}}')
            await read(stack.client, "notes")
            await counted(stack, "wrong", number + 1)
            await stack.settled()  # it is repaired
            assert verdicts[kind, "wrong"] == 1


# --- a mirror that hangs -----------------------------------------------------------------------


class Hanging:
    """What compares finds that its store says nothing, until it is let go; answers ask the
    store over lanes of their own."""

    def __init__(self, stack: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self._let_go = asyncio.Event()
        self.asked: Counter[str] = Counter()
        mirror = stack.sidecar.members["default"].shadow_stores[StoreName.POSTGRESQL]
        for method in ("get", "aggregate"):
            monkeypatch.setattr(mirror, method, self._held(method, getattr(mirror, method)))
        monkeypatch.setattr(mirror, "query", self._held_pages(mirror.query))

    def let_go(self) -> None:
        self._let_go.set()

    def _held(self, method: str, real: Any) -> Any:
        async def held(*args: Any, **options: Any) -> Any:
            self.asked[method] += 1
            await self._let_go.wait()
            return await real(*args, **options)

        return held

    def _held_pages(self, real: Any) -> Any:
        async def held(*args: Any, **options: Any) -> AsyncIterator[Any]:
            self.asked["query"] += 1
            await self._let_go.wait()
            async for page in real(*args, **options):
                yield page

        return held


def own(kind: str) -> str:
    """The collection that one kind of reads has for itself: the metrics tell them apart by it."""
    return kind.replace(" ", "-")


async def filled(stack: Running) -> None:
    """Documents for every kind of read, in both stores."""
    for kind in KINDS:
        for number in range(2):
            await stack.client.set(f"{own(kind)}/{number}", {"status": "a", "n": number})
    await stack.copy()
    await stack.settled()


async def test_a_mirror_that_hangs_is_invisible_to_callers(url, monkeypatch):
    scale = HANG_SECONDS / 30
    monkeypatch.setattr("crossfade.shadow.COMPARE_SECONDS", COMPARE_SECONDS * scale)
    shadow = {"queue": 50, "workers": 2, "age": 10.0 * scale}
    async with running(url, Stage.SHADOW, shadow_rate=1.0, shadow=shadow, lease=LONG) as stack:
        await filled(stack)
        mirror = Hanging(stack, monkeypatch)
        reads: Counter[str] = Counter()
        until = time.monotonic() + HANG_SECONDS
        while time.monotonic() < until:
            for kind, read in KINDS.items():
                async with asyncio.timeout(1):
                    await read(stack.client, own(kind))
                reads[own(kind)] += 1
        assert {verdict for _, verdict in stack.telemetry.counts(VERDICTS)} == {"error"}
        assert stack.sidecar.shadow.waiting <= 50
        mirror.let_go()
        await stack.settled()
        # Each was judged, or dropped and counted; and comparing goes on.
        verdicts, dropped = stack.telemetry.counts(VERDICTS), stack.telemetry.counts(SHADOW_DROPPED)
        assert {cause for _, cause in dropped} >= {"queue", "age"}
        for collection, count in reads.items():
            judged = sum(n for key, n in verdicts.items() if key[0] == collection)
            left_out = sum(n for key, n in dropped.items() if key[0] == collection)
            assert count == judged + left_out
            assert left_out > judged
        for kind, read in KINDS.items():
            before = stack.count(VERDICTS, own(kind), "match")
            await read(stack.client, own(kind))
            await stack.settled()
            assert stack.count(VERDICTS, own(kind), "match") == before + 1


async def test_a_comparison_that_takes_too_long_is_cut_off(url, monkeypatch):
    gets = 1 + BATCH
    monkeypatch.setattr("crossfade.shadow.COMPARE_SECONDS", 0.1)
    monkeypatch.setattr("crossfade.shadow.ALONE_PER_SECOND", 1.0)
    monkeypatch.setattr("crossfade.shadow.BATCH_SECONDS", 10.0)  # all but one get by one call
    shadow = {"workers": 1}
    async with running(url, Stage.SHADOW, shadow_rate=1.0, shadow=shadow, lease=LONG) as stack:
        await filled(stack)
        mirror = Hanging(stack, monkeypatch)
        with structlog.testing.capture_logs() as logs:
            for kind, read in KINDS.items():
                for _ in range(gets if kind == "get" else 2):
                    await read(stack.client, own(kind))
            await counted(stack, "error", gets + 6)
        told = [line for line in logs if line["event"] == "shadow read failed"]
        assert {line["error"] for line in told} == {"TIMEOUT"}
        assert Counter(line["collection"] for line in told) == dict.fromkeys(map(own, KINDS), 2)
        assert mirror.asked == {"get": 4, "query": 2, "aggregate": 2}
        # The one worker that there is goes on with what comes after them.
        monkeypatch.setattr("crossfade.shadow.COMPARE_SECONDS", COMPARE_SECONDS)
        monkeypatch.setattr("crossfade.shadow.BATCH_SECONDS", 0.0)
        mirror.let_go()
        for kind, read in KINDS.items():
            await read(stack.client, own(kind))
        await stack.settled()
        errors = dict.fromkeys(((own(kind), "error") for kind in KINDS), 2)
        matches = dict.fromkeys(((own(kind), "match") for kind in KINDS), 1)
        assert stack.telemetry.counts(VERDICTS) == errors | matches | {("get", "error"): gets}
        assert stack.telemetry.counts(SHADOW_DROPPED) == {}


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
    assert sample.trace_id == ""  # traces go nowhere here
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


async def test_an_aggregation_that_differs_is_the_callers_error_too(url):
    total = {"total": Sum("n")}
    async with running(
        url, Stage.SHADOW, shadow_rate=1.0, shadow={"on_mismatch": "raise", "repair": False}
    ) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"n": 7_301})
        # Asked for at once: what is pending is no difference.
        assert (await stack.client.aggregate("notes", total))["total"] == 7_301
        await stack.settled()
        await spoil(stack, "notes/1", '{"n": 40}')
        for percent in (0, 100):  # whoever answers
            await stack.percent(percent, shadow_rate=1.0)
            with pytest.raises(
                FailedPreconditionError, match=r"notes is wrong: total \(value\)$"
            ) as raised:
                await stack.client.aggregate("notes", total)
            assert "7301" not in str(raised.value)
            assert await stack.client.count("notes") == 1
        assert stack.telemetry.counts(VERDICTS)["notes", "wrong"] == 2
