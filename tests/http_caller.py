"""A small HTTP client for tests of the admin API: every header is the test's own."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    address: str,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    wait: float = 30.0,
) -> Answer:
    """One request on a connection of its own. `body`: JSON, or bytes as they are."""
    host, _, port = address.rpartition(":")
    given = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = {"Host": address, "Connection": "close", "Content-Length": str(len(given))}
    if body is not None:
        sent["Content-Type"] = "application/json"
    sent |= headers or {}
    method = method or ("GET" if body is None else "POST")
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    async with asyncio.timeout(wait):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + given)
        received = await reader.read()
        writer.close()
    top, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if found.get("transfer-encoding") == "chunked":
        rest = _joined(rest)
    return Answer(int(first.split()[1]), found, rest)


def _joined(chunked: bytes) -> bytes:
    whole, left = b"", chunked
    while left:
        size, _, left = left.partition(b"\r\n")
        count = int(size, 16)
        whole, left = whole + left[:count], left[count + 2 :]
    return whole


async def events(address: str, *, count: int, headers: Mapping[str, str] | None = None) -> Any:
    """The first events of the dashboard's stream, as (name, data)."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    writer.write(f"GET /api/v1/events HTTP/1.1\r\nHost: {address}\r\n{lines}\r\n".encode())
    found: list[tuple[str, Any]] = []
    name = ""
    try:
        async with asyncio.timeout(30):
            while len(found) < count and (line := await reader.readline()):
                text = line.decode().strip()
                if text.startswith("event: "):
                    name = text.removeprefix("event: ")
                elif text.startswith("data: "):
                    found.append((name, json.loads(text.removeprefix("data: "))))
    finally:
        writer.close()
    return found
