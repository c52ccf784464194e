"""Many documents, written in commits of many writes."""

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

import grpc.aio
from google.cloud.firestore_v1 import types

from loadtests.firestore import messages

WRITES = 500
"""Of one commit."""
IN_FLIGHT = 3
SECONDS = 120.0


async def load(target: str, project: str, writes: Iterable[Any]) -> int:
    """Commits Write messages; returns how many."""
    kind = types.CommitRequest.pb()
    remaining = iter(writes)
    count = 0
    async with grpc.aio.insecure_channel(target) as channel:
        commit: Any = channel.unary_unary(f"{messages.SERVICE}Commit")

        async def worker() -> None:
            nonlocal count
            while some := list(islice(remaining, WRITES)):
                request = kind(database=messages.database(project), writes=some)
                await commit(request.SerializeToString(), timeout=SECONDS)
                count += len(some)

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return count


async def ask(target: str, method: str, request: bytes) -> list[bytes]:
    """The answers to one call: a unary method's is the only one."""
    async with grpc.aio.insecure_channel(target) as channel:
        path = messages.SERVICE + method
        if method in messages.STREAMS:
            stream: Any = channel.unary_stream(path)
            return [answer async for answer in stream(request, timeout=SECONDS)]
        unary: Any = channel.unary_unary(path)
        return [await unary(request, timeout=SECONDS)]
