"""The rehearsal: a throwaway stack is walked through every stage under traffic.

What it proves, on real stores, processes and sockets: no acknowledged write is
lost, nothing read is stale, nothing deleted comes back, and both stores hold the
same documents in the end.
"""

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
from pydantic import SecretStr

from crossfade import app
from crossfade.document import Database, Fields
from crossfade.durations import quantile
from crossfade.embedded import EmbeddedFirestore, EmbeddedPostgres
from crossfade.forward import MirrorMode
from crossfade.jobs.compare import Comparison, compare
from crossfade.ledger import Ledger
from crossfade.plan import StoreName
from crossfade.settings import (
    FirestoreSettings,
    MigrationSettings,
    PostgresqlSettings,
    ServerSettings,
    Settings,
)
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.telemetry import COMMITS, READS, VERDICTS, Telemetry
from crossfade.verdict import BAD
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from crossfade_client import AsyncCrossfade

PROJECT = "rehearsal"
COMPARE_TIMEOUT = 30.0
WRITES_PER_COMMIT = 100
CALLERS = 3
CALLER_PERIOD = 0.05
LEASE_SECONDS, HORIZON_SECONDS = 0.5, 1.0
"""Short, as everything is on one machine: a rehearsal need not wait for a network."""

Start = Callable[[Settings, Telemetry], Awaitable[app.Sidecar]]


@dataclass(frozen=True, slots=True)
class RehearsalOptions:
    """`seconds` of traffic in every stage; `tasks` sample tasks and all that goes with them."""

    seconds: float = 2.0
    workers: int = 8
    tasks: int = 200
    seed: int = 1
    mirror: MirrorMode = "async"
    sample: str = "violet"
    """The package whose `sample.documents(seed, tasks)` are the old documents."""


@dataclass(slots=True)
class StepReport:
    """One stage of the walk. Latencies: [p50, p95, p99] in milliseconds, by store."""

    name: str
    reads: dict[str, int]
    writes: int
    verdicts: dict[str, int]
    errors: dict[str, int]
    latencies: dict[str, list[float]]


@dataclass(slots=True)
class Report:
    """`lost` … `stale` are findings of the clients, of the shadow reads, and of the final
    comparison together; all of them must be 0, and so must `errors`."""

    steps: list[StepReport] = field(default_factory=list)
    documents: int = 0
    lost: int = 0
    wrong: int = 0
    missing: int = 0
    extra: int = 0
    stale: int = 0
    errors: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (
            self.lost or self.wrong or self.missing or self.extra or self.stale or self.errors
        )

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


WALK: tuple[tuple[str, str, float | None], ...] = (
    # name, stage, read percent (None: as it is)
    ("off", "off", None),
    ("dual_write", "dual_write", None),
    ("copy", "dual_write", None),
    ("shadow", "shadow", 0),
    ("shadow 1 %", "shadow", 1),
    ("shadow 10 %", "shadow", 10),
    ("shadow 50 %", "shadow", 50),
    ("shadow 100 %", "shadow", 100),
    ("live", "live", None),
    ("back to shadow", "shadow", None),
    ("live again", "live", None),
    ("ramp_down", "ramp_down", None),
    ("compare", "ramp_down", None),
    ("complete", "complete", None),
)


async def rehearse(
    options: RehearsalOptions,
    progress: Callable[[str], None] = lambda _: None,
    start: Start = app.start,
) -> Report:
    """Runs the whole walk. `progress` hears a line for each step."""
    began = time.monotonic()
    report = Report()
    async with _stack(options, start, progress) as stack:
        ledger = asyncio.create_task(stack.ledger.run())
        stack.callers = [asyncio.create_task(caller) for caller in _callers(stack, options)]
        try:
            for name, stage, percent in WALK:
                progress(name)
                await _step(stack, options, report, name, stage, percent)
        except grpc.aio.AioRpcError as error:
            # The walk ends here: a stage that is not reached is a finding, too.
            report.errors += 1
            report.notes.append(f"{name}: {error.details()}")
        finally:
            for task in (ledger, *stack.callers):
                task.cancel()
            await asyncio.gather(ledger, *stack.callers, return_exceptions=True)
        _conclude(stack, report)
    report.seconds = round(time.monotonic() - began, 1)
    return report


async def _step(
    stack: "_Stack",
    options: RehearsalOptions,
    report: Report,
    name: str,
    stage: str,
    percent: float | None,
) -> None:
    before = _Counts(stack)
    if percent is not None:
        await stack.admin.SetTraffic(
            admin_pb2.SetTrafficRequest(read_percent=percent, shadow_rate=1.0)
        )
    # By its own findings, and not by the checks: they want more samples than it has time for.
    await stack.admin.SetStage(admin_pb2.SetStageRequest(stage=stage, force=True))
    if name == "copy":
        async for _ in stack.admin.Copy(admin_pb2.CopyRequest()):
            await asyncio.sleep(0)  # the traffic goes on meanwhile
    if name == "compare":
        await _settle(stack)
        await _compare(stack, report)
        stack.ledger.resume()
    else:
        await asyncio.sleep(options.seconds)
    report.steps.append(before.until_now(name))
    if stage == "complete":
        await stack.ledger.pause()
        await stack.ledger.check_all()


async def _settle(stack: "_Stack") -> None:
    """Pauses the traffic and waits until the mirror has everything."""
    stack.ended = True
    await asyncio.gather(*stack.callers)
    await stack.ledger.pause()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = await stack.sidecar.status()
        if not status.pending and stack.sidecar.shadow.idle:
            return
        await asyncio.sleep(0.05)


async def _compare(stack: "_Stack", report: Report) -> None:
    """Firestore against PostgreSQL, whichever is the authority now."""
    found: Comparison = await compare(
        stack.sidecar.stores[StoreName.POSTGRESQL],
        stack.sidecar.stores[StoreName.FIRESTORE],
        stack.database,
        timeout=COMPARE_TIMEOUT,
    )
    report.documents = found.equal + found.bad
    report.wrong += found.wrong
    report.missing += found.missing
    report.extra += found.extra
    report.notes += found.samples


def _conclude(stack: "_Stack", report: Report) -> None:
    findings = stack.ledger.findings
    report.lost += findings.lost
    report.stale += findings.stale
    report.extra += findings.resurrected
    report.errors += sum(stack.ledger.errors.values()) + sum(stack.tally.errors.values())
    report.stale += stack.tally.wrong
    report.notes += findings.notes + stack.tally.problems
    for (collection, verdict), count in stack.telemetry.counts(VERDICTS).items():
        if verdict in BAD:
            setattr(report, verdict, getattr(report, verdict) + count)
            report.notes.append(f"{count} shadow reads of {collection}: {verdict}")


# --- figures of a step -------------------------------------------------------------------------


class _Counts:
    """What the recorder and the clients had counted when a step began."""

    def __init__(self, stack: "_Stack") -> None:
        self._stack = stack
        self._before = self._now()

    def _now(self) -> dict[tuple[str, ...], int]:
        telemetry, ledger = self._stack.telemetry, self._stack.ledger
        counts: dict[tuple[str, ...], int] = {("writes",): telemetry.total(COMMITS)}
        for (_, store), count in telemetry.counts(READS).items():
            counts["reads", store] = counts.get(("reads", store), 0) + count
        for (_, verdict), count in telemetry.counts(VERDICTS).items():
            counts["verdicts", verdict] = counts.get(("verdicts", verdict), 0) + count
        for error, count in (ledger.errors + self._stack.tally.errors).items():
            counts["errors", error] = count
        for store in StoreName:
            for bucket, count in enumerate(telemetry.buckets(store=store.value)):
                counts["latency", store.value, str(bucket)] = count
        return counts

    def until_now(self, name: str) -> StepReport:
        delta = {key: n - self._before.get(key, 0) for key, n in self._now().items()}

        def group(kind: str) -> dict[str, int]:
            return {key[1]: n for key, n in delta.items() if key[0] == kind and n}

        latencies = {}
        for store in StoreName:
            buckets = [n for key, n in delta.items() if key[:2] == ("latency", store.value)]
            if any(buckets):
                latencies[store.value] = [
                    round((quantile(buckets, q) or 0.0) * 1e3, 2) for q in (0.5, 0.95, 0.99)
                ]
        return StepReport(
            name,
            group("reads"),
            delta["writes",],
            group("verdicts"),
            group("errors"),
            latencies,
        )


# --- the throwaway stack -----------------------------------------------------------------------


@dataclass(slots=True)
class _Stack:
    sidecar: app.Sidecar
    telemetry: Telemetry
    database: Database
    client: AsyncCrossfade
    admin: Any
    ledger: Ledger
    tally: Any
    callers: list[asyncio.Task[None]] = field(default_factory=list)
    ended: bool = False


@asynccontextmanager
async def _stack(
    options: RehearsalOptions, start: Start, progress: Callable[[str], None]
) -> AsyncIterator[_Stack]:
    async with AsyncExitStack() as resources:
        directory = Path(resources.enter_context(TemporaryDirectory(prefix="crossfade-")))
        progress("starting PostgreSQL and Firestore")
        postgres = await resources.enter_async_context(EmbeddedPostgres(directory / "postgresql"))
        firestore = await resources.enter_async_context(EmbeddedFirestore())
        database = Database(PROJECT)
        sample = importlib.import_module(f"{options.sample}.sample")
        progress("writing the old documents")
        store = connect(database, firestore.address)
        try:
            await load(store, sample.documents(options.seed, options.tasks))
        finally:
            await store.close()
        settings = Settings(
            server=ServerSettings(port=0),
            firestore=FirestoreSettings(project=PROJECT, emulator=firestore.address),
            postgresql=PostgresqlSettings(url=SecretStr(postgres.url)),
            migration=MigrationSettings(
                mirror=options.mirror,
                mappings=options.sample,
                shadow_rate=1.0,
                lease=LEASE_SECONDS,
                horizon=HORIZON_SECONDS,
                # Both stores and the traffic share one machine: what slows PostgreSQL down here is
                # the rehearsal itself, and its steps count on PostgreSQL's answers.
                slow_mirror="wait",
            ),
        )
        telemetry = Telemetry()
        sidecar = await start(settings, telemetry)
        resources.push_async_callback(sidecar.stop, 5.0)
        channel = await resources.enter_async_context(grpc.aio.insecure_channel(sidecar.address))
        client = await resources.enter_async_context(AsyncCrossfade(sidecar.address, timeout=10.0))
        ledger = Ledger(client, workers=options.workers, seed=options.seed)
        admin = admin_pb2_grpc.AdminStub(channel)
        traffic, _ = sample_traffic(options.sample, options.seed, options.tasks)
        yield _Stack(sidecar, telemetry, database, client, admin, ledger, traffic.Tally())


def _callers(stack: _Stack, options: RehearsalOptions) -> list[Coroutine[Any, Any, None]]:
    """The application's own mix of calls, judged as well."""
    traffic, operations = sample_traffic(options.sample, options.seed, options.tasks)
    return [
        traffic.drive(
            stack.client,
            operations(caller),
            stack.tally,
            until=lambda: stack.ended,
            period=CALLER_PERIOD,
        )
        for caller in range(CALLERS)
    ]


def sample_traffic(
    package: str, seed: int, tasks: int
) -> tuple[Any, Callable[[int], Iterator[Any]]]:
    """A sample package's traffic module, and what makes the n-th caller's operations."""
    sample = importlib.import_module(f"{package}.sample")
    mix = importlib.import_module(f"{package}.mix")
    keys = sample.keys(seed, tasks)

    def operations(caller: int) -> Iterator[Any]:
        made: Iterator[Any] = mix.Operations(Random(f"{seed}-{caller}"), keys)  # noqa: S311
        return made

    return importlib.import_module(f"{package}.traffic"), operations


async def load(store: FirestoreStore, documents: Iterable[tuple[str, Fields]]) -> int:
    """Writes documents as the application's own past would have; returns how many."""
    writes: list[Write] = []
    count = 0
    for path, fields in documents:
        writes.append(Write(path, fields))
        if len(writes) == WRITES_PER_COMMIT:
            await store.commit(writes, timeout=30.0)
            count, writes = count + len(writes), []
    if writes:
        await store.commit(writes, timeout=30.0)
    return count + len(writes)
