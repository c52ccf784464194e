"""The client over a real channel, against a sidecar of a few lines."""

import asyncio
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
    AsyncCrossfade,
    DeadlineExceededError,
    FailedPreconditionError,
    Increment,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    Query,
    UnavailableError,
    UnimplementedError,
    Write,
)
from tests.fake_sidecar import Failure, FakeSidecar

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def drained(query):
    return [snapshot async for snapshot in query]


@pytest.fixture
async def sidecar() -> AsyncIterator[tuple[FakeSidecar, AsyncCrossfade]]:
    fake = FakeSidecar()
    async with AsyncCrossfade(await fake.start()) as client:
        yield fake, client
    await fake.stop()


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


@pytest.mark.parametrize("call", ["get", "find", "get_all", "query"])
async def test_an_outage_is_never_an_empty_answer(sidecar, call):
    fake, client = sidecar
    methods = {"get_all": "BatchGetDocuments", "query": "Query"}
    fake.failures = [Failure(methods.get(call, "GetDocument"), UNAVAILABLE, times=99)]
    if call == "query":
        asked = drained(client.query("a", timeout=1.0))
    else:
        asked = getattr(client, call)(["a/b"] if call == "get_all" else "a/b", timeout=1.0)
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
        for method in ("GetDocument", "BatchGetDocuments", "Query")
    ]
    assert (await client.get("a/1")).fields == {"n": 1}
    assert len(await client.get_all(["a/1"])) == 1
    assert [s.path async for s in client.query("a")] == ["a/1"]
    assert fake.calls == {"Commit": 1, "GetDocument": 3, "BatchGetDocuments": 3, "Query": 3}


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


async def test_a_sidecar_that_restarts_is_found_again():
    fake = FakeSidecar()
    target = await fake.start()
    async with AsyncCrossfade(target, timeout=20, retries=1_000) as client:
        await client.set("a/1", {"n": 1})
        await fake.stop()
        asked = asyncio.ensure_future(client.get("a/1"))
        await asyncio.sleep(0.1)
        assert not asked.done()
        assert await fake.start(target) == target
        assert (await asked).fields == {"n": 1}
    await fake.stop()


async def test_the_deadline_is_for_all_attempts_together(sidecar):
    fake, _ = sidecar
    fake.failures = [Failure("GetDocument", UNAVAILABLE, times=1_000_000)]
    async with AsyncCrossfade(fake.target, retries=1_000_000) as client:
        begin = time.monotonic()
        with pytest.raises(UnavailableError):
            await client.get("a/1", timeout=0.3)
        assert time.monotonic() - begin < 30
    assert fake.calls["GetDocument"] > 1


# --- the wire -------------------------------------------------------------------------------------


class Raw:
    """A server whose every answer is these bytes, after this many seconds."""

    def __init__(self, reply: bytes, delay: float = 0.0) -> None:
        async def unary(_request, _context):
            await asyncio.sleep(delay)
            return reply

        async def stream(_request, _context):
            yield reply

        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetDocument": grpc.unary_unary_rpc_method_handler(unary),
            "Commit": grpc.unary_unary_rpc_method_handler(unary),
            "Query": grpc.unary_stream_rpc_method_handler(stream),
            "BatchGetDocuments": grpc.unary_stream_rpc_method_handler(stream),
        }
        self.server = grpc.aio.server()
        service = grpc.method_handlers_generic_handler("crossfade.v1.Crossfade", handlers)
        self.server.add_generic_rpc_handlers((service,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> AsyncCrossfade:
        await self.server.start()
        self.client = AsyncCrossfade(self.target)
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.stop(None)


async def test_a_reply_that_does_not_parse_is_an_error():
    async with Raw(b"\xff\xff\xff") as client:
        for call in (
            client.get("a/1"),
            client.find("a/1"),
            client.get_all(["a/1"]),
            client.set("a/1", {}),
        ):
            with pytest.raises(InternalError, match=r"not a message of crossfade\.v1"):
                await call


async def test_every_call_has_a_deadline():
    async with Raw(pb.CommitReply().SerializeToString(), delay=60) as client:
        for call in (client.get("a/1", timeout=0.05), client.set("a/1", {}, timeout=0.05)):
            with pytest.raises(DeadlineExceededError):
                await call


async def test_another_server_is_no_missing_document():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncCrossfade(f"127.0.0.1:{port}") as client:
        with pytest.raises(UnimplementedError):
            await client.find("a/1")
    await server.stop(None)


async def test_trace_context_goes_with_the_call(sidecar):
    fake, _ = sidecar
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with AsyncCrossfade(
        fake.target, metadata=lambda: [("authorization", "Bearer x")]
    ) as client:
        await client.find("a/1", metadata=[("traceparent", parent)])
    sent = dict(fake.metadata)
    assert sent["traceparent"] == parent
    assert sent["authorization"] == "Bearer x"
