"""Reads for ramps and the guard: a few documents, read all the time and compared every time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from crossfade.errors import Unavailable
from crossfade.plan import Stage, StoreName
from crossfade_api.v1 import admin_pb2
from tests.sidecar import Running, running

DOCUMENTS = 20
LIMITS = {"max_mismatch": 0.05, "max_error_delta": 0.2, "max_p99_ratio": 50, "min_samples": 60}


@asynccontextmanager
async def ramping(
    url: str, *, readers: int = 3, pause: float = 0.002, **options: Any
) -> AsyncIterator[Running]:
    """Stage shadow, copied, with so many readers that pause after every read."""
    async with running(
        url, Stage.SHADOW, shadow_rate=1.0, shadow={"repair": False, "lag": 5.0}, **options
    ) as stack:
        await stack.copy()
        for number in range(DOCUMENTS):
            await stack.client.set(f"notes/{number}", {"n": number})
        await stack.settled()
        reading = True

        async def reader(number: int) -> None:
            while reading:
                number = (number + 1) % DOCUMENTS
                await stack.client.get(f"notes/{number}")
                await asyncio.sleep(pause)

        tasks = [asyncio.create_task(reader(first)) for first in range(readers)]
        try:
            yield stack
        finally:
            reading = False
            await asyncio.gather(*tasks)


def percent(stack: Running) -> float:
    """The percent by which reads of the notes are routed."""
    return stack.sidecar.control.snapshot.plan_of("notes").threshold / 100


async def audited(stack: Running, action: str) -> list[admin_pb2.AuditEntry]:
    """The newest first."""
    reply = await stack.admin.ListAudit(admin_pb2.ListAuditRequest(collection="notes"))
    return [entry for entry in reply.entries if entry.action == action]


def trouble(stack: Running, patch: Any, kind: str, seconds: float) -> None:
    """Makes the mirror's reads of documents fail ("errors"), or last so long ("latency")."""
    mirror: Any = stack.sidecar.stores[StoreName.POSTGRESQL]
    real = mirror.get

    async def troubled(paths: Any, **options: Any) -> Any:
        if kind == "errors":
            raise Unavailable("away")
        await asyncio.sleep(seconds)
        return await real(paths, **options)

    patch.setattr(mirror, "get", troubled)
