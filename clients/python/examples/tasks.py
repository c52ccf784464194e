"""A task's life: written, changed, found, counted, deleted.

CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
"""

import asyncio
import os
from datetime import UTC, datetime
from uuid import uuid4

from crossfade_client import (
    SERVER_TIMESTAMP,
    AlreadyExistsError,
    ArrayUnion,
    AsyncCrossfade,
    Increment,
    Or,
    Query,
)
from crossfade_client.query import Filter

TARGET = os.environ.get("CROSSFADE_TARGET", "127.0.0.1:7600")


async def main() -> None:
    async with AsyncCrossfade(TARGET, timeout=10.0) as crossfade:
        task_id = f"example-{uuid4()}"
        path = f"tasks/{task_id}"
        await crossfade.create(
            path,
            {
                "task_id": task_id,
                "status": "pending",
                "created_at": SERVER_TIMESTAMP,
                "deadline": datetime(2030, 1, 1, tzinfo=UTC),
                "response_count": 0,
            },
        )
        try:
            await crossfade.create(path, {"status": "stolen"})
        except AlreadyExistsError:
            print("nobody else can create it")

        await crossfade.update(
            path,
            {
                "status": "processing",
                "response_count": Increment(1),
                "miner_responses": ArrayUnion([{"miner_uid": 7}]),
            },
        )
        task = await crossfade.get(path)
        print(task.fields["status"], task.fields["response_count"])

        mine = Query("tasks").where("task_id", "==", task_id)
        running = mine.where(
            Or(Filter("status", "==", "processing"), Filter("status", "==", "assigned"))
        )
        async for found in crossfade.query(running):
            print("found", found.id == task_id)
        print("counted", await crossfade.count(running))

        await crossfade.delete(path)
        print("left", await crossfade.find(path))


asyncio.run(main())
