"""violet.v1 through a whole sidecar, on both authorities: what each operation does, and that
callers who come at once never leave what one by one could not."""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

from crossfade.plan import Stage, StoreName
from crossfade_api.v1 import document_pb2, violet_pb2, violet_pb2_grpc
from crossfade_client._codec import decode_fields, encode_fields
from tests.sidecar import Running, running

pb = violet_pb2
NOW = datetime.now(UTC)


class Caller:
    """The four services of a sidecar."""

    def __init__(self, stack: Running) -> None:
        self.stack = stack
        self.channel = grpc.aio.insecure_channel(stack.sidecar.address)
        self.tasks: Any = violet_pb2_grpc.TasksStub(self.channel)
        self.miners: Any = violet_pb2_grpc.MinersStub(self.channel)
        self.users: Any = violet_pb2_grpc.UsersStub(self.channel)
        self.content: Any = violet_pb2_grpc.ContentStub(self.channel)

    async def set(self, path: str, **fields: Any) -> None:
        await self.stack.client.set(path, fields)

    async def fields(self, path: str) -> Any:
        found = await self.stack.client.find(path)
        return None if found is None else found.fields

    async def miner(self, uid: int, **fields: Any) -> None:
        status = {"uid": uid, "is_serving": True, "current_load": 0, "max_capacity": 5}
        await self.set(f"miner_status/{uid}", **{**status, "last_seen": datetime.now(UTC), **fields})

    async def loads(self, *uids: int) -> list[Any]:
        return [(await self.fields(f"miner_status/{uid}"))["current_load"] for uid in uids]


def values(**fields: Any) -> dict[str, document_pb2.Value]:
    document = document_pb2.Document()
    encode_fields(fields, document.fields)
    return dict(document.fields)


def shown(reply: Any) -> dict[str, Any]:
    return decode_fields(reply.document.fields)


async def settle(calls: Sequence[Awaitable[Any]]) -> tuple[list[Any], list[str]]:
    """The replies, and the statuses of those that failed."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    replies: list[Any] = []
    failed: list[str] = []
    for outcome in outcomes:
        if isinstance(outcome, grpc.aio.AioRpcError):
            failed.append(outcome.code().name)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            replies.append(outcome)
    return replies, failed


async def refused(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name


@pytest.fixture(scope="module", params=[Stage.SHADOW, Stage.LIVE], ids=str)
async def stack(request, postgres_database):
    """One sidecar for all tests of an authority: each test has ids of its own."""
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as world:
        await world.copy()
        if request.param is Stage.LIVE:
            await world.settled()
            await world.stage("live")
        yield world


@pytest.fixture
async def violet(stack):
    caller = Caller(stack)
    yield caller
    await caller.channel.close()


@pytest.fixture
def name():
    return uuid4().hex[:12]


# --- tasks -------------------------------------------------------------------------------------


async def test_a_task_is_made_once_under_the_callers_id(violet, name):
    request = pb.CreateTaskRequest(
        request_id=f"r{name}", task_id=name, fields=values(priority="odd word", model_id=None)
    )
    made = await violet.tasks.CreateTask(request)
    assert shown(made)["status"] == "pending"
    again = await violet.tasks.CreateTask(request)
    assert (made.replayed, again.replayed) == (False, True)
    assert shown(again) == shown(made)
    other = pb.CreateTaskRequest(request_id=f"s{name}", task_id=name)
    assert await refused(violet.tasks.CreateTask(other)) == "ALREADY_EXISTS"
    found = await violet.tasks.GetTask(pb.GetRequest(id=name))
    assert shown(found) == shown(made)
    assert found.document.HasField("update_time")
