"""The embedded Firestore as its callers meet it: the genuine client, and raw frames."""

import math
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import structlog
from google.api_core.exceptions import AlreadyExists, Conflict, FailedPrecondition, NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.base_query import FieldFilter, Or
from google.cloud.firestore_v1.vector import Vector

from crossfade.document import Database
from crossfade.errors import Unavailable
from crossfade.query import Query
from crossfade.rpc import firestore_v1
from crossfade.store import NOW, At
from crossfade.stores.memory import MemoryStore, MemoryStores
from crossfade.write import Write
from tests.firestore_fixture import fresh_database

SERVICE = "/google.firestore.v1.Firestore/"


# --- the genuine client ------------------------------------------------------------------------


@pytest_asyncio.fixture
async def client(
    embedded_firestore: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[firestore.AsyncClient]:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", embedded_firestore)
    made = firestore.AsyncClient(
        project=fresh_database().project, credentials=AnonymousCredentials()
    )
    yield made
    made.close()


async def test_client_set_get_update_delete(client: Any) -> None:
    document = client.collection("c").document("a")
    assert not (await document.get()).exists
    await document.set({"n": 1, "f": 1.0, "m": {"x": [1, None]}, "v": Vector([1.0, 2.0])})
    snapshot = await document.get()
    assert snapshot.to_dict() == {
        "n": 1,
        "f": 1.0,
        "m": {"x": [1, None]},
        "v": Vector([1.0, 2.0]),
    }
    assert isinstance(snapshot.get("n"), int)
    assert isinstance(snapshot.get("f"), float)
    assert snapshot.create_time == snapshot.update_time
    await document.update({"m.x": firestore.DELETE_FIELD, "n": 2})
    assert (await document.get(["n", "m"])).to_dict() == {"n": 2, "m": {}}
    await document.set({"m": {"y": 1}}, merge=True)
    assert (await document.get(["m"])).to_dict() == {"m": {"y": 1}}
    await document.delete()
    assert not (await document.get()).exists


async def test_client_preconditions(client: Any) -> None:
    document = client.collection("c").document("a")
    with pytest.raises(NotFound):
        await document.update({"n": 1})
    await document.create({"n": 1})
    with pytest.raises((AlreadyExists, Conflict)):
        await document.create({"n": 1})
    stale = client.write_option(last_update_time=(await document.get()).update_time)
    await document.set({"n": 2})
    with pytest.raises(FailedPrecondition):
        await document.update({"n": 3}, option=stale)


async def test_client_transforms(client: Any) -> None:
    document = client.collection("c").document("a")
    await document.set({"n": 1, "l": [1, 2], "at": firestore.SERVER_TIMESTAMP})
    await document.update(
        {
            "n": firestore.Increment(2),
            "l": firestore.ArrayUnion([2, 3]),
            "high": firestore.Maximum(7),
            "low": firestore.Minimum(math.nan),
        }
    )
    await document.update({"l": firestore.ArrayRemove([1])})
    found = (await document.get()).to_dict()
    assert (found["n"], found["l"], found["high"]) == (3, [2, 3], 7)
    assert math.isnan(found["low"])
    assert found["at"].year > 2000


async def test_client_batch_and_get_all(client: Any) -> None:
    c = client.collection("c")
    batch = client.batch()
    for number in range(5):
        batch.set(c.document(f"{number}"), {"n": number})
    batch.delete(c.document("4"))
    results = await batch.commit()
    assert len(results) == 6
    asked = [c.document(name) for name in ("4", "0", "nobody", "0")]
    found = {snapshot.id: snapshot.exists async for snapshot in client.get_all(asked)}
    assert found == {"0": True, "4": False, "nobody": False}


async def test_client_queries(client: Any) -> None:
    c = client.collection("c")
    for number in range(6):
        await c.document(f"{number}").set({"n": number, "even": number % 2 == 0, "l": [number]})
    await c.document("3").collection("c").document("x").set({"n": 100})

    async def ids(query: Any) -> list[str]:
        return [snapshot.id async for snapshot in query.stream()]

    assert await ids(c) == list("012345")
    assert await ids(c.where(filter=FieldFilter("n", ">", 3))) == ["4", "5"]
    assert await ids(c.where(filter=FieldFilter("even", "==", True)).limit(2)) == ["0", "2"]
    either = Or([FieldFilter("n", "==", 5), FieldFilter("l", "array_contains", 1)])
    assert await ids(c.where(filter=either)) == ["1", "5"]
    down = c.order_by("n", direction=firestore.Query.DESCENDING)
    assert await ids(down.limit(2)) == ["5", "4"]
    assert await ids(down.start_after({"n": 4}).limit(2)) == ["3", "2"]
    at = await c.document("2").get()
    assert await ids(c.order_by("n").start_at(at).end_before({"n": 4})) == ["2", "3"]
    assert await ids(c.where(filter=FieldFilter("n", "in", [1, 4]))) == ["1", "4"]
    assert await ids(client.collection_group("c").where(filter=FieldFilter("n", "==", 100))) == [
        "x"
    ]
    last = await c.order_by("n").limit_to_last(2).get()
    assert [snapshot.id for snapshot in last] == ["4", "5"]
    selected = [s.to_dict() async for s in c.select(["even"]).limit(1).stream()]
    assert selected == [{"even": True}]
    page = c.where(filter=FieldFilter("n", ">=", 9))
    assert await ids(page) == []


async def test_databases_and_projects_are_apart(
    embedded_firestore: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", embedded_firestore)
    project = fresh_database().project
    one = firestore.AsyncClient(project=project, credentials=AnonymousCredentials())
    two = firestore.AsyncClient(
        project=project, credentials=AnonymousCredentials(), database="second"
    )
    await one.collection("c").document("a").set({"n": 1})
    assert not (await two.collection("c").document("a").get()).exists
    one.close()
    two.close()


# --- frames ------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def channel(embedded_firestore: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(
        embedded_firestore, options=[("grpc.max_send_message_length", 30_000_000)]
    ) as made:
        yield made


async def stream(channel: Any, rpc: str, request: Any, response: Any) -> list[Any]:
    call = channel.unary_stream(SERVICE + rpc)(request.SerializeToString(), timeout=10)
    return [response.pb().FromString(frame) async for frame in call]


async def commit(channel: Any, database: Database, **documents: Any) -> Any:
    request = types.CommitRequest.pb()(database=database.name)
    for name, number in documents.items():
        write = request.writes.add()
        write.update.name = database.full(f"c/{name}")
        write.update.fields["n"].integer_value = number
        write.update.fields["x"].string_value = "x"
    data = await channel.unary_unary(SERVICE + "Commit")(request.SerializeToString(), timeout=10)
    return types.CommitResponse.pb().FromString(data)


async def test_batch_get_found_first_then_missing_each_once(channel: grpc.aio.Channel) -> None:
    database = fresh_database()
    await commit(channel, database, a=1, b=2)
    request = types.BatchGetDocumentsRequest.pb()(database=database.name)
    names = [database.full(f"c/{name}") for name in ("zz", "b", "a", "b", "zz")]
    request.documents.extend(names)
    request.mask.field_paths.append("n")
    frames = await stream(channel, "BatchGetDocuments", request, types.BatchGetDocumentsResponse)
    assert [frame.found.name or frame.missing for frame in frames] == [names[1], names[2], names[0]]
    assert [list(frame.found.fields) for frame in frames] == [["n"], ["n"], []]
    assert frames[0].found.HasField("update_time")
    assert len({(f.read_time.seconds, f.read_time.nanos) for f in frames}) == 1
    assert frames[0].read_time.seconds > 0


async def query(channel: grpc.aio.Channel, database: Database, **options: Any) -> list[Any]:
    request = types.RunQueryRequest.pb()(parent=database.root)
    request.structured_query.from_.add(collection_id="c")
    if "limit" in options:
        request.structured_query.limit.value = options["limit"]
    request.structured_query.offset = options.get("offset", 0)
    return await stream(channel, "RunQuery", request, types.RunQueryResponse)


async def test_run_query_frames(channel: grpc.aio.Channel) -> None:
    database = fresh_database()
    (empty,) = await query(channel, database)
    assert not empty.HasField("document")
    assert empty.read_time.seconds > 0
    assert empty.done
    await commit(channel, database, a=1, b=2, c=3)
    frames = await query(channel, database, limit=2)
    assert [frame.document.name[-1] for frame in frames] == ["a", "b"]
    assert [frame.done for frame in frames] == [False, True]
    assert all(frame.read_time.seconds > 0 for frame in frames)
    skipping = await query(channel, database, offset=1)
    assert [frame.skipped_results for frame in skipping] == [1, 0]


async def test_get_document(channel: Any) -> None:
    database = fresh_database()
    await commit(channel, database, a=1)
    get = channel.unary_unary(SERVICE + "GetDocument")
    request = types.GetDocumentRequest.pb()(name=database.full("c/a"))
    document = types.Document.pb().FromString(await get(request.SerializeToString(), timeout=10))
    assert document.name == database.full("c/a")
    assert sorted(document.fields) == ["n", "x"]
    request.mask.field_paths.append("x")
    document = types.Document.pb().FromString(await get(request.SerializeToString(), timeout=10))
    assert list(document.fields) == ["x"]
    request.name = database.full("c/b")
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await get(request.SerializeToString(), timeout=10)
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert request.name in str(missing.value.details())


async def test_commit_times(channel: grpc.aio.Channel) -> None:
    database = fresh_database()
    first = await commit(channel, database, a=1, b=1)
    assert first.write_results[0].update_time == first.commit_time
    second = await commit(channel, database, a=1, b=2)
    assert second.write_results[0].update_time == first.commit_time
    assert second.write_results[1].update_time == second.commit_time


REFUSED: dict[str, tuple[str, Any]] = {
    "relative name": ("GetDocument", types.GetDocumentRequest.pb()(name="c/a")),
    "a collection": (
        "GetDocument",
        types.GetDocumentRequest.pb()(name="projects/p/databases/d/documents/c"),
    ),
    "a reserved id": (
        "GetDocument",
        types.GetDocumentRequest.pb()(name="projects/p/databases/d/documents/c/__x__"),
    ),
    "another database": (
        "BatchGetDocuments",
        types.BatchGetDocumentsRequest.pb()(
            database="projects/p/databases/d",
            documents=["projects/q/databases/d/documents/c/a"],
        ),
    ),
    "no database": ("Commit", types.CommitRequest.pb()(database="")),
    "a write of nothing": (
        "Commit",
        types.CommitRequest.pb()(
            database="projects/p/databases/d", writes=[types.Write.pb()(delete="")]
        ),
    ),
    "a relative write": (
        "Commit",
        types.CommitRequest.pb()(
            database="projects/p/databases/d", writes=[types.Write.pb()(delete="c/a")]
        ),
    ),
    "no query": (
        "RunQuery",
        types.RunQueryRequest.pb()(parent="projects/p/databases/d/documents"),
    ),
    "no parent": ("RunQuery", types.RunQueryRequest.pb()()),
}


async def refusal(channel: grpc.aio.Channel, rpc: str, data: bytes) -> grpc.aio.AioRpcError:
    """The error of a call that must fail, whatever its kind."""
    calls: Any = channel
    if rpc in {"BatchGetDocuments", "RunQuery", "RunAggregationQuery", "ExecutePipeline"}:
        call = calls.unary_stream(SERVICE + rpc)(data, timeout=10)
    elif rpc in {"Listen", "Write"}:
        call = calls.stream_stream(SERVICE + rpc)(iter([data]), timeout=10)
    else:
        call = calls.unary_unary(SERVICE + rpc)(data, timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (call.read() if hasattr(call, "read") else call)
    return refused.value


@pytest.mark.parametrize("name", REFUSED)
async def test_bad_requests(channel: grpc.aio.Channel, name: str) -> None:
    rpc, request = REFUSED[name]
    error = await refusal(channel, rpc, request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert ":" in str(error.details()), "the message names the field"


@pytest.mark.parametrize("rpc", ["GetDocument", "BatchGetDocuments", "RunQuery", "Commit"])
async def test_bytes_that_are_no_request(channel: grpc.aio.Channel, rpc: str) -> None:
    error = await refusal(channel, rpc, b"\xff\xff\xff")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_commit_over_ten_mebibytes(channel: grpc.aio.Channel) -> None:
    database = fresh_database()
    request = types.CommitRequest.pb()(database=database.name)
    for number in range(11):
        write = request.writes.add()
        write.update.name = database.full(f"c/{number}")
        write.update.fields["x"].string_value = "x" * 1_000_000
    error = await refusal(channel, "Commit", request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "10485760" in str(error.details())
    del request.writes[10:]
    send: Any = channel.unary_unary(SERVICE + "Commit")
    data = await send(request.SerializeToString(), timeout=20)
    assert len(types.CommitResponse.pb().FromString(data).write_results) == 10


async def test_pipelines_are_refused(channel: grpc.aio.Channel) -> None:
    error = await refusal(channel, "ExecutePipeline", b"")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "Enterprise" in str(error.details())


@pytest.mark.parametrize("rpc", ["RunQuery", "RunAggregationQuery"])
async def test_explaining_is_refused(channel: grpc.aio.Channel, rpc: str) -> None:
    kind = getattr(types, f"{rpc}Request").pb()
    request = kind(parent="projects/p/databases/d/documents", explain_options={"analyze": True})
    if rpc == "RunQuery":
        request.structured_query.from_.add(collection_id="c")
    else:
        request.structured_aggregation_query.structured_query.from_.add(collection_id="c")
    error = await refusal(channel, rpc, request.SerializeToString())
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "explain_options" in str(error.details())


def test_every_method_of_the_protocol_is_served() -> None:
    from google.cloud.firestore_v1.services.firestore.transports import FirestoreTransport

    names = {
        "".join(part.title() for part in name.split("_"))
        for name, member in vars(FirestoreTransport).items()
        if isinstance(member, property) and not name.startswith("_")
    }
    names -= {"Host", "Kind", "OperationsClient", "GetOperation", "CancelOperation"}
    names -= {"DeleteOperation", "ListOperations"}
    assert names == set(firestore_v1.methods(MemoryStores()))


# --- the server --------------------------------------------------------------------------------


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            await firestore_v1.serve(MemoryStores(), "127.0.0.1", port)


async def test_a_second_server_does_not_share_the_port() -> None:
    server = await firestore_v1.serve(MemoryStores(), "127.0.0.1", 0)
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(OSError, match=str(port)):
        await firestore_v1.serve(MemoryStores(), "127.0.0.1", port)
    await server.stop(0)


class Broken(MemoryStore):
    """Fails in a way that nobody foresaw, with a value in the message."""

    async def get(self, *_: Any, **__: Any) -> Any:
        raise KeyError("secret value")

    async def query(self, query: Query, *, timeout: float, at: At = NOW) -> AsyncIterator[Any]:
        raise Unavailable("gone for a while")
        yield


async def test_defects_are_logged_by_place_and_not_by_value() -> None:
    server = await firestore_v1.serve(Broken, "127.0.0.1", 0)
    database = fresh_database()
    async with grpc.aio.insecure_channel(server.address) as channel:
        request = types.GetDocumentRequest.pb()(name=database.full("c/a"))
        with structlog.testing.capture_logs() as logged:
            error = await refusal(channel, "GetDocument", request.SerializeToString())
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(error.details())
        assert logged[0]["at"].startswith("test_embedded_firestore.py:")
        assert "secret" not in str(logged)
        with pytest.raises(grpc.aio.AioRpcError) as unavailable:
            await query(channel, database)
        assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(0)


async def test_a_query_sees_one_state() -> None:
    """The result is fixed when the query starts, whatever is committed while it is read."""
    database = fresh_database()
    store = MemoryStore(database)
    for start in range(0, 900, 300):
        store.apply_commit([Write(f"c/{n}", {"n": n}) for n in range(start, start + 300)])
    pages = store.query(Query(collection="c"), timeout=5)
    first = await anext(pages)
    store.apply_commit([Write(f"c/{n}", None) for n in range(900)])
    rest = [page async for page in pages]
    assert first.frames
    assert sum(page.frames.count(b"/documents/c/") for page in [first, *rest]) == 900
