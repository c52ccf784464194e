"""FirestoreStore: intents and reads over the official emulator and the embedded one;
deadlines, retries and statuses against a server that follows a script."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore_v1 import types

from crossfade import errors, wire
from crossfade.document import Database, Document
from crossfade.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from crossfade.query import FieldFilter, Op, Query
from crossfade.store import Intent
from crossfade.stores.firestore import (
    INTENTS,
    FirestoreStore,
    IntentExists,
    connect,
)
from crossfade.write import Transform, TransformKind, Write
from tests.firestore_fixture import fresh_database

SECONDS = 30.0
SERVICE = "google.firestore.v1.Firestore"


# --- over real servers -------------------------------------------------------------------------


@pytest.fixture(
    params=["embedded_firestore", pytest.param("official_emulator", marks=pytest.mark.official)]
)
def address(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def database() -> Database:
    return fresh_database()


@pytest_asyncio.fixture
async def store(address: str, database: Database) -> AsyncIterator[FirestoreStore]:
    made = connect(database, address)
    yield made
    await made.close()


async def read(store: FirestoreStore, database: Database, path: str) -> Document | None:
    (stored,) = (await store.get([path], timeout=SECONDS)).documents
    return None if stored.data is None else wire.parse_document(stored.data, database)


def intent(name: str, request_id: str | None = None) -> Intent:
    return Intent(name, epoch=7, mirrored=True, request_id=request_id)


async def test_a_commit_writes_its_intent_document(
    store: FirestoreStore, database: Database
) -> None:
    writes = [Write("c/a", {"n": 1}), Write("c/b", None), Write("c/a", {"n": 2})]
    outcome = await store.commit(writes, timeout=SECONDS, intent=intent("i1"))
    assert len(outcome.writes) == 3
    proof = await read(store, database, f"{INTENTS}/i1")
    assert proof is not None
    shown = {name: proof.fields[name] for name in ("epoch", "paths", "outbox", "state")}
    assert shown == {"epoch": 7, "paths": ["c/a", "c/b"], "outbox": False, "state": "applied"}
    assert proof.update_time == outcome.commit_time


async def test_a_repeated_intent_is_told_from_an_existing_document(
    store: FirestoreStore, database: Database
) -> None:
    step = Write("c/a", {}, (), (Transform(("n",), TransformKind.INCREMENT, 1),))
    first = await store.commit([step], timeout=SECONDS, intent=intent("i1"))
    with pytest.raises(IntentExists) as again:
        await store.commit([step], timeout=SECONDS, intent=intent("i1"))
    assert (again.value.state, again.value.commit_time) == ("applied", first.commit_time)
    with pytest.raises(AlreadyExists) as existing:
        await store.commit([Write("c/a", {}, exists=False)], timeout=SECONDS, intent=intent("i2"))
    assert not isinstance(existing.value, IntentExists)
    document = await read(store, database, "c/a")
    assert document is not None
    assert document.fields == {"n": 1}
    assert await read(store, database, f"{INTENTS}/i2") is None


@pytest.mark.parametrize("kind", ["create", "update_time"])
async def test_a_repeated_commit_is_refused_for_its_intent(
    store: FirestoreStore, kind: str
) -> None:
    """Its preconditions fail the second time because the first was applied."""
    before = await store.commit([Write("c/a", {"n": 0})], timeout=SECONDS)
    write = Write("c/b", {"n": 1}, exists=False)
    if kind == "update_time":
        write = Write("c/a", {"n": 1}, update_time=before.commit_time)
    await store.commit([write], timeout=SECONDS, intent=intent("i1", "request"))
    with pytest.raises(IntentExists):
        await store.commit([write], timeout=SECONDS, intent=intent("i1", "request"))


async def test_refusals_with_an_intent_keep_their_classes(store: FirestoreStore) -> None:
    with pytest.raises(NotFound):
        await store.commit([Write("c/a", {}, exists=True)], timeout=SECONDS, intent=intent("i"))
    with pytest.raises(FailedPrecondition):
        await store.commit([Write("c/a", {}, update_time=5)], timeout=SECONDS, intent=intent("i"))
    await store.commit([Write("c/a", {})], timeout=SECONDS, intent=intent("i"))


async def test_revoke_before_and_after(store: FirestoreStore, database: Database) -> None:
    assert await store.revoke("i1", timeout=SECONDS)
    assert await store.revoke("i1", timeout=SECONDS), "revoked before: still revoked"
    with pytest.raises(IntentExists) as refused:
        await store.commit([Write("c/a", {"n": 1})], timeout=SECONDS, intent=intent("i1"))
    assert refused.value.state == "revoked"
    assert await read(store, database, "c/a") is None
    await store.commit([Write("c/a", {"n": 1})], timeout=SECONDS, intent=intent("i2"))
    assert not await store.revoke("i2", timeout=SECONDS)


async def test_revoke_races_a_commit(store: FirestoreStore, database: Database) -> None:
    """Exactly one of the two wins, always."""
    for number in range(10):
        name, path = f"i{number}", f"c/{number}"
        commit = store.commit([Write(path, {})], timeout=SECONDS, intent=intent(name))
        applied, revoked = await asyncio.gather(
            commit, store.revoke(name, timeout=SECONDS), return_exceptions=True
        )
        assert isinstance(revoked, bool)
        assert revoked is isinstance(applied, IntentExists)
        assert revoked is (await read(store, database, path) is None)


async def test_the_outcome_of_an_intent(store: FirestoreStore) -> None:
    outcome = await store.commit(
        [Write("c/a", {}), Write("c/b", {})], timeout=SECONDS, intent=intent("i1")
    )
    await store.revoke("i2", timeout=SECONDS)
    known = await store.intent_outcome("i1", 2, timeout=SECONDS)
    assert known is not None
    assert known.replayed
    assert known.commit_time == outcome.commit_time
    assert len(known.writes) == 2
    assert await store.intent_outcome("i2", 2, timeout=SECONDS) is None
    with pytest.raises(Unavailable):
        await store.intent_outcome("i3", 2, timeout=SECONDS)


async def test_exact_times(store: FirestoreStore) -> None:
    """A missing document has the server's read_time as version, if it is asked for."""
    commit = await store.commit([Write("c/a", {})], timeout=SECONDS)
    cheap = await store.get(["c/zz"], timeout=SECONDS)
    assert cheap.documents[0].version is None
    exact = await store.get(["c/zz"], timeout=SECONDS, exact_times=True)
    assert exact.documents[0].version == (0, exact.read_time)
    assert exact.read_time >= commit.commit_time
    later = await store.commit([Write("c/zz", {})], timeout=SECONDS)
    assert later.commit_time > exact.read_time
    for paths in (["c/a"], ["c/a", "c/zz"]):
        reading = await store.get(paths, timeout=SECONDS)
        assert reading.documents[0].version == (0, commit.commit_time)


async def test_a_name_too_long_for_the_message_is_missing_all_the_same(
    store: FirestoreStore,
) -> None:
    path = "c/" + "x" * 1_400
    assert (await store.get([path], timeout=SECONDS)).documents[0].data is None


async def test_raw_bytes_pass_through(store: FirestoreStore, database: Database) -> None:
    """What came over the wire is sent on as it came."""
    message = types.Write.pb()()
    message.update.name = database.full("c/a")
    message.update.fields["raw"].integer_value = 1
    decoded = Write("c/a", {"raw": 2}, raw=message.SerializeToString())
    await store.commit([decoded], timeout=SECONDS)
    document = await read(store, database, "c/a")
    assert document is not None
    assert document.fields == {"raw": 1}
    query = Query(collection="c", where=FieldFilter(("raw",), Op.EQUAL, 2))
    same = wire.encode_query(Query(collection="c"), database)
    query.keep_raw(same)
    pages = [page async for page in store.query(query, timeout=SECONDS)]
    assert b"raw" in pages[0].frames


async def test_the_first_page_comes_early_and_pages_are_bounded(store: FirestoreStore) -> None:
    for start in (0, 400):
        writes = [Write(f"c/{n:04}", {"n": n}) for n in range(start, start + 400)]
        await store.commit(writes, timeout=SECONDS)
    sizes = [
        sum(number == 1 for number, _ in wire.scan(page.frames))
        async for page in store.query(Query(collection="c"), timeout=SECONDS)
    ]
    assert sum(sizes) == 800
    assert sizes[0] == 30
    assert max(sizes) == 300


# --- against a script --------------------------------------------------------------------------

Step = Callable[[bytes, Any], Awaitable[bytes]]


class Script:
    """A server that answers the calls of any method by the steps, and counts them."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.calls = 0
        self.called = asyncio.Event()
        self.metadata: dict[str, str] = {}

    async def answer(self, data: bytes, context: Any) -> bytes:
        self.calls += 1
        self.called.set()
        self.metadata = dict(context.invocation_metadata())
        return await self.steps[min(self.calls, len(self.steps)) - 1](data, context)


def status(code: grpc.StatusCode, details: str = "said the server") -> Step:
    async def step(_: bytes, context: Any) -> bytes:
        await context.abort(code, details)
        return b""

    return step


def reply(data: bytes) -> Step:
    async def step(_: bytes, __: Any) -> bytes:
        return data

    return step


async def hang(_: bytes, __: Any) -> bytes:
    await asyncio.sleep(60)
    return b""


@pytest_asyncio.fixture
async def scripted() -> AsyncIterator[tuple[Script, FirestoreStore]]:
    script = Script()

    async def unary(data: bytes, context: Any) -> bytes:
        return await script.answer(data, context)

    async def stream(data: bytes, context: Any) -> AsyncIterator[bytes]:
        yield await script.answer(data, context)

    handlers: dict[str, Any] = {
        "GetDocument": grpc.unary_unary_rpc_method_handler(unary),
        "Commit": grpc.unary_unary_rpc_method_handler(unary),
        "BatchGetDocuments": grpc.unary_stream_rpc_method_handler(stream),
        "RunQuery": grpc.unary_stream_rpc_method_handler(stream),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = connect(Database("p"), f"127.0.0.1:{port}")
    yield script, store
    await store.close()
    await server.stop(0)


Scripted = tuple[Script, FirestoreStore]
Call = Callable[[FirestoreStore, float], Awaitable[Any]]


async def get(store: FirestoreStore, timeout: float) -> Any:
    return await store.get(["c/a"], timeout=timeout)


async def get_two(store: FirestoreStore, timeout: float) -> Any:
    return await store.get(["c/a", "c/b"], timeout=timeout)


async def query(store: FirestoreStore, timeout: float) -> Any:
    return [page async for page in store.query(Query(collection="c"), timeout=timeout)]


async def commit(store: FirestoreStore, timeout: float) -> Any:
    return await store.commit([Write("c/a", {})], timeout=timeout)


READS = [get, get_two, query]
CODES = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.INTERNAL: Unavailable,
    grpc.StatusCode.UNKNOWN: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: DeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", [*READS, commit])
async def test_statuses_become_our_errors(
    scripted: Scripted, code: grpc.StatusCode, call: Call
) -> None:
    script, store = scripted
    script.steps = [status(code, "y" * 1_000)]
    with pytest.raises(errors.CrossfadeError) as raised:
        await call(store, SECONDS)
    assert type(raised.value) is CODES[code]
    if code is not grpc.StatusCode.CANCELLED:
        assert str(raised.value) == "y" * 300


async def test_every_status_has_a_class() -> None:
    """One that nobody thought of leaves the outcome open."""
    from crossfade.stores.firestore import from_rpc_error

    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        none: Any = grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(code, none, none, details=None)
        assert isinstance(from_rpc_error(error), errors.CrossfadeError)
        assert str(from_rpc_error(error)) == code.name


@pytest.mark.parametrize("call", READS)
async def test_a_read_is_tried_twice(scripted: Scripted, call: Call) -> None:
    script, store = scripted
    script.steps = [status(grpc.StatusCode.UNAVAILABLE)]
    with pytest.raises(Unavailable):
        await call(store, SECONDS)
    assert script.calls == 2


async def test_a_read_succeeds_the_second_time(scripted: Scripted) -> None:
    script, store = scripted
    document = types.Document.pb()(name="projects/p/databases/(default)/documents/c/a")
    document.update_time.seconds = 5
    script.steps = [status(grpc.StatusCode.UNAVAILABLE), reply(document.SerializeToString())]
    reading = await store.get(["c/a"], timeout=SECONDS)
    assert reading.documents[0].data == document.SerializeToString()
    assert reading.documents[0].version == (0, 5_000_000)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED]
)
async def test_a_commit_is_tried_once(scripted: Scripted, code: grpc.StatusCode) -> None:
    script, store = scripted
    script.steps = [status(code)]
    with pytest.raises(errors.CrossfadeError):
        await commit(store, SECONDS)
    assert script.calls == 1


@pytest.mark.parametrize("call", [*READS, commit])
async def test_deadlines(scripted: Scripted, call: Call) -> None:
    script, store = scripted
    script.steps = [hang]
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await call(store, 0.2)
    assert time.monotonic() - started < 30
    assert script.calls == 1, "a deadline is no reason to ask again"
    with pytest.raises(DeadlineExceeded):
        await call(store, 0.0)
    assert script.calls == 1


async def test_our_own_cancellation_stays_one(scripted: Scripted) -> None:
    script, store = scripted
    script.steps = [hang]
    task = asyncio.ensure_future(get(store, SECONDS))
    await script.called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await get_two(store, SECONDS)


async def test_not_found_is_said_of_the_document_only(scripted: Scripted) -> None:
    """A database that is not there is no missing document."""
    script, store = scripted
    script.steps = [status(grpc.StatusCode.NOT_FOUND, "The database (default) does not exist")]
    for call in READS:
        with pytest.raises(FailedPrecondition):
            await call(store, SECONDS)
    name = "projects/p/databases/(default)/documents/c/a"
    script.steps = [status(grpc.StatusCode.NOT_FOUND, f'Document "{name}" not found.')]
    reading = await store.get(["c/a"], timeout=SECONDS)
    assert reading.documents[0].data is None


async def test_an_answer_that_ends_early_is_no_missing_document(scripted: Scripted) -> None:
    script, store = scripted
    missing = types.BatchGetDocumentsResponse.pb()(
        missing="projects/p/databases/(default)/documents/c/b"
    )
    script.steps = [reply(missing.SerializeToString())]
    with pytest.raises(Unavailable, match="1 of 2"):
        await get_two(store, SECONDS)


@pytest.mark.parametrize("junk", [b"\xff\xff", b"\x0a\x7fshort", b"\x0b"])
@pytest.mark.parametrize("call", [get, get_two, commit])
async def test_answers_that_cannot_be_read(scripted: Scripted, call: Call, junk: bytes) -> None:
    script, store = scripted
    script.steps = [reply(junk)]
    with pytest.raises(Unavailable):
        await call(store, SECONDS)


async def test_a_commit_whose_answer_has_an_illegal_time_is_not_refused(
    scripted: Scripted,
) -> None:
    """INVALID_ARGUMENT would say that nothing was done."""
    script, store = scripted
    answer = types.CommitResponse.pb()()
    answer.commit_time.seconds = 2**60
    script.steps = [reply(answer.SerializeToString())]
    with pytest.raises(Unavailable):
        await commit(store, SECONDS)


async def test_headers(scripted: Scripted) -> None:
    script, store = scripted
    script.steps = [status(grpc.StatusCode.ABORTED)]
    name = "projects/p/databases/%28default%29"
    expected = {
        get: f"name={name}/documents/c/a",
        get_two: f"database={name}",
        query: f"parent={name}/documents",
        commit: f"database={name}",
    }
    for call, params in expected.items():
        with pytest.raises(errors.Aborted):
            await call(store, SECONDS)
        assert script.metadata["x-goog-request-params"] == params
        assert script.metadata["google-cloud-resource-prefix"] == "projects/p/databases/(default)"
        assert script.metadata["authorization"] == "Bearer owner"


async def test_nobody_listens(database: Database) -> None:
    store = connect(database, "127.0.0.1:1")
    for call in (*READS, commit):
        with pytest.raises(Unavailable):
            await call(store, 5.0)
    await store.close()
    with pytest.raises(Unavailable):
        await commit(store, 5.0)


async def test_messages_of_eleven_mebibytes(scripted: Scripted) -> None:
    script, store = scripted
    frame = types.RunQueryResponse.pb()()
    frame.document.fields["x"].string_value = "x" * (11 * 1_048_576)
    script.steps = [reply(frame.SerializeToString())]
    (page,) = await query(store, SECONDS)
    assert len(page.frames) > 11 * 1_048_576


# --- Google's service --------------------------------------------------------------------------


async def test_a_channel_with_the_librarys_credentials() -> None:
    store = connect(Database("p"), credentials=AnonymousCredentials())
    assert isinstance(store, FirestoreStore)
    await store.close()


async def test_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from google.auth import exceptions

    def nobody(*_: Any, **__: Any) -> Any:
        raise exceptions.DefaultCredentialsError("no credentials were found")

    monkeypatch.setattr("google.auth.default", nobody)
    with pytest.raises(Unauthenticated, match="no credentials"):
        connect(Database("p"))
