"""What a caller may ask of the routing: where an answer came from, and to choose the store."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import structlog
from google.cloud.firestore_v1 import types

from crossfade.loading import load
from crossfade.plan import Stage
from crossfade.rpc.methods import METHODS
from crossfade.telemetry import READS, SETTINGS_REFUSED
from crossfade_api.v1 import admin_pb2, crossfade_pb2, crossfade_pb2_grpc, violet_pb2
from tests.grpc_caller import call
from tests.sidecar import DATABASE, Running, eventually, running

EXPLAIN = ("x-crossfade-explain", "1")
PINS = {store: ("x-crossfade-store", store) for store in ("firestore", "postgresql")}
NAME = DATABASE.full("notes/1")
OURS, FIRESTORES = "crossfade.v1.Crossfade", "google.firestore.v1.Firestore"


def query() -> Any:
    """All notes."""
    return types.StructuredQuery.pb()(from_=[{"collection_id": "notes"}])


def total() -> Any:
    """The sum of their n."""
    found = types.StructuredAggregationQuery.pb()(structured_query=query())
    found.aggregations.add(alias="n").sum.field.field_path = "n"
    return found


def ours(kind: Any, asked: Any) -> Any:
    """A request of crossfade.v1 for what is written as Firestore's own."""
    request = kind(parent=DATABASE.root)
    request.query.MergeFromString(asked.SerializeToString())
    return request


READING: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
    f"{OURS}/GetDocument": (
        crossfade_pb2.GetDocumentRequest(name=NAME),
        crossfade_pb2.GetDocumentReply,
        lambda reply: reply.document.fields,
    ),
    f"{OURS}/BatchGetDocuments": (
        crossfade_pb2.BatchGetDocumentsRequest(names=[NAME]),
        crossfade_pb2.BatchGetDocumentsReply,
        lambda reply: reply.found[0].fields,
    ),
    f"{OURS}/Query": (
        ours(crossfade_pb2.QueryRequest, query()),
        crossfade_pb2.QueryReply,
        lambda reply: reply.documents[0].fields,
    ),
    f"{OURS}/Aggregate": (
        ours(crossfade_pb2.AggregateRequest, total()),
        crossfade_pb2.AggregateReply,
        lambda reply: reply.result.aggregate_fields,
    ),
    f"{FIRESTORES}/GetDocument": (
        types.GetDocumentRequest.pb()(name=NAME),
        types.Document.pb(),
        lambda reply: reply.fields,
    ),
    f"{FIRESTORES}/BatchGetDocuments": (
        types.BatchGetDocumentsRequest.pb()(database=DATABASE.name, documents=[NAME]),
        types.BatchGetDocumentsResponse.pb(),
        lambda reply: reply.found.fields,
    ),
    f"{FIRESTORES}/ListDocuments": (
        types.ListDocumentsRequest.pb()(parent=DATABASE.root, collection_id="notes"),
        types.ListDocumentsResponse.pb(),
        lambda reply: reply.documents[0].fields,
    ),
    f"{FIRESTORES}/RunQuery": (
        types.RunQueryRequest.pb()(parent=DATABASE.root, structured_query=query()),
        types.RunQueryResponse.pb(),
        lambda reply: reply.document.fields,
    ),
    f"{FIRESTORES}/RunAggregationQuery": (
        types.RunAggregationQueryRequest.pb()(
            parent=DATABASE.root, structured_aggregation_query=total()
        ),
        types.RunAggregationQueryResponse.pb(),
        lambda reply: reply.result.aggregate_fields,
    ),
}
"""Every read whose store may be chosen: its request, its reply, and where that holds `n`."""
HOLDS = {1: "firestore", 2: "postgresql"}


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


@pytest.fixture
async def stack(url):
    """Firestore is the authority; the mirror holds another content of notes/1."""
    async with running(url, Stage.SHADOW, allow_pin=True) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"n": 1})
        await stack.settled()
        await stack.sql.execute("""update crossfade.documents set fields = '{"n": 2}'""")
        yield stack


async def ask(
    stack: Running, method: str, request: Any, *metadata: tuple[str, str]
) -> tuple[list[bytes], str | None]:
    """The messages of a method's answer, and what the trailing metadata say."""
    answer = await call(stack.sidecar.address, method, request.SerializeToString(), metadata)
    assert answer.code is grpc.StatusCode.OK, answer
    return answer.messages, answer.trailing.get("x-crossfade-served-by")


async def refusal(stack: Running, method: str, request: Any, *metadata: Any) -> tuple[str, str]:
    """The status and the sentence that a call is refused with."""
    answer = await call(stack.sidecar.address, method, request.SerializeToString(), metadata)
    return answer.code.name, answer.details


async def called(stack: Running, method: str, *metadata: tuple[str, str]) -> tuple[str, str | None]:
    """Who answered, by the content, and what the trailing metadata say."""
    request, kind, fields = READING[method]
    messages, told = await ask(stack, method, request, *metadata)
    return HOLDS[fields(kind.FromString(messages[0]))["n"].integer_value], told


async def all_called(stack: Running, *metadata: tuple[str, str]) -> dict[str, Any]:
    return {method: await called(stack, method, *metadata) for method in READING}


def each(who: str, told: str | None) -> dict[str, Any]:
    return dict.fromkeys(READING, (who, told))


async def test_an_answer_says_where_it_came_from_when_it_is_asked(stack):
    assert await all_called(stack) == each("firestore", None)
    assert await all_called(stack, EXPLAIN) == each("firestore", "firestore")
    await stack.percent(100)
    assert await all_called(stack, EXPLAIN) == each("postgresql", "postgresql; mirror")
    await stack.firestore_server.stop(0)
    await stack.percent(0)
    assert await all_called(stack, EXPLAIN) == each("postgresql", "postgresql; fallback")


async def test_a_call_that_reads_twice_is_told_of_both_stores(stack):
    """ListDocuments asks for names, and then for what they hold; each falls into a bucket of
    its own."""
    told = set()
    for percent in range(0, 101, 10):
        await stack.percent(percent)
        told.add((await called(stack, f"{FIRESTORES}/ListDocuments", EXPLAIN))[1])
    assert {"firestore", "postgresql; mirror"} < told
    assert told < {
        *("firestore", "postgresql; mirror"),
        *("firestore, postgresql; mirror", "postgresql; mirror, firestore"),
    }


async def test_a_pinned_read_is_answered_by_its_store_as_it_is(stack):
    for store, pin in PINS.items():
        assert await all_called(stack, pin, EXPLAIN) == each(store, f"{store}; pinned")
    # Pending or not: a pin asks for no other store.
    await stack.sql.execute(
        """insert into crossfade.pending
            (intent, path, collection_path, collection_id, epoch, lease_until, reason)
        values ('elsewhere', 'notes/1', 'notes', 'notes', 1, now() + interval '1 hour', 'commit')"""
    )
    assert await all_called(stack, PINS["postgresql"]) == each("postgresql", None)
    # They tell nothing of what the routing is judged by.
    assert sum(stack.telemetry.counts(READS).values()) == 0
    reads = {s.role for s in stack.telemetry.latencies() if s.operation not in {"commit", "put"}}
    assert reads == {"pinned"}
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


@pytest.mark.parametrize("method", [f"{OURS}/GetDocument", f"{FIRESTORES}/RunQuery"])
async def test_what_cannot_be_meant_is_refused(stack, method):
    request, _, _ = READING[method]
    for metadata, words in (
        (("x-crossfade-store", "mysql"), "one of firestore, postgresql"),
        (("x-crossfade-stroe", "firestore"), "unknown; there are"),
    ):
        code, told = await refusal(stack, method, request, metadata)
        assert code == "INVALID_ARGUMENT"
        assert words in told


def test_the_reads_that_have_a_choice_of_store():
    assert {name for name, needs in METHODS.items() if needs.choice} == READING.keys()


NO_CHOICE = "only reads have a choice of store: those of now, of named collections, and outside"


async def test_what_changes_something_has_no_choice_of_store(stack):
    name = DATABASE.full("notes/9")
    commit = crossfade_pb2.CommitRequest()
    commit.writes.add().update.name = name
    write = types.Write.pb()(delete=NAME)
    document = types.Document.pb()(name=name)
    for method, request in {
        f"{OURS}/Commit": commit,
        f"{FIRESTORES}/Commit": types.CommitRequest.pb()(database=DATABASE.name, writes=[write]),
        f"{FIRESTORES}/BatchWrite": types.BatchWriteRequest.pb()(
            database=DATABASE.name, writes=[write]
        ),
        f"{FIRESTORES}/UpdateDocument": types.UpdateDocumentRequest.pb()(document=document),
        f"{FIRESTORES}/CreateDocument": types.CreateDocumentRequest.pb()(
            parent=DATABASE.root, collection_id="notes", document_id="9"
        ),
        f"{FIRESTORES}/DeleteDocument": types.DeleteDocumentRequest.pb()(name=NAME),
        f"{FIRESTORES}/Write": types.WriteRequest.pb()(database=DATABASE.name),
        f"{FIRESTORES}/Listen": types.ListenRequest.pb()(database=DATABASE.name),
        f"{OURS}/Watch": crossfade_pb2.WatchRequest(),
        "violet.v1.Tasks/CreateTask": violet_pb2.CreateTaskRequest(task_id="9"),
        "crossfade.v1.Admin/SetTraffic": admin_pb2.SetTrafficRequest(read_percent=100),
    }.items():
        code, told = await refusal(stack, method, request, PINS["firestore"])
        assert (code, told.count(NO_CHOICE)) == ("INVALID_ARGUMENT", 1), method
    assert stack.memory.read("notes/9") is None
    assert stack.memory.read("notes/1") is not None
    assert await called(stack, f"{OURS}/GetDocument") == ("firestore", None)


async def test_what_the_authority_alone_is_asked_has_no_choice_of_store(stack):
    database = DATABASE.name
    begun, _ = await ask(
        stack,
        f"{FIRESTORES}/BeginTransaction",
        types.BeginTransactionRequest.pb()(database=database),
    )
    transaction = types.BeginTransactionResponse.pb().FromString(begun[0]).transaction
    past = {"seconds": int(time.time()) - 5}
    everything = types.StructuredQuery.pb()(from_=[{"all_descendants": True}])
    for method, kind, fields in (
        ("BeginTransaction", types.BeginTransactionRequest, {"database": database}),
        ("Rollback", types.RollbackRequest, {"database": database, "transaction": transaction}),
        ("GetDocument", types.GetDocumentRequest, {"name": NAME, "transaction": transaction}),
        ("GetDocument", types.GetDocumentRequest, {"name": NAME, "read_time": past}),
        (
            "BatchGetDocuments",
            types.BatchGetDocumentsRequest,
            {"database": database, "documents": [NAME], "new_transaction": {"read_only": {}}},
        ),
        (
            "ListDocuments",
            types.ListDocumentsRequest,
            {"parent": DATABASE.root, "collection_id": "notes", "show_missing": True},
        ),
        (
            "RunQuery",
            types.RunQueryRequest,
            {"parent": DATABASE.root, "structured_query": query(), "transaction": transaction},
        ),
        (
            "RunQuery",
            types.RunQueryRequest,
            {"parent": DATABASE.root, "structured_query": everything},
        ),
        (
            "RunAggregationQuery",
            types.RunAggregationQueryRequest,
            {
                "parent": DATABASE.root,
                "structured_aggregation_query": total(),
                "transaction": transaction,
            },
        ),
        ("ListCollectionIds", types.ListCollectionIdsRequest, {"parent": DATABASE.root}),
        (
            "PartitionQuery",
            types.PartitionQueryRequest,
            {"parent": DATABASE.root, "structured_query": query(), "partition_count": 1},
        ),
    ):
        request = kind.pb()(**fields)
        code, told = await refusal(stack, f"{FIRESTORES}/{method}", request, PINS["postgresql"])
        assert (code, told.count(NO_CHOICE)) == ("INVALID_ARGUMENT", 1), (method, told)

    # It is told of who answered all the same.
    request = types.GetDocumentRequest.pb()(name=NAME, transaction=transaction)
    await stack.percent(100)
    _, served_by = await ask(stack, f"{FIRESTORES}/GetDocument", request, EXPLAIN)
    assert served_by == "firestore"
    request = types.RunQueryRequest.pb()(parent=DATABASE.root, structured_query=everything)
    _, served_by = await ask(stack, f"{FIRESTORES}/RunQuery", request, EXPLAIN)
    assert served_by == "firestore"


async def test_reads_of_the_applications_own_operations_have_the_same_choice(stack):
    await stack.client.set("tasks/1", {"task_id": "1", "status": "pending"})
    await stack.settled()
    await stack.sql.execute("update violet.tasks set status = 'failed'")
    get, list_ = violet_pb2.GetRequest(id="1"), violet_pb2.ListTasksRequest()
    for method, request in {"GetTask": get, "ListTasks": list_}.items():
        for store, status in (("firestore", b"pending"), ("postgresql", b"failed")):
            name = f"violet.v1.Tasks/{method}"
            messages, told = await ask(stack, name, request, PINS[store], EXPLAIN)
            assert status in messages[0]
            assert told == f"{store}; pinned"
    # It counts at one moment, which is a transaction's.
    counted = violet_pb2.GetTaskStatisticsRequest()
    code, why = await refusal(
        stack, "violet.v1.Tasks/GetTaskStatistics", counted, PINS["firestore"]
    )
    assert (code, why.count(NO_CHOICE)) == ("INVALID_ARGUMENT", 1)
    _, served_by = await ask(stack, "violet.v1.Tasks/GetTaskStatistics", counted, EXPLAIN)
    assert served_by == "firestore"


async def test_pins_have_to_be_allowed(url):
    async with running(url, Stage.SHADOW) as stack:
        for method, (request, _, _) in READING.items():
            code, told = await refusal(stack, method, request, PINS["firestore"])
            assert code == "PERMISSION_DENIED"
            assert "allow_pin" in told


# --- the settings file -------------------------------------------------------------------------


async def test_the_file_shifts_reads_while_the_sidecar_runs(url, tmp_path, monkeypatch):
    monkeypatch.setattr("crossfade.jobs.settings_watch.PERIOD_SECONDS", 0.05)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    file = tmp_path / "crossfade.toml"
    file.write_text("")
    source = (file, lambda: load(file))
    async with running(url, Stage.SHADOW, source=source, allow_pin=True) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"n": 1})
        await stack.settled()

        async def shifted() -> bool:
            return (await called(stack, f"{OURS}/GetDocument", EXPLAIN))[1] == "postgresql; mirror"

        assert not await shifted()
        file.write_text("[collections.notes]\nread_percent = 100")
        await eventually(shifted)

        async def audited() -> bool:
            reply = await stack.admin.ListAudit(admin_pb2.ListAuditRequest(collection="notes"))
            return [(each.who, each.after) for each in reply.entries] == [
                ("settings file", '{"read_percent": 100.0}')
            ]

        await eventually(audited)

        async def refused() -> bool:
            return "read_procent" in (await stack.sidecar.status()).settings_problem

        with structlog.testing.capture_logs() as logs:
            file.write_text("[collections.notes]\nread_percent = 0\nread_procent = 1")
            await eventually(refused)
            await asyncio.sleep(0.2)  # it is looked at again, and told of no more
        (told,) = [line for line in logs if "settings file" in line["event"]]
        assert (told["log_level"], told["event"]) == (
            "error",
            "the settings file is refused, nothing is changed",
        )
        assert "read_procent" in told["problem"]
        assert told["problem"] == (await stack.sidecar.status()).settings_problem
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
