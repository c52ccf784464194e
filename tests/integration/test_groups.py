"""Two groups of collections side by side, on real stores: `text` and all other collections."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore

from crossfade.call import Call
from crossfade.errors import FailedPrecondition, Unavailable
from crossfade.jobs import regroup
from crossfade.plan import Stage, StoreName
from crossfade.settings import Settings
from crossfade.stores.postgres.lanes import Lanes
from crossfade.write import Write as OwnWrite
from crossfade_api.v1 import admin_pb2, crossfade_pb2, crossfade_pb2_grpc, violet_pb2
from crossfade_client import (
    AlreadyExistsError,
    FailedPreconditionError,
    Increment,
    UnavailableError,
    Write,
)
from tests.sidecar import DATABASE, Running, beside, eventually, running
from tests.violet_caller import Caller, values

TEXT: dict[str, Any] = {"text": {"collections": ["notes", "text_content"], "stage": Stage.SHADOW}}


@asynccontextmanager
async def copied(url: str, **options: Any) -> AsyncIterator[Running]:
    """`default` in dual_write and `text` in shadow, both copied."""
    async with running(url, Stage.DUAL_WRITE, groups=TEXT, **options) as stack:
        await stack.copy()
        await stack.copy("text")
        yield stack


@pytest.fixture
async def apart(postgres_database) -> AsyncIterator[Running]:
    """`default` in dual_write, so Firestore decides, and `text` in live."""
    async with copied(await postgres_database(), read_percent=100) as stack:
        await stack.stage("live", "text")
        yield stack


@pytest.fixture
async def together(postgres_database) -> AsyncIterator[Running]:
    """Both at Firestore, both mirrored."""
    async with copied(await postgres_database()) as stack:
        yield stack


async def stages(stack: Running) -> dict[str, tuple[str, str]]:
    status = await stack.admin.GetStatus(admin_pb2.GetStatusRequest())
    return {each.group: (each.stage, each.authority) for each in status.groups}


async def in_firestore(stack: Running, path: str) -> bool:
    return (await stack.direct.get([path], timeout=5)).documents[0].data is not None


async def in_postgres(stack: Running, path: str) -> bool:
    stores = stack.sidecar.stores
    return (await stores[StoreName.POSTGRESQL].get([path], timeout=5)).documents[0].data is not None


# --- side by side ------------------------------------------------------------------------------


async def test_each_group_is_read_and_written_where_its_stage_says(apart):
    assert await stages(apart) == {
        "default": ("dual_write", "firestore"),
        "text": ("live", "postgresql"),
    }
    await apart.client.set("tasks/1", {"n": 1})
    await apart.client.set("notes/1", {"n": 2})
    await apart.settled()
    for path in ("tasks/1", "notes/1"):
        assert await in_firestore(apart, path), path
        assert await in_postgres(apart, path), path
    pinned = await apart.sql.fetch("select path, epoch from crossfade.versions order by path")
    epochs = {name: each.control.snapshot.epoch for name, each in apart.sidecar.members.items()}
    assert [tuple(row) for row in pinned] == [
        ("notes/1", epochs["text"]),
        ("tasks/1", epochs["default"]),
    ]
    assert epochs["text"] > epochs["default"]
    # In different stores, together.
    found = await apart.client.get_all(["notes/1", "tasks/1", "notes/0"])
    assert [each and each.fields for each in found] == [{"n": 2}, {"n": 1}, None]
    assert [each.path async for each in apart.client.query("notes")] == ["notes/1"]
    assert await apart.client.count("tasks") == 1


async def test_a_rollback_of_one_touches_nothing_of_the_other(apart):
    await apart.client.set("notes/1", {"n": 1})
    await apart.client.set("tasks/1", {"n": 1})
    before = await apart.sidecar.members["default"].control.row()
    await apart.stage("shadow", "text")
    assert await apart.sidecar.members["default"].control.row() == before
    assert await stages(apart) == {
        "default": ("dual_write", "firestore"),
        "text": ("shadow", "firestore"),
    }
    await apart.settled()
    # What the way back wrote has Firestore's times in both stores; the other group's had them.
    epochs = dict(await apart.sql.fetch("select path, epoch from crossfade.versions"))
    text = apart.sidecar.members["text"].control.snapshot
    assert epochs == {"notes/1": text.epoch, "tasks/1": before["epoch"]}
    assert (await apart.client.get("notes/1")).fields == {"n": 1}


async def test_the_barrier_of_one_holds_up_no_writer_of_the_other(together):
    """The barrier stands still where it has closed its own group, for as long as it likes."""
    coordinator = together.sidecar.members["text"].coordinator
    real: dict[str, Any] = {}
    reached, released = asyncio.Event(), asyncio.Event()

    async def hold(change: Any, snapshot: Any) -> Any:
        reached.set()
        await released.wait()
        return await real["drain"](change, snapshot)

    real.update(coordinator._do)
    coordinator._do = {**real, "drain": hold}
    moving = asyncio.create_task(together.stage("live", "text"))
    await asyncio.wait_for(reached.wait(), 10)
    waiting = asyncio.create_task(together.client.set("notes/1", {"n": 1}))
    for n in range(5):
        await together.client.set("tasks/1", {"n": n})
    assert not waiting.done()
    status = await together.admin.GetStatus(admin_pb2.GetStatusRequest(group="text"))
    assert (status.group, status.authority) == ("text", "none")
    released.set()
    await moving
    await waiting
    assert (await together.client.get("tasks/1")).fields == {"n": 4}
    assert (await together.client.get("notes/1")).fields == {"n": 1}


async def test_the_copy_of_one_is_no_doubt_about_the_other(postgres_database):
    async with running(
        await postgres_database(), Stage.SHADOW, groups=TEXT, read_percent=100
    ) as stack:
        await stack.client.set("notes/1", {"n": 1})
        await stack.client.set("tasks/1", {"n": 1})
        assert (await stack.copy("text")).copied == 1

        async def only_one_is_in_doubt() -> bool:
            rows = await stack.sql.fetch("select path from crossfade.pending")
            return [row[0] for row in rows] == [""]

        await eventually(only_one_is_in_doubt)
        served = {}
        channel = grpc.aio.insecure_channel(stack.sidecar.address)
        stub: Any = crossfade_pb2_grpc.CrossfadeStub(channel)
        for path in ("notes/1", "tasks/1"):
            request = crossfade_pb2.GetDocumentRequest(name=DATABASE.full(path))
            call = stub.GetDocument(request, metadata=(("x-crossfade-explain", "1"),))
            await call
            served[path] = dict(await call.trailing_metadata())["x-crossfade-served-by"]
        await channel.close()
        assert served == {"notes/1": "postgresql; mirror", "tasks/1": "firestore"}
        with pytest.raises(grpc.aio.AioRpcError, match="first copy has not ended"):
            await stack.stage("live")
        await stack.stage("live", "text")


# --- what spans both ---------------------------------------------------------------------------


async def test_a_commit_of_groups_with_different_authorities_is_refused_with_the_reason(apart):
    spanning = [Write.set("tasks/1", {"n": 1}), Write.set("notes/1", {"n": 1})]
    with pytest.raises(FailedPreconditionError) as refused:
        await apart.client.commit(spanning)
    text = str(refused.value)
    assert "default (stage dual_write, where firestore decides)" in text
    assert "text (stage live, where postgresql decides)" in text
    assert "No commit is atomic in both stores" in text
    for path in ("tasks/1", "notes/1"):
        assert not await in_firestore(apart, path)
        assert not await in_postgres(apart, path)
    # As soon as one decides both, it is one commit again.
    await apart.stage("shadow", "text")
    await apart.client.commit(spanning)
    assert await in_firestore(apart, "tasks/1")


@pytest.mark.parametrize("authority", ["firestore", "postgresql"])
async def test_a_commit_of_groups_with_the_same_authority_is_one(together, authority):
    if authority == "postgresql":
        await together.stage("live")
        await together.stage("live", "text")
    client = together.client
    await client.commit([Write.set("tasks/1", {"n": 0}), Write.set("notes/1", {"n": 0})])

    async def add() -> None:
        await client.commit(
            [
                Write.update("tasks/1", {"n": Increment(1)}),
                Write.update("notes/1", {"n": Increment(1)}),
            ]
        )

    await asyncio.gather(*(add() for _ in range(10)))
    with pytest.raises((AlreadyExistsError, FailedPreconditionError)):
        await client.commit([Write.set("notes/2", {}), Write.create("tasks/1", {})])
    found = await client.get_all(["tasks/1", "notes/1", "notes/2"])
    assert [each and each.fields for each in found] == [{"n": 10}, {"n": 10}, None]
    await together.settled()
    epochs = dict(await together.sql.fetch("select path, epoch from crossfade.versions"))
    members = together.sidecar.members
    assert epochs["tasks/1"] == members["default"].control.snapshot.epoch
    assert epochs["notes/1"] == members["text"].control.snapshot.epoch
    mirror = StoreName(authority).other
    held = await together.sidecar.stores[mirror].get(["tasks/1", "notes/1"], timeout=5)
    assert all(each.data is not None for each in held.documents)
    # Each group goes its own way after it, and nothing was left behind.
    back = "shadow" if authority == "postgresql" else "live"
    await together.stage(back, "text")
    assert (await client.get("notes/1")).fields == {"n": 10}


async def test_a_spanning_commit_is_done_once_by_its_request_id(together):
    writes = [
        Write.update("tasks/1", {"n": Increment(1)}),
        Write.update("notes/1", {"n": Increment(1)}),
    ]
    await together.client.commit([Write.set("tasks/1", {"n": 0}), Write.set("notes/1", {"n": 0})])
    first = await together.client.commit(writes, request_id="once")
    again = await together.client.commit(writes, request_id="once")
    assert (first.replayed, again.replayed) == (False, True)
    await together.settled()
    for group in ("", "text"):
        await together.stage("live", group)
    assert (await together.client.commit(writes, request_id="once")).replayed
    found = await together.client.get_all(["tasks/1", "notes/1"])
    assert [each.fields for each in found] == [{"n": 1}, {"n": 1}]


async def test_a_spanning_commit_goes_past_a_postgresql_that_is_away(together):
    """Its outbox entries are each group's own, and each gate stays closed until it has them."""

    async def away(*_args: Any, **_kwargs: Any) -> None:
        raise Unavailable("PostgreSQL is away")

    patch = pytest.MonkeyPatch()
    for member in together.sidecar.members.values():
        for name in ("_open", "takes_rows", "put", "claim"):
            patch.setattr(member.mirror, name, away)
    await together.client.commit([Write.set("tasks/1", {"n": 1}), Write.set("notes/1", {"n": 1})])
    named = {
        name: [entry.paths for entry in await member.lease.fences.entries(timeout=5)]
        for name, member in together.sidecar.members.items()
    }
    assert named == {"default": [("tasks/1",)], "text": [("notes/1",)]}
    assert not any(m.lease.document.gate_open for m in together.sidecar.members.values())
    patch.undo()
    await together.settled()
    for path in ("tasks/1", "notes/1"):
        assert await in_postgres(together, path), path

    async def opened() -> bool:
        return all(m.lease.document.gate_open for m in together.sidecar.members.values())

    await eventually(opened)


async def test_what_a_sidecar_left_of_a_spanning_commit_another_settles(together, monkeypatch):
    """It ends after the commit and before the puts: rows of both groups stand, for anybody."""

    async def lost(*_args: Any, **_kwargs: Any) -> None:
        raise Unavailable("the sidecar is gone")

    monkeypatch.setattr("crossfade.pending.LEASE_SECONDS", 0.2)
    patch = pytest.MonkeyPatch()
    for member in together.sidecar.members.values():
        patch.setattr(member.pending, "settle", lost)
        patch.setattr(member.mirror, "claim", lost)
    await together.client.commit([Write.set("tasks/1", {"n": 1}), Write.set("notes/1", {"n": 1})])

    async def left() -> bool:
        rows = await together.sql.fetch("select path from crossfade.pending order by path")
        return [row[0] for row in rows] == ["notes/1", "tasks/1"]

    await eventually(left)
    await together.sidecar.stop(0)
    patch.undo()
    async with beside(
        together.stores, together.firestore_server, together.url, groups=TEXT
    ) as other:
        await other.settled()
        for path in ("tasks/1", "notes/1"):
            assert await in_postgres(other, path), path
        await other.stage("live", "text")
        assert (await other.client.get("notes/1")).fields == {"n": 1}


# --- transactions and the other fronts -----------------------------------------------------------


async def test_the_genuine_client_works_on_either_group_and_is_refused_on_both(apart, monkeypatch):
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", apart.sidecar.address)
    client = firestore.Client(project=DATABASE.project, credentials=AnonymousCredentials())

    def work() -> list[Any]:
        client.document("tasks/1").set({"n": 1})
        client.document("notes/1").set({"n": 1})

        def add(path: str, other: str | None = None) -> Any:
            @firestore.transactional
            def run(transaction: Any) -> int:
                found: Any = client.document(path).get(transaction=transaction)
                n = found.to_dict()["n"]
                if other is not None:
                    client.document(other).get(transaction=transaction)
                transaction.update(client.document(path), {"n": n + 1})
                return n + 1

            return run(client.transaction())

        counts = [add("tasks/1"), add("notes/1"), add("notes/1")]
        refused = []
        for path, other in (("tasks/1", "notes/1"), ("notes/1", "tasks/1")):
            try:
                add(path, other)
            except exceptions.FailedPrecondition as error:
                refused.append(str(error))
        batch = client.batch()
        batch.set(client.document("tasks/2"), {})
        batch.set(client.document("notes/2"), {})
        try:
            batch.commit()
        except exceptions.FailedPrecondition as error:
            refused.append(str(error))
        names = sorted(each.id for each in client.collections())
        listed = [each.id for each in client.collection("notes").list_documents()]
        found = sorted(each.id for each in client.collection_group("notes").stream())
        return [counts, refused, names, listed, found]

    counts, refused, names, listed, found = await asyncio.to_thread(work)
    await asyncio.to_thread(client.close)
    assert counts == [2, 2, 3]
    assert len(refused) == 3
    assert all("different authorities" in text for text in refused), refused
    assert names == ["notes", "tasks"]
    assert listed == found == ["1"]


async def test_listeners_hear_of_their_group_and_stay_when_the_other_moves(apart):
    await apart.client.set("tasks/1", {"n": 1})
    await apart.client.set("notes/1", {"n": 1})
    channel = grpc.aio.insecure_channel(apart.sidecar.address)
    stub = crossfade_pb2_grpc.CrossfadeStub(channel)

    async def watched(call: Any, n: int) -> None:
        async with asyncio.timeout(20):
            while True:
                reply = await call.read()
                assert reply is not grpc.aio.EOF, await call.details()
                if any(each.fields["n"].integer_value == n for each in reply.changed):
                    return

    def listening(path: str) -> Any:
        request = crossfade_pb2.WatchRequest()
        request.documents.names.append(DATABASE.full(path))
        return stub.Watch(request)

    tasks, notes = listening("tasks/1"), listening("notes/1")
    await watched(tasks, 1)
    await watched(notes, 1)
    await apart.client.set("tasks/1", {"n": 2})
    await apart.client.set("notes/1", {"n": 2})
    await watched(tasks, 2)
    await watched(notes, 2)
    await apart.stage("shadow", "text")
    with pytest.raises(grpc.aio.AioRpcError, match="authority has changed"):
        await watched(notes, 3)
    await apart.client.set("tasks/1", {"n": 3})
    await watched(tasks, 3)
    both = crossfade_pb2.WatchRequest()
    both.documents.names.extend(map(DATABASE.full, ("tasks/1", "notes/1")))
    await watched(stub.Watch(both), 3)
    await channel.close()


async def test_an_operation_that_spans_groups_is_refused_until_they_agree(postgres_database):
    """An assignment writes tasks and miners' statuses in one transaction."""
    groups = {"people": {"collections": ["miner_status", "miners"], "stage": Stage.SHADOW}}
    async with running(await postgres_database(), Stage.SHADOW, groups=groups) as stack:
        await stack.copy()
        await stack.copy("people")
        await stack.stage("live", "people")
        violet = Caller(stack)
        await violet.miner(1)
        await violet.tasks.CreateTask(
            violet_pb2.CreateTaskRequest(request_id="a", task_id="t", fields=values(x=1))
        )
        assign = violet_pb2.AssignTaskRequest(request_id="b", task_id="t", miner_uids=[1])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await violet.tasks.AssignTask(assign)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        details = refused.value.details() or ""
        assert "people (stage live, where postgresql decides)" in details
        assert await violet.loads(1) == [0]
        await stack.stage("live")
        await violet.tasks.AssignTask(assign)
        assert await violet.loads(1) == [1]
        await violet.channel.close()


async def test_a_transaction_that_read_a_group_which_moves_is_not_committed(together):
    """It writes the other group alone, so no pending row of its own holds up the barrier; and
    Firestore has not heard of what was written since, so that nothing but the epoch tells."""
    transactions = together.sidecar.transactions
    await together.client.commit([Write.set("tasks/1", {"n": 0}), Write.set("notes/1", {"n": 0})])
    runs, patch = 0, pytest.MonkeyPatch()

    async def nothing(*_args: Any, **_kwargs: Any) -> list[Any]:
        return []

    async def work(transaction: Any) -> None:
        nonlocal runs
        runs += 1
        read = await transaction.get("notes/1")
        if runs == 1:
            await together.stage("live", "text")
            patch.setattr(together.sidecar.members["text"].mirror, "claim", nothing)
            await together.client.set("notes/1", {"n": 1})
        transaction.write(OwnWrite("tasks/1", {"n": read.fields["n"]}))

    call = Call(together.telemetry, time.monotonic() + 20)
    with pytest.raises(FailedPrecondition, match="different authorities"):
        await transactions.run(work, call)
    patch.undo()
    assert runs == 2
    assert (await together.client.get("tasks/1")).fields == {"n": 0}


# --- several sidecars, starts ----------------------------------------------------------------


async def test_a_sidecar_with_other_groups_does_not_start_and_one_with_the_same_goes_on(apart):
    other = {"text": {"collections": ["notes"]}}
    for groups in (None, other, {"words": TEXT["text"]}):
        with pytest.raises(FailedPrecondition, match="the control state is of text with notes"):
            async with beside(apart.stores, apart.firestore_server, apart.url, groups=groups):
                pass
    await apart.client.set("notes/1", {"n": 1})
    await apart.client.set("tasks/1", {"n": 1})
    await apart.sidecar.stop(0)
    async with beside(apart.stores, apart.firestore_server, apart.url, groups=TEXT) as again:
        assert await stages(again) == {
            "default": ("dual_write", "firestore"),
            "text": ("live", "postgresql"),
        }
        assert (await again.client.get("notes/1")).fields == {"n": 1}
        await again.client.set("tasks/1", {"n": 2})
        with pytest.raises(FailedPreconditionError):
            await again.client.commit([Write.set("tasks/1", {}), Write.set("notes/1", {})])


async def test_groups_are_changed_where_the_stages_agree_and_a_forgotten_sidecar_is_fenced(
    postgres_database,
):
    url = await postgres_database()
    async with running(url, Stage.SHADOW) as first, AsyncExitStack() as stack:
        await first.copy()
        await first.client.set("notes/1", {"n": 1})
        await first.client.set("tasks/1", {"n": 1})
        await first.settled()
        lanes = await Lanes.open(url, size=2)
        stack.push_async_callback(lanes.close)

        async def regrouped(groups: Any) -> None:
            change = await regroup.prepare(lanes, Settings(groups=groups).grouping())
            assert change is not None
            await regroup.apply(change, lanes, first.direct)

        await regrouped(TEXT)
        assert await regroup.prepare(lanes, Settings(groups=TEXT).grouping()) is None
        async with beside(first.stores, first.firestore_server, url, groups=TEXT) as second:
            standing = ("shadow", "firestore")
            assert await stages(second) == {"default": standing, "text": standing}
            await second.stage("live", "text")
            await second.client.set("notes/1", {"n": 2})
            # The first one has not heard of it, and would ask Firestore.
            for call in (first.client.get("notes/1"), first.client.set("tasks/1", {})):
                with pytest.raises(UnavailableError):
                    await call
            await second.client.set("tasks/1", {"n": 2})
            with pytest.raises(FailedPrecondition, match="text in stage live"):
                await regrouped({})
            await second.stage("shadow", "text")
            await second.settled()
        await regrouped({})
        async with beside(first.stores, first.firestore_server, url) as third:
            found = await third.client.get_all(["notes/1", "tasks/1"])
            assert [each and each.fields for each in found] == [{"n": 2}, {"n": 2}]
            await third.stage("live")
            assert (await third.client.get("notes/1")).fields == {"n": 2}


async def test_without_postgresql_a_sidecar_of_other_groups_is_refused_by_firestore(
    together, monkeypatch
):
    """Firestore's control documents say which groups they are for."""

    async def away(*_args: Any, **_kwargs: Any) -> None:
        raise Unavailable("PostgreSQL is away")

    for name in ("crossfade.app.create_schema", "crossfade.control.Control._fetch"):
        monkeypatch.setattr(name, away)
    with pytest.raises(Unavailable, match="PostgreSQL is away"):
        async with beside(together.stores, together.firestore_server, together.url):
            pass
    async with beside(
        together.stores, together.firestore_server, together.url, groups=TEXT
    ) as other:
        await other.client.set("notes/1", {"n": 1})
        assert (await other.client.get("notes/1")).fields == {"n": 1}


async def test_a_group_of_which_nothing_is_known_is_not_served_while_postgresql_is_away(
    apart, monkeypatch
):
    async def away(*_args: Any, **_kwargs: Any) -> None:
        raise Unavailable("PostgreSQL is away")

    for name in ("crossfade.app.create_schema", "crossfade.control.Control._fetch"):
        monkeypatch.setattr(name, away)
    async with beside(apart.stores, apart.firestore_server, apart.url, groups=TEXT) as other:
        await other.client.set("tasks/1", {"n": 1})
        for call in (other.client.get("notes/1"), other.client.set("notes/1", {})):
            with pytest.raises(UnavailableError):
                await call
