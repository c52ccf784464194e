"""Callers that leave without a word, by the thousand: they leave nothing behind.

Each test makes the same trouble again and again. What is left behind is left every time; a
heap only grows as long as more of the callers than ever before happen to be there at once.
"""

import asyncio
import itertools
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from tests.fuzz.methods import methods
from tests.fuzz.pieces import DATABASE, ROOT, SMALL, batch_get, begin, commit, query, set_to
from tests.fuzz.server import MEBIBYTE, Watched
from tests.fuzz.talking import METADATA, asked

GROWTH = 16 * MEBIBYTE
FILES = 8
SIDE_BY_SIDE = 16
TIMES = 5

LISTEN = methods()["Listen"]
WRITE = methods()["Write"]


async def everyone(count: int, trouble: Callable[[int], Awaitable[None]]) -> None:
    """`count` callers, some of them at a time."""
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            await trouble(number)

    await asyncio.gather(*(some() for _ in range(SIDE_BY_SIDE)))


async def leaves_nothing(
    server: Watched,
    channel: grpc.aio.Channel,
    count: int,
    trouble: Callable[[int], Awaitable[None]],
) -> None:
    """One time at least adds no more memory than `GROWTH`; none leaves files open."""
    await everyone(count, trouble)
    assert await server.complaint(channel) is None
    grown: list[int] = []
    files = server.open_files()
    while not grown or (min(grown) >= GROWTH and len(grown) < TIMES):
        resident = server.resident()
        await everyone(count, trouble)
        await settled(server, files + FILES)
        assert await server.complaint(channel) is None
        grown.append(server.resident() - resident)
    assert min(grown) < GROWTH, grown


async def settled(server: Watched, files: int) -> None:
    """Waits until the server has closed the connections of those who left."""
    for _ in range(100):
        if server.open_files() <= files:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{server.open_files()} files are open, {files} at most are expected")


def listening(target: int = 1) -> bytes:
    added = {"target_id": target, "query": {"parent": ROOT, "structured_query": query()}}
    data: bytes = LISTEN.request(database=DATABASE, add_target=added).SerializeToString()
    return data


def handshake() -> bytes:
    data: bytes = WRITE.request(database=DATABASE).SerializeToString()
    return data


async def test_streams_that_are_cancelled(server, channel):
    async def trouble(number: int) -> None:
        method, first = ((LISTEN, listening()), (WRITE, handshake()))[number % 2]
        call = channel.stream_stream(method.path)(metadata=METADATA)
        await call.write(first)
        if number % 3:
            await call.read()
        call.cancel()

    await leaves_nothing(server, channel, 400, trouble)


async def test_streams_that_end_with_their_connection(server, channel):
    async def trouble(number: int) -> None:
        own = server.channel()
        for method, first in ((LISTEN, listening()), (WRITE, handshake())):
            call = own.stream_stream(method.path)(metadata=METADATA)
            await call.write(first)
            if number % 2:
                await call.read()
        await own.close()

    await leaves_nothing(server, channel, 200, trouble)


async def test_listeners_that_vanish_hear_no_commit(server, channel):
    """A commit tells those who listen; one that is gone may not make it fail or slow."""

    async def trouble(number: int) -> None:
        own = server.channel()
        call = own.stream_stream(LISTEN.path)(metadata=METADATA)
        await call.write(listening())
        await call.read()
        leaving = asyncio.ensure_future(own.close())
        written = await asked(
            channel, *commit(set_to(f"c/{number % 7}", {"n": {"integer_value": number}}))
        )
        assert written.code is grpc.StatusCode.OK
        await leaving

    await leaves_nothing(server, channel, 150, trouble)


async def test_answers_that_nobody_reads(server, channel):
    """A caller that asks for much and reads little of it holds up only itself."""
    large = {"b": {"bytes_value": b"x" * 900_000}}
    for number in range(8):
        written = await asked(channel, *commit(set_to(f"large/{number}", large)))
        assert written.code is grpc.StatusCode.OK
    all_of_them = methods()["RunQuery"].request(parent=ROOT, structured_query=query("large"))

    async def trouble(_: int) -> None:
        own = server.channel()
        call: Any = own.unary_stream(methods()["RunQuery"].path)(
            all_of_them.SerializeToString(), metadata=METADATA
        )
        await call.read()
        found = await asked(channel, *batch_get("c/000"))
        assert found.code is grpc.StatusCode.OK
        await own.close()

    await leaves_nothing(server, channel, 60, trouble)


async def test_transactions_that_are_left_open(server, channel):
    """When there are too many, those who begin another one are refused. Nobody else is."""
    codes: set[Any] = set()

    async def trouble(_: int) -> None:
        codes.add((await asked(channel, *begin(read_write={}))).code)

    before = server.resident()
    await everyone(10_500, trouble)
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert server.resident() - before < 4 * GROWTH
    assert (await asked(channel, *commit(set_to("c/a", SMALL)))).code is grpc.StatusCode.OK
    another = {"database": DATABASE.replace("fuzz", "another")}
    assert (await asked(channel, "BeginTransaction", another)).code is grpc.StatusCode.OK
    assert await server.complaint(channel) is None


async def test_databases_that_are_only_named(server, channel):
    names = itertools.count()

    async def trouble(_: int) -> None:
        missing = {"name": f"projects/p{next(names)}/databases/d/documents/c/a"}
        assert (await asked(channel, "GetDocument", missing)).code is grpc.StatusCode.NOT_FOUND

    await leaves_nothing(server, channel, 3_000, trouble)


async def test_connections_that_speak_another_language(server, channel):
    """Bytes that are no HTTP/2, or stop in the middle of it."""
    host, _, port = server.address.partition(":")
    chance = random.Random(1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    openings = (
        b"",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        preface,
        preface + b"\0\0\0\4\0\0\0\0\0",
        preface + b"\xff\xff\xff\1\5\0\0\0\1",
        preface + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\4\1\5\0\0\0\1\xff\xff\xff\xff",
    )

    async def trouble(number: int) -> None:
        rude = socket.socket()
        rude.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(rude, (host, int(port)))
        noise = chance.randbytes(number % 200)
        with suppress(OSError):  # it may have hung up already
            await loop.sock_sendall(rude, openings[number % len(openings)] + noise)
        rude.close()

    await leaves_nothing(server, channel, 500, trouble)
