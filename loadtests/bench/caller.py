"""A calling process: one kind of call, a fixed number of them, so many in flight.

    python -m loadtests.bench.caller KIND JSON

Prints "ready", then for each line {"ops": n} on stdin one line of JSON: seconds, its
own CPU, p50 and p99. With a "rate" the calls begin at so many a second, whatever becomes of
those before. Every answer is looked at; a wrong one ends the process.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from crossfade_client import AsyncCrossfade, Query
from loadtests.bench import data

READY = "ready"
Call = Callable[[int], Awaitable[None]]


class WrongAnswer(Exception):
    """What came is not what was written."""


def expect(truth: bool) -> None:
    if not truth:
        raise WrongAnswer


# --- kinds of calls ------------------------------------------------------------------------------


async def crossfade_get(options: dict[str, Any]) -> Call:
    client = AsyncCrossfade(options["target"], timeout=30.0)

    async def call(number: int) -> None:
        task_id = data.task_id(number)
        found = await client.get(f"{data.COLLECTION}/{task_id}")
        expect(found.fields["task_id"] == task_id)

    return call


async def crossfade_query(options: dict[str, Any]) -> Call:
    client = AsyncCrossfade(options["target"], timeout=30.0)
    query = Query(data.COLLECTION).where("status", "==", data.FOUND_STATUS).limit(data.IN_QUERY)

    async def call(_: int) -> None:
        found = [snapshot.fields async for snapshot in client.query(query)]
        expect(len(found) == data.IN_QUERY)

    return call


async def crossfade_set(options: dict[str, Any]) -> Call:
    client = AsyncCrossfade(options["target"], timeout=30.0)

    async def call(number: int) -> None:
        result = await client.set(f"{data.COLLECTION}/{data.task_id(number)}", data.fields(number))
        expect(result.update_time is not None)

    return call


async def orm_get(options: dict[str, Any]) -> Call:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    from loadtests.bench import sql

    session = async_sessionmaker(sql.engine(options["dsn"], options["connections"]))

    async def call(number: int) -> None:
        task_id = data.task_id(number)
        async with session() as opened:
            found = await opened.get(sql.Task, task_id)
            expect(found is not None and found.task_id == task_id)

    return call


def _firestore(options: dict[str, Any]) -> Any:
    os.environ["FIRESTORE_EMULATOR_HOST"] = options["emulator"]
    from google.cloud.firestore import AsyncClient

    return AsyncClient(project=options["project"])


async def firestore_query(options: dict[str, Any]) -> Call:
    from google.cloud.firestore import FieldFilter

    collection = _firestore(options).collection(data.COLLECTION)
    filtered = collection.where(filter=FieldFilter("status", "==", data.FOUND_STATUS))
    query = filtered.limit(data.IN_QUERY)

    async def call(_: int) -> None:
        found = [snapshot.to_dict() async for snapshot in query.stream()]
        expect(len(found) == data.IN_QUERY)

    return call


async def firestore_set(options: dict[str, Any]) -> Call:
    collection = _firestore(options).collection(data.COLLECTION)

    async def call(number: int) -> None:
        result = await collection.document(data.task_id(number)).set(data.fields(number))
        expect(result.update_time is not None)

    return call


async def dual_set(options: dict[str, Any]) -> Call:
    """The straightforward adapter: Firestore first, then the same row through the ORM. It
    keeps no pending rows, so an error in between leaves the two stores apart for ever."""
    from sqlalchemy.ext.asyncio import async_sessionmaker

    from loadtests.bench import sql

    collection = _firestore(options).collection(data.COLLECTION)
    session = async_sessionmaker(sql.engine(options["dsn"], options["connections"]))

    async def call(number: int) -> None:
        result = await collection.document(data.task_id(number)).set(data.fields(number))
        expect(result.update_time is not None)
        async with session() as opened, opened.begin():
            await opened.merge(sql.Task(**sql.row(number)))

    return call


async def raw(options: dict[str, Any]) -> Call:
    """Bytes in and out: the requests of a file, hexadecimal lines, in turns. Nothing is
    encoded and nothing read, so that the caller takes as little as it can."""
    channel = grpc.aio.insecure_channel(options["target"])
    requests = _from_hex(Path(options["requests"]))
    unary: Any = channel.unary_unary(options["method"])
    stream: Any = channel.unary_stream(options["method"])
    count, answers, least = len(requests), options["answers"], options["least"]

    async def call(number: int) -> None:
        expect(len(await unary(requests[number % count], timeout=30.0)) >= least)

    async def call_stream(number: int) -> None:
        found = [answer async for answer in stream(requests[number % count], timeout=30.0)]
        expect(len(found) == answers and sum(map(len, found)) >= least)

    return call_stream if answers else call


def _from_hex(file: Path) -> list[bytes]:
    return [bytes.fromhex(line) for line in file.read_text().split()]


KINDS: dict[str, Callable[[dict[str, Any]], Awaitable[Call]]] = {
    "crossfade_get": crossfade_get,
    "crossfade_query": crossfade_query,
    "crossfade_set": crossfade_set,
    "orm_get": orm_get,
    "firestore_query": firestore_query,
    "firestore_set": firestore_set,
    "dual_set": dual_set,
    "raw": raw,
}


# --- running -------------------------------------------------------------------------------------


async def burst(
    call: Call, ops: int, in_flight: int, rate: float | None = None
) -> dict[str, float]:
    numbers = iter(range(ops))
    latencies: list[float] = []

    async def one(number: int) -> None:
        begun = time.perf_counter()
        await call(number)
        latencies.append(time.perf_counter() - begun)

    async def worker() -> None:
        for number in numbers:
            await one(number)

    cpu, begun = time.process_time(), time.perf_counter()
    if rate is None:
        await asyncio.gather(*(worker() for _ in range(in_flight)))
    else:
        async with asyncio.TaskGroup() as calls:
            for number in numbers:
                await asyncio.sleep(begun + number / rate - time.perf_counter())
                calls.create_task(one(number))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    latencies.sort()
    return {
        "ops": ops,
        "seconds": seconds,
        "cpu": cpu,
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[min(len(latencies) * 99 // 100, len(latencies) - 1)],
    }


async def main(kind: str, options: dict[str, Any]) -> None:
    make = KINDS.get(kind)
    if make is None:
        from loadtests.bench import in_process  # the others need neither store nor tables

        make = getattr(in_process, kind)
    call = await make(options)
    loop = asyncio.get_running_loop()
    # Its own pauses would be taken for the server's.
    gc.collect()
    gc.freeze()
    print(READY, flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        found = await burst(call, order["ops"], options["in_flight"], order.get("rate"))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], json.loads(sys.argv[2])))
