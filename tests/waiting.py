"""The client for callers that wait, in the clothes of the async one: each call in a thread.

So one set of tests holds both clients to the same behaviour.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

from crossfade_client import Batch, CommitResult, Crossfade, Moment, Query, Snapshot


class Waiting:
    def __init__(self, target: str, **options: Any) -> None:
        self.client = Crossfade(target, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await asyncio.to_thread(self.client.close)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(method, *arguments, **options)

        return call

    async def query(self, query: Query | str, **options: Any) -> AsyncIterator[Snapshot]:
        found = self.client.query(query, **options)
        try:
            while (snapshot := await asyncio.to_thread(next, found, None)) is not None:
                yield snapshot
        finally:
            await asyncio.to_thread(found.close)

    async def watch(self, target: Any, **options: Any) -> AsyncIterator[Moment]:
        told = self.client.watch(target, **options)
        try:
            while True:  # left only between two moments: a thread that waits cannot be ended
                yield await asyncio.to_thread(next, told)
        finally:
            await asyncio.to_thread(told.close)

    def batch(self) -> "WaitingBatch":
        return WaitingBatch(self.client.batch())


class WaitingBatch:
    def __init__(self, batch: Batch) -> None:
        self.collected = batch

    def __getattr__(self, name: str) -> Any:
        def add(*arguments: Any, **options: Any) -> WaitingBatch:
            assert getattr(self.collected, name)(*arguments, **options) is self.collected
            return self

        return add

    async def commit(self, **options: Any) -> CommitResult:
        return await asyncio.to_thread(self.collected.commit, **options)

    async def __aenter__(self) -> Self:
        assert self.collected.__enter__() is self.collected
        return self

    async def __aexit__(self, *raised: Any) -> None:  # noqa: PYI036
        await asyncio.to_thread(self.collected.__exit__, *raised)
