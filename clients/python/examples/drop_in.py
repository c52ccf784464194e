"""The proxy server's adapter interface, answered by the sidecar: the line that changes.

CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
"""

import asyncio
import os

from crossfade_client.violet import AsyncViolet

TARGET = os.environ.get("CROSSFADE_TARGET", "127.0.0.1:7600")


async def main() -> None:
    async with AsyncViolet(TARGET, timeout=10.0) as adapter:  # was: FirestoreAdapter(client)
        task_id = await adapter.create_task({"task_type": "tts", "required_miner_count": 1})
        await adapter.update_task(task_id, {"priority": "high"})
        task = await adapter.get_task(task_id)
        if task is not None:  # None: there is none; an error: nobody could say
            print(task["status"], task["priority"])


asyncio.run(main())
