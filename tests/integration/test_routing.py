"""What a caller may ask of the routing: where an answer came from, and to choose the store."""

from typing import Any

import grpc
import pytest

from crossfade.loading import load
from crossfade.plan import Stage
from crossfade.telemetry import READS, SETTINGS_REFUSED
from crossfade_api.v1 import admin_pb2, crossfade_pb2, crossfade_pb2_grpc
from tests.sidecar import DATABASE, Running, eventually, running

EXPLAIN = ("x-crossfade-explain", "1")


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


@pytest.fixture
async def stack(url):
    """Firestore is the authority; the mirror holds another content of notes/1."""
    async with running(url, Stage.SHADOW, allow_pin=True) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"by": "firestore"})
        await stack.settled()
        await stack.sql.execute(
            """update crossfade.documents set fields = '{"by": "postgresql"}'"""
        )
        yield stack


async def called(stack: Running, method: str, *metadata: tuple[str, str]) -> tuple[str, Any]:
    """Who answered, by the content, and what the trailing metadata say."""
    async with grpc.aio.insecure_channel(stack.sidecar.address) as channel:
        stub: Any = crossfade_pb2_grpc.CrossfadeStub(channel)
        name = DATABASE.full("notes/1")
        if method == "get":
            call = stub.GetDocument(crossfade_pb2.GetDocumentRequest(name=name), metadata=metadata)
            document = (await call).document
        elif method == "batch":
            call = stub.BatchGetDocuments(
                crossfade_pb2.BatchGetDocumentsRequest(names=[name]), metadata=metadata
            )
            replies = [reply async for reply in call]
            document = replies[0].found[0]
        else:
            request = crossfade_pb2.QueryRequest(parent=DATABASE.root)
            getattr(request.query, "from").add().collection_id = "notes"
            call = stub.Query(request, metadata=metadata)
            replies = [reply async for reply in call]
            document = replies[0].documents[0]
        trailing = dict(await call.trailing_metadata())
        return document.fields["by"].string_value, trailing.get("x-crossfade-served-by")


METHODS = ["get", "batch", "query"]


@pytest.mark.parametrize("method", METHODS)
async def test_an_answer_says_where_it_came_from_when_it_is_asked(stack, method):
    assert await called(stack, method) == ("firestore", None)
    assert await called(stack, method, EXPLAIN) == ("firestore", "firestore")
    await stack.percent(100)
    assert await called(stack, method, EXPLAIN) == ("postgresql", "postgresql; mirror")
    await stack.firestore_server.stop(0)
    await stack.percent(0)
    assert await called(stack, method, EXPLAIN) == ("postgresql", "postgresql; fallback")


@pytest.mark.parametrize("method", METHODS)
async def test_a_pinned_read_is_answered_by_its_store_as_it_is(stack, method):
    for store in ("postgresql", "firestore"):
        pin = ("x-crossfade-store", store)
        assert await called(stack, method, pin, EXPLAIN) == (store, f"{store}; pinned")
    # Pending or not: a pin asks for no other store.
    await stack.sql.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('elsewhere', 'notes/1', 'notes', 'notes', 1, now() + interval '1 hour', 'commit')"""
    )
    pin = ("x-crossfade-store", "postgresql")
    assert (await called(stack, method, pin))[0] == "postgresql"
    assert sum(stack.telemetry.counts(READS).values()) == 0
    await stack.sql.execute("delete from crossfade.pending")


async def test_not_found_says_where_it_was_not_found(stack):
    async with grpc.aio.insecure_channel(stack.sidecar.address) as channel:
        stub: Any = crossfade_pb2_grpc.CrossfadeStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetDocument(
                crossfade_pb2.GetDocumentRequest(name=DATABASE.full("notes/2")),
                metadata=(EXPLAIN, ("x-crossfade-store", "postgresql")),
            )
        trailing = dict(raised.value.trailing_metadata() or ())
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert trailing["x-crossfade-served-by"] == "postgresql; pinned"


@pytest.mark.parametrize(
    ("metadata", "code", "words"),
    [
        (("x-crossfade-store", "mysql"), "INVALID_ARGUMENT", "one of firestore, postgresql"),
        (("x-crossfade-stroe", "firestore"), "INVALID_ARGUMENT", "unknown; there are"),
    ],
)
async def test_what_cannot_be_meant_is_refused(stack, metadata, code, words):
    with pytest.raises(grpc.aio.AioRpcError, match=words) as raised:
        await called(stack, "get", metadata)
    assert raised.value.code().name == code


async def test_a_commit_has_no_choice(stack):
    async with grpc.aio.insecure_channel(stack.sidecar.address) as channel:
        stub: Any = crossfade_pb2_grpc.CrossfadeStub(channel)
        request = crossfade_pb2.CommitRequest()
        request.writes.add().update.name = DATABASE.full("notes/9")
        with pytest.raises(grpc.aio.AioRpcError, match="only reads have a choice"):
            await stub.Commit(request, metadata=(("x-crossfade-store", "firestore"),))
    assert stack.memory.read("notes/9") is None


async def test_pins_have_to_be_allowed(url):
    async with running(url, Stage.SHADOW) as stack:
        with pytest.raises(grpc.aio.AioRpcError, match="allow_pin") as raised:
            await called(stack, "query", ("x-crossfade-store", "firestore"))
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


# --- the settings file -------------------------------------------------------------------------


async def test_the_file_shifts_reads_while_the_sidecar_runs(url, tmp_path, monkeypatch):
    monkeypatch.setattr("crossfade.jobs.settings_watch.PERIOD_SECONDS", 0.05)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    file = tmp_path / "crossfade.toml"
    file.write_text("")
    source = (file, lambda: load(file))
    async with running(url, Stage.SHADOW, source=source, allow_pin=True) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"by": "firestore"})
        await stack.settled()

        async def shifted() -> bool:
            return (await called(stack, "get", EXPLAIN))[1] == "postgresql; mirror"

        assert not await shifted()
        file.write_text("[collections.notes]\nread_percent = 100")
        await eventually(shifted)

        async def audited() -> bool:
            reply = await stack.admin.ListAudit(admin_pb2.ListAuditRequest(collection="notes"))
            return [(each.who, each.after) for each in reply.entries] == [
                ("settings file", '{"read_percent": 100.0}')
            ]

        await eventually(audited)

        file.write_text("[collections.notes]\nread_percent = 0\nread_procent = 1")

        async def refused() -> bool:
            return "read_procent" in (await stack.sidecar.status()).settings_problem

        await eventually(refused)
        assert await shifted()
        assert stack.telemetry.read_gauge(SETTINGS_REFUSED) == {(): 1.0}

        # What was set by command stands over the file.
        await stack.admin.SetTraffic(
            admin_pb2.SetTrafficRequest(collection="notes", read_percent=100)
        )
        file.write_text("[collections.notes]\nread_percent = 0")

        async def mended() -> bool:
            return not (await stack.sidecar.status()).settings_problem

        await eventually(mended)
        assert await shifted()
        assert stack.telemetry.read_gauge(SETTINGS_REFUSED) == {(): 0.0}
        await stack.admin.SetTraffic(admin_pb2.SetTrafficRequest(collection="notes", reset=True))
        assert not await shifted()
