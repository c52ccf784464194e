"""Both clients over a real channel, against a sidecar of a few lines."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from crossfade_api.v1 import crossfade_pb2 as pb
from crossfade_client import (
    SERVER_TIMESTAMP,
    AlreadyExistsError,
    ArrayUnion,
    AsyncBatch,
    AsyncCrossfade,
    Average,
    Batch,
    Count,
    Crossfade,
    DeadlineExceededError,
    FailedPreconditionError,
    Increment,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    Query,
    Sum,
    UnavailableError,
    UnimplementedError,
    Write,
)
from tests.fake_sidecar import Failure, FakeSidecar
from tests.waiting import Waiting

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def drained(query):
    return [snapshot async for snapshot in query]


@pytest.fixture(params=[AsyncCrossfade, Waiting], ids=["awaiting", "waiting"])
def connect(request) -> Any:
    """One of the two clients; `connect(target, ...)` makes it."""
    return request.param


@pytest.fixture
async def sidecar(connect) -> AsyncIterator[tuple[FakeSidecar, Any]]:
    fake = FakeSidecar()
    async with connect(await fake.start()) as client:
        yield fake, client
    await fake.stop()


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(AsyncCrossfade) == methods(Crossfade)
    assert methods(AsyncBatch) == methods(Batch)


async def test_a_document_goes_there_and_back(sidecar):
    _, client = sidecar
    written = await client.set("a/b", {"n": 1, "x": 1.0, "at": SERVER_TIMESTAMP})
    found = await client.get("a/b")
    assert found.path == "a/b"
    assert found.id == "b"
    at = written.commit_time.replace(microsecond=written.commit_time.microsecond // 1_000 * 1_000)
    assert found.fields == {"n": 1, "x": 1.0, "at": at}  # REQUEST_TIME has milliseconds
    assert [type(found.fields[name]) for name in ("n", "x")] == [int, float]
    assert found.update_time == written.update_time == written.commit_time
    assert written.writes[0].transform_results == (at,)


async def test_missing_is_an_error_of_get_and_none_of_find(sidecar):
    _, client = sidecar
    with pytest.raises(NotFoundError) as caught:
        await client.get("a/none")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert "a/none" in caught.value.details
    assert await client.find("a/none") is None


@pytest.mark.parametrize("call", ["get", "find", "get_all", "query", "count"])
async def test_an_outage_is_never_an_empty_answer(sidecar, call):
    fake, client = sidecar
    methods = {"get_all": "BatchGetDocuments", "query": "Query", "count": "Aggregate"}
    fake.failures = [Failure(methods.get(call, "GetDocument"), UNAVAILABLE, times=99)]
    if call == "query":
        asked = drained(client.query("a", timeout=1.0))
    else:
        argument = {"get_all": ["a/b"], "count": "a"}.get(call, "a/b")
        asked = getattr(client, call)(argument, timeout=1.0)
    with pytest.raises(UnavailableError, match="told to"):
        await asked


async def test_get_all_keeps_the_order_and_marks_the_missing(sidecar):
    _, client = sidecar
    await client.commit([Write.set(f"a/{i}", {"i": i}) for i in range(3)])
    found = await client.get_all(["a/2", "a/none", "a/0", "a/2"])
    assert [each and each.fields["i"] for each in found] == [2, None, 0, 2]
    assert await client.get_all([]) == []


async def test_queries_stream_all_pages(sidecar):
    fake, client = sidecar
    await client.commit([Write.set(f"a/{i}", {"i": i}) for i in range(8)])
    query = Query("a").where("i", ">=", 1).order_by("i", descending=True)
    assert [s.fields["i"] async for s in client.query(query)] == [7, 6, 5, 4, 3, 2, 1]
    assert [s.path async for s in client.query("nothing")] == []
    with pytest.raises(InvalidArgumentError):
        _ = [s async for s in client.query(query.limit(-1))]
    assert fake.calls["Query"] == 3


async def test_a_query_may_be_left_early(sidecar):
    _, client = sidecar
    await client.commit([Write.set(f"a/{i}", {}) for i in range(8)])
    pages = client.query("a")
    assert (await anext(pages)).path == "a/0"
    await pages.aclose()
    assert (await client.get("a/7")).path == "a/7"


async def test_counts_sums_and_averages(sidecar):
    fake, client = sidecar
    await client.commit([Write.set(f"a/{i}", {"i": i, "b": {"x": i / 2}}) for i in range(8)])
    await client.set("a/none", {"other": True})
    assert await client.count("a") == 9
    assert await client.count("a", up_to=2) == 2
    assert await client.count("nothing") == 0
    large = Query("a").where("i", ">", 4)
    assert await client.count(large) == 3
    found = await client.sum(large, "i")
    assert (found, type(found)) == (18, int)
    found = await client.sum("a", "b.x")
    assert (found, type(found)) == (14.0, float)
    assert await client.sum("nothing", "i") == 0
    assert await client.average(large, ("b", "x")) == 3.0
    assert await client.average("nothing", "i") is None
    several = {"how many": Count(), "all": Sum("i"), "mean": Average("i"), "some": Count(up_to=1)}
    # A document without a field that is summed is not found at all, as in Firestore.
    assert await client.aggregate("a", several) == {
        "how many": 8,
        "all": 28,
        "mean": 3.5,
        "some": 1,
    }
    before = fake.calls["Aggregate"]
    for wrong in (client.aggregate("a", {}), client.count("a/b"), client.sum("a", "x..y")):
        with pytest.raises(InvalidArgumentError):
            await wrong
    assert fake.calls["Aggregate"] == before
    with pytest.raises(InvalidArgumentError, match="up_to"):
        await client.count("a", up_to=0)


async def test_an_aggregation_that_is_not_answered_is_an_error(connect):
    async with Raw(connect, pb.AggregateReply().SerializeToString()) as client:
        for call in (client.count("a"), client.sum("a", "n"), client.average("a", "n")):
            with pytest.raises(InternalError, match="says nothing of 1 of 1"):
                await call


async def test_all_writes_or_none(sidecar):
    fake, client = sidecar
    await client.set("a/1", {"n": 1})
    with pytest.raises(NotFoundError):
        await client.batch().set("a/1", {"n": 2}).update("a/none", {"n": 2}).commit()
    assert (await client.get("a/1")).fields == {"n": 1}
    async with client.batch() as batch:
        batch.merge("a/1", {"m": 1}).create("a/2", {}).delete("a/3")
    assert set(fake.documents) == {"a/1", "a/2"}
    assert (await client.get("a/1")).fields == {"n": 1, "m": 1}
    assert fake.calls["Commit"] == 3


async def halfway(batch):
    async with batch:
        batch.set("a/1", {})
        raise ZeroDivisionError


async def test_a_batch_that_fails_halfway_commits_nothing(sidecar):
    fake, client = sidecar
    batch = client.batch()
    with pytest.raises(ZeroDivisionError):
        await halfway(batch)
    assert fake.calls["Commit"] == 0


async def test_preconditions(sidecar):
    _, client = sidecar
    first = await client.create("a/1", {"n": 1})
    with pytest.raises(AlreadyExistsError):
        await client.create("a/1", {"n": 2})
    await client.update("a/1", {"n": 2}, update_time=first.update_time)
    with pytest.raises(FailedPreconditionError):
        await client.delete("a/1", update_time=first.update_time)
    gone = await client.delete("a/1", exists=True)
    assert gone.update_time is None
    with pytest.raises(NotFoundError):
        await client.delete("a/1", exists=True)


# --- retries --------------------------------------------------------------------------------------


async def test_reads_are_tried_again(sidecar):
    fake, client = sidecar
    await client.set("a/1", {"n": 1})
    fake.failures = [
        Failure(method, UNAVAILABLE, times=2)
        for method in ("GetDocument", "BatchGetDocuments", "Query", "Aggregate")
    ]
    assert (await client.get("a/1")).fields == {"n": 1}
    assert len(await client.get_all(["a/1"])) == 1
    assert [s.path async for s in client.query("a")] == ["a/1"]
    assert await client.count("a") == 1
    assert fake.calls == {
        "Commit": 1,
        "GetDocument": 3,
        "BatchGetDocuments": 3,
        "Query": 3,
        "Aggregate": 3,
    }


async def test_only_unavailable_is_tried_again(sidecar):
    fake, client = sidecar
    fake.failures = [Failure("GetDocument", grpc.StatusCode.INTERNAL)]
    with pytest.raises(InternalError):
        await client.get("a/1")
    assert fake.calls["GetDocument"] == 1


async def test_a_query_is_not_begun_twice(sidecar):
    fake, client = sidecar
    await client.commit([Write.set(f"a/{i}", {}) for i in range(8)])
    fake.failures = [Failure("Query", UNAVAILABLE, pages=2)]
    seen: list[str] = []

    async def read():
        async for snapshot in client.query("a"):
            seen.append(snapshot.id)  # noqa: PERF401 (what came before the error counts)

    with pytest.raises(UnavailableError):
        await read()
    assert seen == [str(i) for i in range(6)]
    assert fake.calls["Query"] == 1


async def test_a_commit_that_was_done_unseen_is_not_done_twice(sidecar):
    fake, client = sidecar
    fake.failures = [Failure("Commit", UNAVAILABLE, after=True)]
    result = await client.set("a/1", {"n": Increment(1), "list": ArrayUnion([1])})
    assert result.replayed
    assert fake.calls["Commit"] == 2
    assert (await client.get("a/1")).fields == {"n": 1, "list": [1]}


async def test_without_a_request_id_a_commit_is_sent_once(sidecar):
    fake, client = sidecar
    fake.failures = [Failure("Commit", UNAVAILABLE, after=True)]
    with pytest.raises(UnavailableError) as caught:
        await client.set("a/1", {"n": Increment(1)}, request_id=None)
    assert caught.value.request_id is None
    assert fake.calls["Commit"] == 1
    assert not fake.replies


async def test_an_open_outcome_is_settled_by_the_request_id(sidecar):
    fake, client = sidecar
    fake.failures = [Failure("Commit", grpc.StatusCode.UNKNOWN, after=True)]
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.merge("a/1", {"n": Increment(1)})
    assert fake.calls["Commit"] == 1
    again = await client.merge("a/1", {"n": Increment(1)}, request_id=caught.value.request_id)
    assert again.replayed
    assert (await client.get("a/1")).fields == {"n": 1}


async def test_a_sidecar_that_restarts_is_found_again(connect):
    fake = FakeSidecar()
    target = await fake.start()
    async with connect(target, timeout=20, retries=1_000) as client:
        await client.set("a/1", {"n": 1})
        await fake.stop()
        asked = asyncio.ensure_future(client.get("a/1"))
        await asyncio.sleep(0.1)
        assert not asked.done()
        assert await fake.start(target) == target
        assert (await asked).fields == {"n": 1}
    await fake.stop()


async def test_the_deadline_is_for_all_attempts_together(sidecar, connect):
    fake, _ = sidecar
    fake.failures = [Failure("GetDocument", UNAVAILABLE, times=1_000_000)]
    async with connect(fake.target, retries=1_000_000) as client:
        begin = time.monotonic()
        # The second where it ends while the last attempt is under way.
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            await client.get("a/1", timeout=0.3)
        assert time.monotonic() - begin < 30
    assert fake.calls["GetDocument"] > 1


# --- the wire -------------------------------------------------------------------------------------


class Raw:
    """A server whose every answer is these bytes, after this many seconds."""

    def __init__(self, connect: Any, reply: bytes, delay: float = 0.0) -> None:
        self.connect = connect

        async def unary(_request, _context):
            await asyncio.sleep(delay)
            return reply

        async def stream(_request, _context):
            yield reply

        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetDocument": grpc.unary_unary_rpc_method_handler(unary),
            "Aggregate": grpc.unary_unary_rpc_method_handler(unary),
            "Commit": grpc.unary_unary_rpc_method_handler(unary),
            "Query": grpc.unary_stream_rpc_method_handler(stream),
            "BatchGetDocuments": grpc.unary_stream_rpc_method_handler(stream),
        }
        self.server = grpc.aio.server()
        service = grpc.method_handlers_generic_handler("crossfade.v1.Crossfade", handlers)
        self.server.add_generic_rpc_handlers((service,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> Any:
        await self.server.start()
        self.client = self.connect(self.target)
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.stop(None)


async def test_a_reply_that_does_not_parse_is_an_error(connect):
    async with Raw(connect, b"\xff\xff\xff") as client:
        for call in (
            client.get("a/1"),
            client.find("a/1"),
            client.get_all(["a/1"]),
            client.count("a"),
            client.set("a/1", {}),
        ):
            # grpc's own words of the one, the client's of the other
            with pytest.raises(InternalError, match=r"not a message of crossfade\.v1|deserializ"):
                await call


async def test_every_call_has_a_deadline(connect):
    async with Raw(connect, pb.CommitReply().SerializeToString(), delay=60) as client:
        for call in (client.get("a/1", timeout=0.05), client.set("a/1", {}, timeout=0.05)):
            with pytest.raises(DeadlineExceededError):
                await call


async def test_another_server_is_no_missing_document(connect):
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connect(f"127.0.0.1:{port}") as client:
        with pytest.raises(UnimplementedError):
            await client.find("a/1")
    await server.stop(None)


async def test_trace_context_goes_with_the_call(sidecar, connect):
    fake, _ = sidecar
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with connect(fake.target, metadata=lambda: [("authorization", "Bearer x")]) as client:
        await client.find("a/1", metadata=[("traceparent", parent)])
    sent = dict(fake.metadata)
    assert sent["traceparent"] == parent
    assert sent["authorization"] == "Bearer x"
