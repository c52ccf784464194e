"""violet.v1 as its tests call it: raw stubs, and documents as dicts."""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from crossfade_api.v1 import document_pb2, violet_pb2_grpc
from crossfade_client._codec import decode_fields, encode_fields
from tests.sidecar import Running


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
        status = {"is_serving": True, "current_load": 0, "max_capacity": 5, **fields}
        status.setdefault("last_seen", datetime.now(UTC))
        await self.set(f"miner_status/{uid}", uid=uid, **status)

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
