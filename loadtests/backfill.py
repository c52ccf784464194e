"""`python -m loadtests.backfill`: what the copy costs against a plain drain and a plain script.

Over the violet documents of the generator, in the embedded Firestore, each in turns in one
run and told as ratios:

- drain: the same ranges, pages and workers, read as raw bytes and dropped (target >= 0.6).
- script: `AsyncClient.stream()` and one ORM insert for each document (target >= 5).
- memory: the most that a copy's process holds of many documents, against few (<= 1.2).
- callers: p99 of a live caller beside a copy that is throttled, against without (<= 1.2),
  with a control: without, again.

Exit codes: 0 all targets are met; 1 one is not, or a part failed.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from pydantic import SecretStr
from sqlalchemy import JSON, Text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from crossfade import app, embedded, records, wire
from crossfade.apart import apart
from crossfade.document import Database, Document
from crossfade.jobs.partitions import NameRange
from crossfade.jobs.planning import plan_firestore, within
from crossfade.plan import Stage
from crossfade.settings import (
    FirestoreSettings,
    MigrationSettings,
    PostgresqlSettings,
    ServerSettings,
    Settings,
)
from crossfade.stores.firestore import INTENTS, FirestoreStore, connect
from crossfade.telemetry import Telemetry
from crossfade_client import AsyncCrossfade
from tests.postgres_fixture import with_database
from violet import sample
from violet.mapping import MAPPINGS

DATABASE = Database("violet")
DRAIN, SCRIPT, MEMORY, CALLERS = 0.6, 5.0, 1.2, 1.2
WORKERS, PAGE = 4, 400
SCRIPTED = 3_000
"""Documents that the script copies: it is slow, and has no more to it."""
START_SECONDS = 900.0
CALLS, CALL_SECONDS, RATE = 40.0, 20.0, 200.0
"""Calls a second of the live caller, for so long; documents a second of the copy beside it."""
COMMIT = 500


class Failed(Exception):
    """A part of the bench did not do what it should."""


@dataclass
class Figures:
    """One entry a round: documents a second, and ratios of p99."""

    drain: list[float] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)
    script: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    memory: dict[int, float] = field(default_factory=dict)


# --- the stores --------------------------------------------------------------------------------


def _write_journal(directory: Path, tasks: int) -> int:
    """The sample as a journal of the embedded Firestore; how many documents that is. Commits
    over the protocol would take longer than all that is measured."""
    directory.mkdir(parents=True)
    count, now = 0, time.time_ns() // 1_000 - 10**9
    batch: list[tuple[str, Document | None]] = []
    with (directory / "journal-000001").open("wb") as file:
        file.write(records.MAGIC)
        for path, fields in sample.documents(1, tasks):
            time_ = now + count // COMMIT
            batch.append((path, Document(path, fields, time_, time_)))
            count += 1
            if len(batch) == COMMIT:
                file.write(records.commit(DATABASE, time_, batch))
                batch = []
        if batch:
            file.write(records.commit(DATABASE, now + count // COMMIT, batch))
    return count


@dataclass
class Stack:
    postgres: str
    firestore: embedded.EmbeddedFirestore
    documents: int
    databases: int = 0

    async def fresh(self) -> str:
        """The URL of a new, empty database."""
        self.databases += 1
        connection = await asyncpg.connect(self.postgres)
        await connection.execute(f"create database bench_{self.databases}")
        await connection.close()
        return with_database(self.postgres, f"bench_{self.databases}")

    def settings(self, url: str) -> Settings:
        return Settings(
            server=ServerSettings(port=0),
            firestore=FirestoreSettings(project=DATABASE.project, emulator=self.firestore.address),
            postgresql=PostgresqlSettings(url=SecretStr(url)),
            migration=MigrationSettings(stage=Stage.DUAL_WRITE, lease=0.5, horizon=0.5),
        )


@asynccontextmanager
async def _stack(directory: Path, tasks: int) -> AsyncIterator[Stack]:
    embedded.START_SECONDS = START_SECONDS
    documents = _write_journal(directory / "firestore", tasks)
    async with (
        embedded.EmbeddedPostgres(directory / "postgresql") as postgres,
        embedded.EmbeddedFirestore(data_dir=directory / "firestore") as firestore,
    ):
        yield Stack(postgres.url, firestore, documents)


# --- what is measured --------------------------------------------------------------------------


async def _drain(stack: Stack, ranges: Sequence[NameRange]) -> float:
    """Documents a second."""
    store = connect(DATABASE, stack.firestore.address)
    left = list(ranges)[::-1]
    counts: list[int] = []

    async def worker() -> None:
        while left:
            counts.append(await _drained(store, left.pop()))

    began = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(WORKERS)))
    seconds = time.monotonic() - began
    await store.close()
    count = sum(counts)
    if count != stack.documents:
        raise Failed(f"the drain met {count} of {stack.documents} documents")
    return count / seconds


async def _drained(store: FirestoreStore, names: NameRange) -> int:
    after, total = None, 0
    while True:
        found, last = 0, b""
        async for page in store.query(within(names, after=after, limit=PAGE), timeout=120):
            for number, value in wire.scan(page.frames):
                if number == 1 and isinstance(value, bytes):
                    found, last = found + 1, value
        total += found
        if found < PAGE:
            return total
        after = DATABASE.relative(wire.identity_of(last)[0])


async def _copy(stack: Stack, url: str, *more: str) -> tuple[float, float]:
    """Documents a second of a process of its own, from the job's beginning to its end, and the
    most memory that it held, in MiB."""
    environment = os.environ | {
        "FIRESTORE_EMULATOR_HOST": stack.firestore.address,
        "GOOGLE_CLOUD_PROJECT": DATABASE.project,
        "DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "crossfade", "backfill", "--json", "--new", *more]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE
    )
    most, watched = 0.0, psutil.Process(process.pid)
    output = asyncio.create_task(process.communicate())
    while not output.done():
        if watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
            most = max(most, watched.memory_info().rss / 1_048_576)
        await asyncio.wait([output], timeout=0.2)
    out, _ = await output
    if process.returncode:
        raise Failed(f"the copy ended with {process.returncode}")
    told = json.loads(out.splitlines()[-1])
    if told["documents"] != stack.documents:
        raise Failed(f"the copy was of {told['documents']} of {stack.documents} documents")
    connection = await asyncpg.connect(url)
    seconds = await connection.fetchval(
        "select extract(epoch from ended_at - begun_at)::float8 from crossfade.jobs where id = $1",
        told["job"],
    )
    await connection.close()
    return stack.documents / seconds, most


class _Base(DeclarativeBase):
    pass


class _Row(_Base):
    """What the script's author would have: a table for it all."""

    __tablename__ = "copied"
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    fields: Mapped[Any] = mapped_column(JSON)


async def _script(stack: Stack, url: str) -> float:
    """Documents a second of the straightforward script."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.firestore import AsyncClient

    os.environ["FIRESTORE_EMULATOR_HOST"] = stack.firestore.address
    client = AsyncClient(project=DATABASE.project, credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]
    engine = create_async_engine("postgresql+asyncpg://" + url.partition("://")[2])
    async with engine.begin() as connection:
        await connection.run_sync(_Base.metadata.create_all)
    count, began = 0, time.monotonic()
    async for found in client.collection("tasks").limit(SCRIPTED).stream():
        async with AsyncSession(engine) as session:
            text = json.dumps(found.to_dict(), default=str)
            fields = json.loads(text, parse_constant=str)  # NaN is no JSON
            session.add(_Row(path=found.reference.path, fields=fields))
            await session.commit()
        count += 1
    seconds = time.monotonic() - began
    await engine.dispose()
    return count / seconds


async def _p99(sidecar: app.Sidecar, seconds: float) -> float:
    """Milliseconds, of calls at a steady rate whatever becomes of those before."""
    times: list[float] = []
    async with AsyncCrossfade(sidecar.address, timeout=10) as client:

        async def call(number: int) -> None:
            began = time.monotonic()
            path = f"bench/{number % 97}"
            await (client.find(path) if number % 2 else client.set(path, {"n": number}))
            times.append(time.monotonic() - began)

        began = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            for number in range(int(seconds * CALLS)):
                await asyncio.sleep(began + number / CALLS - time.monotonic())
                calls.create_task(call(number))
    times.sort()
    return times[int(len(times) * 0.99)] * 1e3


async def _callers(stack: Stack, figures: Figures, rounds: int, seconds: float) -> None:
    """The copy runs in a process of its own, and is ended when it was measured."""
    url = await stack.fresh()
    sidecar = await app.start(stack.settings(url), Telemetry())
    try:
        await _p99(sidecar, 5)
        for _ in range(rounds):
            alone = await _p99(sidecar, seconds)
            copying = asyncio.create_task(_copy(stack, url, "--rate", str(RATE)))
            await asyncio.sleep(3)
            beside = await _p99(sidecar, seconds)
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            for child in psutil.Process().children():
                if "backfill" in child.cmdline():
                    child.terminate()
            await asyncio.sleep(2)
            again = await _p99(sidecar, seconds)
            figures.beside.append(2 * beside / (alone + again))
            figures.control.append(again / alone)
    finally:
        await sidecar.stop(5)


# --- all of it ---------------------------------------------------------------------------------


async def _measure(options: argparse.Namespace, figures: Figures) -> None:
    sizes = [options.tasks] if options.only and "memory" not in options.only else []
    sizes = sizes or [max(1, options.tasks // 10), options.tasks]
    for tasks in sizes:
        with tempfile.TemporaryDirectory(prefix="crossfade-bench-") as directory:
            async with _stack(Path(directory), tasks) as stack, AsyncExitStack() as resources:
                print(f"{stack.documents:,} documents", flush=True)
                await _part(stack, figures, options, resources, last=tasks == sizes[-1])


async def _part(
    stack: Stack,
    figures: Figures,
    options: argparse.Namespace,
    resources: AsyncExitStack,
    *,
    last: bool,
) -> None:
    wanted = set(options.only or ("drain", "script", "memory", "callers"))
    most = 0.0
    for _ in range(options.rounds if last else 1):
        url = await stack.fresh()
        sidecar = await app.start(stack.settings(url), Telemetry())
        try:
            async with apart(stack.settings(url), workers=1, settles=False) as own:
                placed, _ = await plan_firestore(own.both.firestore, MAPPINGS, timeout=120)
            if last and "drain" in wanted:
                ranges = [each for _, each in placed if each.collection != INTENTS]
                figures.drain.append(await _drain(stack, ranges))
                print(f"  drain {figures.drain[-1]:,.0f}/s", flush=True)
            if last and "script" in wanted:
                figures.script.append(await _script(stack, await stack.fresh()))
                print(f"  script {figures.script[-1]:,.0f}/s", flush=True)
            if wanted & {"drain", "script", "memory"}:
                rate, held = await _copy(stack, url, "--workers", str(WORKERS))
                most = max(most, held)
                if last:
                    figures.copy.append(rate)
                print(f"  copy {rate:,.0f}/s, {held:,.0f} MiB", flush=True)
        finally:
            await sidecar.stop(5)
    if "memory" in wanted:
        figures.memory[stack.documents] = most
    if last and "callers" in wanted:
        await _callers(stack, figures, options.rounds, options.seconds)
    await resources.aclose()


def _judge(figures: Figures) -> bool:
    good = True

    def line(name: str, ratio: float, target: float, *, least: bool, more: str = "") -> None:
        nonlocal good
        met = ratio >= target if least else ratio <= target
        good = good and met
        sign = ">=" if least else "<="
        print(f"{name:46} {ratio:6.2f}  {sign} {target:g}  {'met' if met else 'MISSED'}  {more}")

    def pairs(base: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(figures.copy, base, strict=True))

    if figures.drain:
        line("documents/s, copy / drain", pairs(figures.drain), DRAIN, least=True)
    if figures.script:
        line("documents/s, copy / script", pairs(figures.script), SCRIPT, least=True)
    if len(figures.memory) > 1:
        few, many = (figures.memory[size] for size in sorted(figures.memory))
        line("memory, many / few documents", many / few, MEMORY, least=False)
    if figures.beside:
        control = f"(control {statistics.median(figures.control):.2f})"
        ratio = statistics.median(figures.beside)
        line("p99 of a caller, beside / without", ratio, CALLERS, least=False, more=control)
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    figures = Figures()
    run: Callable[[], Awaitable[None]] = lambda: _measure(options, figures)  # noqa: E731
    try:
        asyncio.run(run())  # type: ignore[arg-type]
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0 if _judge(figures) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.backfill",
        description="The copy against a plain drain, a plain script, and callers beside it.",
        epilog="Exit codes: 0 all targets are met; 1 one is not, or a part failed.",
    )
    parser.add_argument(
        "--tasks",
        type=int,
        default=10_000,
        help="(%(default)s; about twice as many documents; 1,000,000 takes an hour and 12 GB)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="of a caller's phase")
    parser.add_argument("--only", action="append", choices=("drain", "script", "memory", "callers"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
