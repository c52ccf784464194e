"""The TCP proxy does what its faults say, shown with a plain echo server."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fault.proxy import TcpProxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SOON = 0.2


class Echo:
    """Says what it hears; `heard` is all of it."""

    def __init__(self) -> None:
        self.heard = b""
        self.port = 0
        self.ended: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.heard += data
                writer.write(data)
                await writer.drain()
            self.ended.append("closed")
        except ConnectionResetError:
            self.ended.append("reset")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def proxy(echo) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(lambda: ("127.0.0.1", echo.port)) as proxy:
        yield proxy


@asynccontextmanager
async def connected(proxy: TcpProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def said(streams: Streams, data: bytes, seconds: float = 5.0) -> bytes:
    reader, writer = streams
    writer.write(data)
    await writer.drain()
    return await asyncio.wait_for(reader.readexactly(len(data)), seconds)


async def test_without_a_fault_all_bytes_pass_and_an_end_is_passed_on(proxy, echo):
    async with connected(proxy) as streams:
        data = bytes(range(256)) * 4_000
        assert await said(streams, data) == data
        streams[1].write_eof()
        assert await asyncio.wait_for(streams[0].read(), 5) == b""
    assert echo.ended == ["closed"]


async def test_latency_delays_each_way_and_bandwidth_each_byte(proxy):
    async with connected(proxy) as streams:
        proxy.latency = 0.1
        started = time.monotonic()
        await said(streams, b"x")
        assert time.monotonic() - started >= 0.2
        await proxy.heal()
        proxy.bandwidth = 100_000
        started = time.monotonic()
        await said(streams, b"x" * 20_000)
        assert time.monotonic() - started >= 0.4


async def test_what_is_held_arrives_in_order_when_it_is_released(proxy, echo):
    async with connected(proxy) as streams:
        await said(streams, b"1")
        proxy.hold()
        for part in (b"2", b"3"):
            streams[1].write(part)
            await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(streams[0].read(1), SOON)
        assert (echo.heard, proxy.holding) == (b"1", 1)
        proxy.release()
        assert await asyncio.wait_for(streams[0].readexactly(2), 5) == b"23"


async def test_what_was_held_can_arrive_while_its_answer_is_lost(proxy, echo):
    async with connected(proxy) as streams:
        proxy.hold()
        streams[1].write(b"1")
        await asyncio.sleep(0.05)
        proxy.release(answers=False)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(streams[0].read(1), SOON)
        assert echo.heard == b"1"


async def test_answers_are_held_until_it_heals(proxy, echo):
    async with connected(proxy) as streams:
        proxy.hold_answers()
        streams[1].write(b"1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(streams[0].read(1), SOON)
        assert echo.heard == b"1"
        await proxy.heal()
        assert await asyncio.wait_for(streams[0].read(1), 5) == b"1"


async def test_a_black_hole_takes_everything_and_says_nothing(proxy, echo):
    proxy.black_hole()
    async with connected(proxy) as streams:
        with pytest.raises(TimeoutError):
            await said(streams, b"1", SOON)
        assert echo.heard == b""
        await proxy.heal()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await said(streams, b"2")
    async with connected(proxy) as streams:
        assert await said(streams, b"3") == b"3"


async def test_half_open_connections_say_nothing_and_new_ones_work(proxy, echo):
    async with connected(proxy) as streams:
        await said(streams, b"1")
        proxy.half_open()
        with pytest.raises(TimeoutError):
            await said(streams, b"2", SOON)
        assert echo.heard == b"1"
        async with connected(proxy) as later:
            assert await said(later, b"3") == b"3"
    assert echo.ended[0] == "reset"


async def test_a_cut_resets_both_ends_and_new_connections_work(proxy, echo):
    async with connected(proxy) as streams:
        await said(streams, b"1")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await said(streams, b"2")
    async with connected(proxy) as streams:
        assert await said(streams, b"3") == b"3"
    assert echo.ended[0] == "reset"


async def test_refused_and_down_until_it_heals_at_the_same_address(proxy):
    async with connected(proxy) as streams:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await said(streams, b"1") == b"1"
        proxy.down()
        with pytest.raises(ConnectionResetError):
            await said(streams, b"2")
    await proxy.heal()
    async with connected(proxy) as streams:
        assert await said(streams, b"3") == b"3"


async def test_a_store_that_is_away_resets_the_client():
    async with (
        TcpProxy(lambda: ("127.0.0.1", 1)) as proxy,
        connected(proxy) as streams,
    ):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await said(streams, b"1")
