"""One gRPC call, whatever kind the method is of, and all that came back.

By the blocking client: that of asyncio says INTERNAL in the place of the status that came, where
the answer to a stream is there before its first request is sent.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    code: grpc.StatusCode
    details: str
    messages: list[bytes]
    trailing: dict[str, str]


async def call(address: str, method: str, request: bytes, metadata: Metadata = ()) -> Answer:
    """One message, on a connection of its own."""
    return await asyncio.to_thread(_call, address, method, request, metadata)


def _call(address: str, method: str, request: bytes, metadata: Metadata) -> Answer:
    with grpc.insecure_channel(address) as channel:
        stream: Any = channel.stream_stream(f"/{method}")
        asked = stream(iter([request]), metadata=metadata, timeout=10)
        messages = []
        with suppress(grpc.RpcError):  # what it was is told below
            messages += asked
        return Answer(
            asked.code(), asked.details(), messages, dict(asked.trailing_metadata() or ())
        )
