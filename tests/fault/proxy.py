"""A TCP proxy that fails on purpose: it stands between a sidecar and one of its stores.

It runs in the test's own event loop. A fault holds for the connections that there are
and for those to come, until `heal()`.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

CHUNK = 65_536
QUEUED_CHUNKS = 256
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST, and what was not sent yet is thrown away."""


class TcpProxy:
    """`async with`; `address` is host:port and stays the same. `upstream` is asked at every
    new connection, so that the store behind may move.

    `latency`: seconds that a chunk needs, each way. `bandwidth`: bytes a second, each way.
    """

    def __init__(self, upstream: Callable[[], tuple[str, int]]) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._requests, self._answers = _Valve(), _Valve()
        self._swallowed: set[_Valve] = set()
        self.latency = 0.0
        self.bandwidth: float | None = None
        self.accepted = 0
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.down()
        await asyncio.gather(
            *(connection.task for connection in self._connections), return_exceptions=True
        )

    # --- faults ---------------------------------------------------------------------------------

    def hold(self) -> None:
        """What clients send from now on waits, in order, until `release()`."""
        self._requests.shut()

    @property
    def holding(self) -> int:
        """Connections of which something is held."""
        return self._requests.waiting

    def release(self, *, answers: bool = True) -> None:
        """What was held goes on. `answers=False`: whatever the store says to it is lost."""
        if not answers:
            self._swallowed.add(self._answers)
        self._requests.open()

    def hold_answers(self) -> None:
        """The store gets what clients send; what it says waits until `heal()`."""
        self._answers.shut()

    def black_hole(self) -> None:
        """Connections are accepted, and nothing that is sent arrives, either way."""
        self._swallowed |= {self._requests, self._answers}

    def half_open(self) -> None:
        """The store's end of every connection is gone, and no client is told. Only connections
        that are opened later work."""
        for connection in self._connections:
            connection.half_open()

    def cut(self) -> None:
        """Ends every connection by RST, at both ends."""
        for connection in self._connections:
            connection.cut()

    def refuse(self) -> None:
        """New connections are refused; those that there are stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def down(self) -> None:
        """Refuses and cuts: as a store whose process is gone."""
        self.refuse()
        self.cut()

    async def heal(self) -> None:
        """No fault any more. Connections that lost bytes are cut, as they never recover."""
        if self._swallowed:
            self.cut()
        for connection in self._connections:
            if connection.halved:
                connection.cut()
        self._swallowed.clear()
        self.latency, self.bandwidth = 0.0, None
        self._requests.open()
        self._answers.open()
        if self._server is None:
            await self._listen()

    # --- connections ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        try:
            store_reader, store_writer = await asyncio.open_connection(*self._upstream())
        except OSError:
            _reset(writer)
            return
        connection = _Connection(task, writer, store_writer)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(connection, self._requests, reader, store_writer))
                ways.create_task(self._carry(connection, self._answers, store_reader, writer))
        except* OSError:
            pass  # an end reset its side; the other is reset below
        except* asyncio.CancelledError:
            pass
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _carry(
        self,
        connection: "_Connection",
        valve: "_Valve",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """One direction of a connection, until its sender has ended it."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)

        async def read() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(CHUNK)
                except OSError:
                    if not connection.halved:
                        raise
                    data = b""
                await queue.put((time.monotonic() + self.latency, data))

        async def write() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - time.monotonic())
                await valve.opened()
                if connection.halved:
                    if not data and valve is self._requests:
                        raise ConnectionResetError  # the client has given it up
                    if not data:
                        return
                    continue
                if valve in self._swallowed and data:
                    continue
                if not data:
                    writer.write_eof()
                    return
                if self.bandwidth is not None:
                    await asyncio.sleep(len(data) / self.bandwidth)
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(read())
            both.create_task(write())


class _Valve:
    """Lets bytes through, or holds them in order until it is opened again."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    async def opened(self) -> None:
        if self._open.is_set():
            return
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@dataclass(eq=False)
class _Connection:
    """Both ends of a proxied connection."""

    task: asyncio.Task[None]
    client: asyncio.StreamWriter
    store: asyncio.StreamWriter
    halved: bool = False

    def half_open(self) -> None:
        self.halved = True
        _reset(self.store)

    def cut(self) -> None:
        _reset(self.client)
        _reset(self.store)
        self.task.cancel()

    def close(self) -> None:
        """What one end has reset is reset at the other; what it ended is only closed."""
        _reset(self.client)
        _reset(self.store)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
