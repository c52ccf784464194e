"""What callers may use, over real channels: each limit, whose it is, and when to try again."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.cloud.firestore_v1 import types
from google.rpc import error_details_pb2, status_pb2

from crossfade.telemetry import LIMITED, UNDER_WAY, Telemetry
from crossfade_api.v1 import crossfade_pb2 as pb
from crossfade_api.v1 import crossfade_pb2_grpc as rpc
from crossfade_client import (
    AsyncCrossfade,
    DeadlineExceededError,
    OutcomeUnknownError,
    ResourceExhaustedError,
    UnavailableError,
    Write,
)
from crossfade_client.violet import AsyncViolet
from tests.guarded import ADMIN, WRITER, bearer, guarded
from tests.waiting import Waiting

SMALL, FREE = bearer(WRITER), bearer(ADMIN)
GET = pb.GetDocumentRequest(name="tasks/1")


def limited(tmp_path: Any, **limits: Any) -> dict[str, Any]:
    """Settings with one token of these limits and one without any."""
    file = tmp_path / "tokens.toml"
    words = ", ".join(f"{key} = {value}" for key, value in limits.items())
    file.write_text(
        f'[[token]]\nname = "small"\nrole = "writer"\ntoken = "{WRITER}"\nlimits = {{ {words} }}\n'
        f'[[token]]\nname = "free"\nrole = "admin"\ntoken = "{ADMIN}"\n'
    )
    return {"tokens_file": file}


async def code_of(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = await call.code()
    return code


async def watching(stub: Any, metadata: Any = ()) -> Any:
    """A call that stays under way."""
    request = pb.WatchRequest(documents=pb.BatchGetDocumentsRequest(names=["tasks/1"]))
    call = stub.Watch(request, metadata=metadata)
    await call.read()
    return call


async def test_calls_at_a_time_of_a_token_and_of_all(tmp_path):
    telemetry = Telemetry()
    async with (
        guarded(
            access=limited(tmp_path, concurrency=1), limits={"concurrency": 2}, telemetry=telemetry
        ) as sidecar,
        grpc.aio.insecure_channel(sidecar.address) as channel,
    ):
        stub: Any = rpc.CrossfadeStub(channel)
        first = await watching(stub, SMALL)
        call = stub.GetDocument(GET, metadata=SMALL)
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limit concurrency of token small: 1 calls are under way" in await call.details()
        assert await code_of(stub.GetDocument(GET, metadata=FREE)) is grpc.StatusCode.NOT_FOUND
        second = await watching(stub, FREE)
        assert telemetry.read_gauge(UNDER_WAY) == {(): 2.0}
        call = stub.GetDocument(GET, metadata=FREE)
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limit concurrency of all callers" in await call.details()
        assert telemetry.counts(LIMITED) == {
            ("concurrency", "small"): 1,
            ("concurrency", "all callers"): 1,
        }
        for each in (first, second):
            each.cancel()
        async with AsyncCrossfade(sidecar.address, token=WRITER, retries=20) as client:
            assert await client.find("tasks/1") is None  # once the cancelled calls have left


async def test_a_refusal_says_when_to_try_again(tmp_path):
    async with (
        guarded(access=limited(tmp_path, rate=2.0, burst=1)) as sidecar,
        grpc.aio.insecure_channel(sidecar.address) as channel,
    ):
        stub: Any = rpc.CrossfadeStub(channel)
        await code_of(stub.GetDocument(GET, metadata=SMALL))
        call = stub.GetDocument(GET, metadata=SMALL)
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing: dict[str, Any] = dict(await call.trailing_metadata())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert (status.code, status.message) == (8, await call.details())
        seconds = info.retry_delay.ToTimedelta().total_seconds()
        assert 0 < seconds <= 0.5
        assert int(trailing["grpc-retry-pushback-ms"]) == round(seconds * 1_000)


@pytest.mark.parametrize("connect", [AsyncCrossfade, Waiting])
async def test_clients_wait_as_long_as_they_are_told(connect):
    async with guarded(limits={"rate": 10.0, "burst": 1}) as sidecar:
        async with connect(sidecar.address, timeout=5.0) as client:
            started = time.monotonic()
            for _ in range(3):
                assert await client.find("tasks/1") is None
            # Unsafe to send twice, but a call that was refused was not done.
            await client.set("tasks/1", {"a": 1}, request_id=None)
            assert time.monotonic() - started > 0.25
        await asyncio.sleep(0.1)
        async with connect(sidecar.address, retries=0) as client:
            await client.find("tasks/2")
            with pytest.raises(ResourceExhaustedError, match="limit rate of all callers: 10 calls"):
                await client.find("tasks/2")


async def test_the_adapter_waits_too():
    async with (
        guarded(limits={"rate": 10.0, "burst": 1}) as sidecar,
        AsyncViolet(sidecar.address) as adapter,
    ):
        for _ in range(3):
            assert await adapter.get_task("1") is None


async def test_sizes_of_requests_and_results(tmp_path):
    access = limited(tmp_path, message_kb=4, documents=3, result_kb=8)
    async with (
        guarded(access=access) as sidecar,
        AsyncCrossfade(sidecar.address, token=ADMIN) as free,
        AsyncCrossfade(sidecar.address, token=WRITER) as small,
        AsyncViolet(sidecar.address, token=WRITER) as adapter,
        grpc.aio.insecure_channel(sidecar.address) as channel,
    ):
        for number in range(4):
            await free.set(f"tasks/{number}", {"task_id": str(number), "status": "pending"})
        await free.commit([Write.set(f"big/{n}", {"a": "x" * 4_000}) for n in range(3)])

        with pytest.raises(ResourceExhaustedError, match="limit message_kb of token small"):
            await small.set("tasks/9", {"a": "x" * 5_000})
        assert await free.find("tasks/9") is None

        assert len(await small.get_all([f"tasks/{n}" for n in range(3)])) == 3
        too_many = "limit documents of token small: the result has more than 3 documents"
        with pytest.raises(ResourceExhaustedError, match=too_many):
            await small.get_all([f"tasks/{n}" for n in range(4)])
        with pytest.raises(ResourceExhaustedError, match=too_many):
            [each async for each in small.query("tasks")]
        with pytest.raises(ResourceExhaustedError, match=too_many):
            await adapter.get_tasks_by_status("pending")
        root = "projects/test/databases/(default)/documents"
        listed: Any = channel.unary_unary("/google.firestore.v1.Firestore/ListDocuments")
        request = types.ListDocumentsRequest(parent=root, collection_id="tasks", page_size=4)
        call = listed(types.ListDocumentsRequest.serialize(request), metadata=SMALL)
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await code_of(
            listed(types.ListDocumentsRequest.serialize(request), metadata=FREE)
        ) is (grpc.StatusCode.OK)

        with pytest.raises(ResourceExhaustedError, match="limit result_kb of token small"):
            await small.get_all([f"big/{n}" for n in range(3)])
        assert len(await free.get_all([f"big/{n}" for n in range(3)])) == 3


async def test_how_long_a_call_may_take(tmp_path):
    telemetry = Telemetry()
    async with (
        guarded(
            access=limited(tmp_path, seconds=0.2), latency="600,0", telemetry=telemetry
        ) as sidecar,
        AsyncCrossfade(sidecar.address, token=WRITER, timeout=20, retries=0) as small,
        AsyncCrossfade(sidecar.address, token=ADMIN, timeout=20, retries=0) as free,
    ):
        await free.find("tasks/1")
        with pytest.raises(ResourceExhaustedError, match="limit seconds of token small"):
            await small.find("tasks/1")
        # A write may have been done: it is told what became of it, and not of a refusal.
        with pytest.raises((DeadlineExceededError, UnavailableError, OutcomeUnknownError)):
            await small.set("tasks/1", {"a": 1})
        assert telemetry.counts(LIMITED) == {("seconds", "small"): 2}


async def test_what_a_stream_writes_is_counted_message_by_message(tmp_path):
    async with (
        guarded(access=limited(tmp_path, rate=0.001, burst=3, message_kb=4)) as sidecar,
        grpc.aio.insecure_channel(sidecar.address) as channel,
    ):
        method: Any = channel.stream_stream(
            "/google.firestore.v1.Firestore/Write",
            request_serializer=types.WriteRequest.serialize,
            response_deserializer=types.WriteResponse.deserialize,
        )
        call = method(metadata=SMALL)
        await call.write(types.WriteRequest(database="projects/test/databases/(default)"))
        token = (await call.read()).stream_token
        done = 0
        while done < 5:
            name = f"projects/test/databases/(default)/documents/tasks/{done}"
            write = types.Write(update=types.Document(name=name))
            await call.write(types.WriteRequest(writes=[write], stream_token=token))
            try:
                reply = await call.read()
            except grpc.aio.AioRpcError:
                break
            token, done = reply.stream_token, done + 1
        assert done == 2  # and the opening of the stream is one
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limit rate of token small" in await call.details()


async def test_limits_change_with_their_token(tmp_path):
    access = limited(tmp_path, concurrency=1)
    async with (
        guarded(access=access) as sidecar,
        grpc.aio.insecure_channel(sidecar.address) as channel,
    ):
        stub: Any = rpc.CrossfadeStub(channel)
        held = await watching(stub, SMALL)
        limited(tmp_path, concurrency=2)
        for _ in range(100):
            if await code_of(stub.GetDocument(GET, metadata=SMALL)) is grpc.StatusCode.NOT_FOUND:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the new limit is not in force")
        held.cancel()
