"""`python -m loadtests.backfill`: what the copy costs against a plain drain and a plain script.

Over the violet documents of the generator, in the embedded Firestore or (--official) in the
official emulator, each in turns in one run, on the same servers, and told as ratios:

- drain: the same ranges, pages and workers, read as raw bytes and dropped (target >= 0.6),
  with a control: drained again after the copy.
- script: `AsyncClient.stream()` and one ORM insert for each document (target >= 5).
- callers: p99 of a live caller beside a copy that is throttled, against without (<= 1.2),
  with a control: without, again.
- memory, only where asked for (--only memory): the most that a copy's process holds of
  --many documents, against --few (<= 1.2).

Where two identical cases differ by more than MARGIN nothing is resolved. The copy's CPU is
told, too: on one machine it has to share the cores that a drain leaves idle.

Exit codes: 0 all targets are met; 1 one is not or is not resolved, or a part failed.
"""

import argparse
import asyncio
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
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
from crossfade.write import Write
from crossfade_client import AsyncCrossfade
from loadtests.bench import servers
from tests.postgres_fixture import with_database
from violet import sample
from violet.mapping import MAPPINGS

DATABASE = Database("violet")
DRAIN, SCRIPT, MEMORY, CALLERS = 0.6, 5.0, 1.2, 1.2
MARGIN = 0.15
WORKERS, PAGE = 4, 400
PARTS = ("drain", "script", "callers", "memory")
TASKS, OFFICIAL_TASKS = 47_500, 10_000
DOCUMENTS_PER_TASK = 2.1
"""Of the sample, about."""
FEW, MANY = 100_000, 1_000_000
SCRIPTED = 3_000
"""Documents that the script copies: it is slow, and has no more to it."""
START_SECONDS = 900.0
CALLS, CALL_SECONDS, RATE = 100.0, 20.0, 200
"""Calls a second of the live caller, for so long; documents a second of the copy beside it."""
WARM_SECONDS = 15.0
BEGUN = """select exists (
    select from crossfade.job_partitions where job > $1 and position is not null)"""
COMMIT = 500


class Failed(Exception):
    """A part of the bench did not do what it should."""


@dataclass(frozen=True, slots=True)
class Copied:
    """`rate`: documents a second. `own`, `postgresql`: microseconds of CPU for a document, of
    the copy's process, its start with it, and of PostgreSQL's. `memory`: MiB."""

    rate: float
    own: float
    postgresql: float
    memory: float


@dataclass
class Figures:
    """One entry a round: documents a second, CPU, and ratios of p99. `again`: the drain after
    the copy; `memory`: MiB by documents."""

    drain: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    copy: list["Copied"] = field(default_factory=list)
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
    """`postgres`: a URL; `firestore`: HOST:PORT."""

    postgres: str
    firestore: str
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
            firestore=FirestoreSettings(project=DATABASE.project, emulator=self.firestore),
            postgresql=PostgresqlSettings(url=SecretStr(url)),
            migration=MigrationSettings(stage=Stage.DUAL_WRITE, lease=0.5, horizon=0.5),
        )


async def _load(firestore: str, tasks: int) -> int:
    """The same by commits, for a Firestore that has no such journal."""
    store, count = connect(DATABASE, firestore), 0
    documents = sample.documents(1, tasks)
    while few := list(itertools.islice(documents, COMMIT)):
        await store.commit([Write(path, fields) for path, fields in few], timeout=120)
        count += len(few)
    await store.close()
    return count


@asynccontextmanager
async def _stack(directory: Path, tasks: int, *, official: bool = False) -> AsyncIterator[Stack]:
    embedded.START_SECONDS = START_SECONDS
    async with AsyncExitStack() as resources:
        postgres = await resources.enter_async_context(
            embedded.EmbeddedPostgres(directory / "postgresql")
        )
        if official:
            which, _, address = resources.enter_context(servers.firestore(directory))
            if which == "embedded":
                raise Failed("the official emulator is not installed")
            documents = await _load(address, tasks)
        else:
            documents = _write_journal(directory / "firestore", tasks)
            firestore = embedded.EmbeddedFirestore(data_dir=directory / "firestore")
            address = (await resources.enter_async_context(firestore)).address
        yield Stack(postgres.url, address, documents)


# --- what is measured --------------------------------------------------------------------------


async def _drain(stack: Stack, ranges: Sequence[NameRange]) -> float:
    """Documents a second."""
    store = connect(DATABASE, stack.firestore)
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


async def _copy(stack: Stack, url: str, *more: str) -> Copied:
    """By a process of its own; its rate is that of the job from its beginning to its end."""
    environment = os.environ | {
        "FIRESTORE_EMULATOR_HOST": stack.firestore,
        "GOOGLE_CLOUD_PROJECT": DATABASE.project,
        "DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "crossfade", "backfill", "--json", "--new", *more]
    connection = await asyncpg.connect(url)
    server = psutil.Process(await connection.fetchval("select pg_backend_pid()")).parent()
    assert server is not None
    before, ended_before = _family_cpu(server), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE
    )
    most, watched = 0.0, psutil.Process(process.pid)
    output = asyncio.create_task(process.communicate())
    try:
        while not output.done():
            if watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
                most = max(most, watched.memory_info().rss / 1_048_576)
            await asyncio.wait([output], timeout=0.2)
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    out, _ = await output
    if process.returncode:
        raise Failed(f"the copy ended with {process.returncode}")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = _family_cpu(server) - before
    told = json.loads(out.splitlines()[-1])
    if told["documents"] != stack.documents:
        raise Failed(f"the copy was of {told['documents']} of {stack.documents} documents")
    seconds = await connection.fetchval(
        "select extract(epoch from ended_at - begun_at)::float8 from crossfade.jobs where id = $1",
        told["job"],
    )
    await connection.close()
    own = ended.ru_utime + ended.ru_stime - ended_before.ru_utime - ended_before.ru_stime
    each = 1e6 / stack.documents
    return Copied(stack.documents / seconds, own * each, spent * each, most)


def _family_cpu(parent: psutil.Process) -> float:
    """Seconds of a server and of its processes, those that have ended with them."""
    own = parent.cpu_times()
    total: float = own.user + own.system + own.children_user + own.children_system
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):  # counted above by now, or the next time
            times = child.cpu_times()
            total += times.user + times.system
    return total


class _Base(DeclarativeBase):
    """Of the script's tables, of which there is one."""


class _Row(_Base):
    """What the script's author would have: a table for it all."""

    __tablename__ = "copied"
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    fields: Mapped[Any] = mapped_column(JSON)


async def _script(stack: Stack, url: str) -> float:
    """Documents a second of the straightforward script."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.firestore import AsyncClient

    os.environ["FIRESTORE_EMULATOR_HOST"] = stack.firestore
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


async def _callers(stack: Stack, figures: Figures, rounds: int, seconds: float, rate: int) -> None:
    """The copy runs in a process of its own, and is ended when it was measured. What it copied
    is copied again in the next round."""
    url = await stack.fresh()
    sidecar = await app.start(stack.settings(url), Telemetry())
    try:
        await _p99(sidecar, 5)
        for _ in range(rounds):
            alone = await _p99(sidecar, seconds)
            async with _copying(stack, url, rate):
                beside = await _p99(sidecar, seconds)
            await asyncio.sleep(2)
            again = await _p99(sidecar, seconds)
            figures.beside.append(2 * beside / (alone + again))
            figures.control.append(again / alone)
    finally:
        await sidecar.stop(5)


@asynccontextmanager
async def _copying(stack: Stack, url: str, rate: int) -> AsyncIterator[None]:
    """A throttled copy that has begun. Raises Failed when it ends before the block does."""
    connection = await asyncpg.connect(url)
    last = await connection.fetchval("select coalesce(max(id), 0) from crossfade.jobs")
    copying = asyncio.create_task(_copy(stack, url, "--rate", str(rate)))
    try:
        ends = time.monotonic() + WARM_SECONDS
        while not copying.done() and not await connection.fetchval(BEGUN, last):
            if time.monotonic() > ends:
                raise Failed(f"the copy has not begun in {WARM_SECONDS:.0f} s")
            await asyncio.sleep(0.1)
        yield
        if copying.done():
            raise Failed("the copy ended before its callers were measured: more --tasks")
    finally:
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
        await connection.close()


# --- all of it ---------------------------------------------------------------------------------


async def _measure(options: argparse.Namespace, figures: Figures) -> None:
    wanted = set(options.only or PARTS[:3])
    if wanted - {"memory"}:
        async with _measured_on(_tasks(options), official=options.official) as stack:
            if wanted & {"drain", "script"}:
                for _ in range(options.rounds):
                    await _round(stack, figures, wanted)
            if "callers" in wanted:
                await _callers(stack, figures, options.rounds, options.seconds, options.rate)
    if "memory" in wanted:
        for documents in (options.few, options.many):
            async with _measured_on(int(documents / DOCUMENTS_PER_TASK)) as stack:
                async with _migrating(stack) as url:
                    copied = await _copy(stack, url, "--workers", str(WORKERS))
                print(f"  copy {copied.rate:,.0f}/s, {copied.memory:,.0f} MiB", flush=True)
                figures.memory[stack.documents] = copied.memory


def _tasks(options: argparse.Namespace) -> int:
    tasks: int = options.tasks or (OFFICIAL_TASKS if options.official else TASKS)
    return tasks


@asynccontextmanager
async def _measured_on(tasks: int, *, official: bool = False) -> AsyncIterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="crossfade-bench-") as directory:
        async with _stack(Path(directory), tasks, official=official) as stack:
            print(f"{stack.documents:,} documents", flush=True)
            yield stack


@asynccontextmanager
async def _migrating(stack: Stack) -> AsyncIterator[str]:
    """The URL of a database that is to be copied to, and is empty."""
    url = await stack.fresh()
    sidecar = await app.start(stack.settings(url), Telemetry())
    try:
        yield url
    finally:
        await sidecar.stop(5)


async def _round(stack: Stack, figures: Figures, wanted: set[str]) -> None:
    async with _migrating(stack) as url:
        async with apart(stack.settings(url), workers=1, settles=False) as own:
            placed, _ = await plan_firestore(own.both.firestore, MAPPINGS, timeout=120)
        ranges = [each for _, each in placed if each.collection != INTENTS]
        if "drain" in wanted:
            figures.drain.append(await _drain(stack, ranges))
            print(f"  drain  {figures.drain[-1]:8,.0f}/s", flush=True)
        copied = await _copy(stack, url, "--workers", str(WORKERS))
        figures.copy.append(copied)
        print(
            f"  copy   {copied.rate:8,.0f}/s, {copied.memory:.0f} MiB; CPU of a document: "
            f"{copied.own:.0f} µs, and PostgreSQL's {copied.postgresql:.0f}",
            flush=True,
        )
        if "drain" in wanted:
            figures.again.append(await _drain(stack, ranges))
            print(f"  again  {figures.again[-1]:8,.0f}/s", flush=True)
        if "script" in wanted:
            figures.script.append(await _script(stack, await stack.fresh()))
            print(f"  script {figures.script[-1]:8,.0f}/s", flush=True)


def _judge(figures: Figures) -> bool:
    """Prints what came of it; whether all is resolved and met."""
    good = True

    def line(
        name: str, ratio: float, target: float, *, least: bool, control: float | None = None
    ) -> None:
        nonlocal good
        met = ratio >= target if least else ratio <= target
        resolved = control is None or abs(control - 1) <= MARGIN
        good = good and met and resolved
        word = ("met" if met else "MISSED") if resolved else "not resolved"
        more = "" if control is None else f"(A/A {control:.2f})"
        print(f"{name:38} {ratio:6.2f}  {'>=' if least else '<='} {target:g}  {word}  {more}")

    def against(base: Sequence[float]) -> float:
        pairs = zip(figures.copy, base, strict=True)
        return statistics.median(copied.rate / other for copied, other in pairs)

    if figures.drain:
        both = list(zip(figures.drain, figures.again, strict=True))
        control = statistics.median(again / first for first, again in both)
        means = [statistics.mean(pair) for pair in both]
        line("documents/s, copy / drain", against(means), DRAIN, least=True, control=control)
        own = statistics.median(copied.own for copied in figures.copy)
        ratio = 1e6 / own / statistics.median(means)
        print(f"{'documents per CPU second of the copy, / drain':38} {ratio:6.2f}")
    if figures.script:
        line("documents/s, copy / script", against(figures.script), SCRIPT, least=True)
    if figures.memory:
        few, many = (figures.memory[size] for size in sorted(figures.memory))
        line("memory, many / few documents", many / few, MEMORY, least=False)
    if figures.beside:
        line(
            "p99 of a caller, beside / without",
            statistics.median(figures.beside),
            CALLERS,
            least=False,
            control=statistics.median(figures.control),
        )
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    figures = Figures()
    try:
        asyncio.run(_measure(options, figures))
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
        help=f"({TASKS:,}, which is 100,000 documents, of the official emulator "
        f"{OFFICIAL_TASKS:,}; not of the memory)",
    )
    parser.add_argument(
        "--official",
        action="store_true",
        help="the official emulator (which reads a collection whole for every page) instead of "
        "the embedded Firestore; not of the memory",
    )
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="of a caller's phase")
    parser.add_argument(
        "--rate", type=int, default=RATE, help="documents/s beside callers (%(default)s)"
    )
    parser.add_argument("--few", type=int, default=FEW, help="documents, about (%(default)s)")
    parser.add_argument(
        "--many",
        type=int,
        default=MANY,
        help="documents, about (%(default)s, which takes a quarter of an hour and 5 GB)",
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="(all but memory)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
