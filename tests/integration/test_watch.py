"""Watch of crossfade.v1, by either authority."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from crossfade.plan import Stage
from crossfade.rpc import watch as watching
from crossfade_api.v1 import crossfade_pb2, crossfade_pb2_grpc
from crossfade_client import Write
from tests.sidecar import Running, running

SECONDS = 20.0


@pytest.fixture(params=["off", "shadow", "live", "complete"])
async def stack(request: Any, postgres_database: Any) -> AsyncIterator[Running]:
    first = Stage.OFF if request.param == "off" else Stage.SHADOW
    async with running(await postgres_database(), first, read_percent=100) as stack:
        if request.param != "off":
            await stack.copy()
        if request.param in {"live", "complete"}:
            await stack.stage("live")
        if request.param == "complete":
            await stack.settled()
            await stack.stage("complete")
        yield stack


class Watched:
    """What a caller of Watch knows."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.known: dict[str, int] = {}
        self.replies = 0
        self.read_time = 0

    async def snapshot(self) -> dict[str, int]:
        """What is known at the next moment that is consistent."""
        while True:
            reply = await asyncio.wait_for(self._call.read(), SECONDS)
            assert reply is not grpc.aio.EOF
            self.replies += 1
            for document in reply.changed:
                self.known[document.name.rpartition("/")[2]] = document.fields["n"].integer_value
            for name in reply.removed:
                self.known.pop(name.rpartition("/")[2], None)
            if reply.consistent:
                assert reply.read_time.ToMicroseconds() >= self.read_time
                self.read_time = reply.read_time.ToMicroseconds()
                return dict(self.known)

    async def until(self, expected: dict[str, int]) -> None:
        async with asyncio.timeout(SECONDS):
            while await self.snapshot() != expected:
                pass


@asynccontextmanager
async def watch(stack: Running, request: Any) -> AsyncIterator[Watched]:
    async with grpc.aio.insecure_channel(stack.sidecar.address) as channel:
        call = crossfade_pb2_grpc.CrossfadeStub(channel).Watch(request)
        try:
            yield Watched(call)
        finally:
            call.cancel()


def documents(*names: str) -> crossfade_pb2.WatchRequest:
    return crossfade_pb2.WatchRequest(documents=crossfade_pb2.BatchGetDocumentsRequest(names=names))


def query(collection: str) -> crossfade_pb2.WatchRequest:
    request = crossfade_pb2.WatchRequest()
    getattr(request.query.query, "from").add(collection_id=collection)
    return request


@pytest.mark.parametrize("collection", ["tasks", "notes"])
async def test_a_query_from_moment_to_moment(stack, collection):
    await stack.client.set(f"{collection}/a", {"n": 1})
    async with watch(stack, query(collection)) as watched:
        assert await watched.snapshot() == {"a": 1}
        await stack.client.commit(
            [
                Write.set(f"{collection}/b", {"n": 2}),
                Write.set(f"{collection}/a", {"n": 3}),
            ]
        )
        await watched.until({"a": 3, "b": 2})
        await stack.client.delete(f"{collection}/a")
        await watched.until({"b": 2})


async def test_documents_by_name(stack):
    await stack.client.set("notes/a", {"n": 1})
    async with watch(stack, documents("notes/a", "tasks/none")) as watched:
        assert await watched.snapshot() == {"a": 1}
        await stack.client.set("tasks/none", {"n": 5})
        await watched.until({"a": 1, "none": 5})


async def test_a_large_result_comes_in_parts(stack, monkeypatch):
    monkeypatch.setattr(watching, "MOST_BYTES", 100)
    for number in range(5):
        await stack.client.set(f"notes/{number}", {"n": number})
    async with watch(stack, query("notes")) as watched:
        assert await watched.snapshot() == {str(number): number for number in range(5)}
        assert watched.replies > 2


@pytest.mark.parametrize(
    "request_",
    [
        crossfade_pb2.WatchRequest(),
        documents(),
        documents("_crossfade_control/default"),
        documents("notes"),
        query(""),
        query("_crossfade_intents"),
    ],
)
async def test_what_cannot_be_watched(stack, request_):
    async with watch(stack, request_) as watched:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watched.snapshot()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_change_of_authority_ends_it(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        for stage in ("live", "shadow"):
            async with watch(stack, query("notes")) as watched:
                await watched.snapshot()
                await stack.stage(stage)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await watched.until({"never": 0})
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_what_is_sent_again_after_a_reset_is_not_removed():
    from google.cloud.firestore_v1 import types

    from crossfade.rpc.firestore_v1.listen_targets import Change, target_change

    def changed(name: str) -> bytes:
        frame = types.ListenResponse.pb()()
        frame.document_change.document.name = name
        frame.document_change.target_ids.append(watching.TARGET)
        return frame.SerializeToString()

    known = watching._Known()
    end = [target_change(Change.CURRENT, (1,)), target_change(Change.NO_CHANGE, ())]
    replies = [r for f in [changed("a"), changed("b"), *end] for r in known.told(f)]
    replies += [
        r
        for f in [target_change(Change.RESET, (1,)), changed("b"), changed("c"), *end]
        for r in known.told(f)
    ]
    first, second = map(crossfade_pb2.WatchReply.FromString, replies)
    assert [d.name for d in first.changed] == ["a", "b"]
    assert [d.name for d in second.changed] == ["b", "c"]
    assert list(second.removed) == ["a"]
