"""A query is watched while somebody else writes.

CROSSFADE_TARGET says where the sidecar is (127.0.0.1:7600 without it).
"""

import asyncio
import os
from contextlib import aclosing
from uuid import uuid4

from crossfade_client import AsyncCrossfade, Query

TARGET = os.environ.get("CROSSFADE_TARGET", "127.0.0.1:7600")


async def main() -> None:
    async with AsyncCrossfade(TARGET, timeout=10.0) as crossfade:
        room = f"room-{uuid4()}"
        await crossfade.set(f"messages/{room}-1", {"room": room, "text": "hello"})
        async with aclosing(
            crossfade.watch(Query("messages").where("room", "==", room))
        ) as moments:
            print("there:", [message.fields["text"] for message in (await anext(moments)).changed])

            await crossfade.set(f"messages/{room}-2", {"room": room, "text": "anybody?"})
            print("new:", [message.fields["text"] for message in (await anext(moments)).changed])

            await crossfade.delete(f"messages/{room}-1")
            print("gone:", len((await anext(moments)).removed))
        await crossfade.delete(f"messages/{room}-2")


asyncio.run(main())
