"""The composition root: settings in, a running sidecar out. Only here are stores named."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import grpc.aio
import structlog

from crossfade import gauges
from crossfade.admin import http
from crossfade.barrier import Coordinator
from crossfade.budget import Budget
from crossfade.comparing import Comparer, Sums
from crossfade.control import GROUP, Control
from crossfade.document import Database, FieldPath
from crossfade.doors import Doors
from crossfade.errors import InfrastructureError
from crossfade.follower import Follower
from crossfade.forward import Forward
from crossfade.jobs.both import Both
from crossfade.jobs.ramp import Ramping
from crossfade.jobs.settings_watch import Apply, SettingsWatch
from crossfade.lease import Lease
from crossfade.migrator import Migrator
from crossfade.outbox import Outbox
from crossfade.pace import Pace
from crossfade.pending import Pending
from crossfade.plan import Stage, StoreName
from crossfade.recopy import Recopy
from crossfade.repairs import Mark, Repairs
from crossfade.rpc import admin as admin_rpc
from crossfade.rpc import firestore_v1, mismatches
from crossfade.rpc import jobs as job_rpc
from crossfade.rpc import ramps as ramp_rpc
from crossfade.rpc import server as rpc
from crossfade.rpc.firestore_v1 import heart
from crossfade.rpc.firestore_v1.heart_listen import HeartListen
from crossfade.rpc.watch import Watching
from crossfade.rules import Rule
from crossfade.samples import Redactor, Samples
from crossfade.settings import Settings, field_paths
from crossfade.shadow import Bounds, Shadow
from crossfade.snapshot import Traffic
from crossfade.starting import (
    carry_out,
    load_mappings,
    load_services,
    open_later,
    settle_stage,
    start_without_postgresql,
    supervise,
)
from crossfade.store import Aggregating, Stores
from crossfade.stores.fences import Fences
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.stores.postgres.audit import Audit
from crossfade.stores.postgres.budget import BudgetTable
from crossfade.stores.postgres.changes import Changes
from crossfade.stores.postgres.check import refuse_strays
from crossfade.stores.postgres.held import HeldPages
from crossfade.stores.postgres.jobs import Jobs
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Mirror
from crossfade.stores.postgres.mismatches import Mismatches
from crossfade.stores.postgres.ramps import Ramps
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.snapshots import Snapshots
from crossfade.stores.postgres.store import PostgresStore
from crossfade.telemetry import (
    BUDGET_LEFT,
    BUDGET_SPENT,
    FOLLOWER_LAG,
    MISFITS,
    SETTINGS_REFUSED,
    Telemetry,
)
from crossfade.transactions import Transactions
from crossfade.verdict import Judge, Totals
from crossfade_api.v1 import admin_pb2

log = structlog.get_logger(__name__)

LISTEN_LANES = 4
"""Connections while anybody listens: two that hear of commits, and two for what is read then."""
LEASE_SECONDS = 2.0
"""For a comparison that finds no lease."""

Source = tuple[Path, Callable[[], Settings]]
"""The file of the settings, and what reads them anew. Raises SettingsError."""


@dataclass
class Sidecar:
    """A running sidecar. `address` is host:port, or unix:PATH where there is no TCP."""

    address: str
    control: Control
    coordinator: Coordinator
    admin: admin_rpc.Admin
    shadow: Shadow
    stores: Stores
    transactions: Transactions
    _changes: Changes | None
    _forward: Forward | None
    _recopy: Recopy | None
    _server: grpc.aio.Server
    _health: rpc.Health
    _tasks: list[asyncio.Task[None]]
    _resources: AsyncExitStack

    async def status(self) -> admin_pb2.Status:
        return await self.admin.status()

    @property
    def listening(self) -> bool:
        """Whether anybody listens to PostgreSQL's commits here."""
        return self._changes is not None and self._changes.watched

    async def stop(self, grace: float = 5.0) -> None:
        """No new calls; those under way, and then puts, have `grace` seconds together; all closed.
        What is not put by then stands as pending rows, which any sidecar takes over."""
        ends = time.monotonic() + grace
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
        if self._forward is not None:
            await self._forward.drain(max(0.0, ends - time.monotonic()))
        if self._recopy is not None:
            await self._recopy.drain(max(0.0, ends - time.monotonic()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._resources.aclose()


async def start(settings: Settings, telemetry: Telemetry, source: Source | None = None) -> Sidecar:
    """Connects, creates what is missing in PostgreSQL, binds the port, begins to serve.

    `source`: the file to watch, and what reads the settings anew.

    Raises SettingsError, CrossfadeError (a store is not there), OSError (the port is taken).
    """
    async with AsyncExitStack() as resources:
        sidecar = await _start(settings, telemetry, source, resources)
        sidecar._resources = resources.pop_all()  # noqa: SLF001 - its own part
        return sidecar


async def _start(
    settings: Settings, telemetry: Telemetry, source: Source | None, resources: AsyncExitStack
) -> Sidecar:
    database = Database(settings.firestore.project, settings.firestore.database)
    mappings = load_mappings(settings.migration.mappings).watched(partial(telemetry.count, MISFITS))
    requested = settings.requested_stage()
    doors = Doors(settings, telemetry)
    lanes: dict[str, Lanes] = {}
    if settings.postgresql.url is not None:
        sizes = {
            "answer": settings.postgresql.lanes,
            "mirror": settings.postgresql.mirror_lanes,
            "shadow": settings.postgresql.shadow_lanes,
            "snapshot": settings.postgresql.snapshot_lanes,
            "listen": LISTEN_LANES,
        }
        for role, size in sizes.items():
            lanes[role] = Lanes(settings.postgresql.dsn, size)
            resources.push_async_callback(lanes[role].close)
    control = Control(lanes.get("mirror"), None, _traffic(settings), settings.postgresql.timeout)

    async def open_postgresql() -> Stage | None:
        if lanes:
            await create_schema(lanes["mirror"], mappings)
            await refuse_strays(lanes["mirror"], mappings, timeout=settings.postgresql.timeout)
        return await control.open(requested or Stage.OFF, explicit=requested is not None)

    away, to_request = None, None
    try:
        to_request = await open_postgresql()
    except InfrastructureError as error:
        away = error
    firestore = lease = None
    if control.snapshot.stage is not Stage.COMPLETE or settings.firestore.emulator is not None:
        firestore = connect(
            database,
            settings.firestore.emulator,
            request_window=settings.migration.request_window,
        )
        resources.push_async_callback(firestore.close)
        lease = control.lease = Lease(
            Fences(firestore), settings.migration.lease, settings.firestore.timeout
        )
    if away is not None:
        await start_without_postgresql(control, lease, away)
    coordinator = Coordinator(
        control,
        lease,
        horizon=settings.migration.horizon,
        timeout=settings.postgresql.timeout,
    )
    enforce = settings.migration.constraints == "enforce"
    postgres = (
        PostgresStore(lanes["answer"], mappings, database, enforce=enforce) if lanes else None
    )
    mirror = Mirror(lanes["mirror"], mappings, database) if lanes else None
    pending = (
        Pending(mirror, firestore, database, settings.postgresql.timeout)
        if mirror is not None and firestore is not None
        else None
    )
    stores = _stores(firestore, postgres)
    shadow_stores = _stores(
        # Shadows have connections of their own: they never queue before an answer.
        firestore,
        PostgresStore(lanes["shadow"], mappings, database) if lanes else None,
    )
    shadowing = _shadowing(
        settings, telemetry, shadow_stores, database, lanes.get("shadow"), pending, control
    )
    shadow = shadowing.shadow
    outbox = (
        Outbox(
            control,
            lease,
            firestore,
            pending,
            telemetry,
            settings.migration.patience,
            Pace() if settings.migration.avoids_slow_mirror else None,
        )
        if pending is not None and firestore is not None and lease is not None
        else None
    )
    if outbox is not None:
        resources.push_async_callback(outbox.close)
    forward = (
        Forward(
            control,
            firestore,
            pending,
            outbox,
            telemetry,
            settings.migration.mirror,
            settings.migration.fence,
            settings.migration.horizon,
        )
        if firestore is not None
        else None
    )
    migrator = Migrator(
        control,
        stores,
        forward,
        pending,
        shadow,
        telemetry,
        database,
        settings.migration.mirror,
    )
    transactions = Transactions(
        control,
        migrator,
        database,
        firestore,
        postgres,
        Snapshots(lanes["snapshot"], mappings, database) if lanes else None,
    )
    changes = Changes(lanes["listen"]) if lanes else None
    google = heart.Heart(migrator, transactions, control, telemetry, database, changes)
    listen = HeartListen(
        google,
        control,
        transactions,
        firestore,
        changes,
        Snapshots(lanes["listen"], mappings, database) if lanes else None,
    )
    mapped = [mapping.collection_id for mapping in mappings]
    ramps = Ramps(lanes["mirror"]) if lanes else None
    audit = Audit(lanes["mirror"]) if lanes else None
    admin = admin_rpc.Admin(
        control,
        coordinator,
        telemetry,
        database,
        firestore,
        mirror,
        mapped,
        ramps=ramps,
        audit=audit,
        limits=settings.ramp.limits(),
    )
    jobs = Jobs(lanes["mirror"]) if lanes else None
    if firestore is not None and mirror is not None and jobs is not None:
        held = HeldPages(lanes["mirror"], GROUP)
        admin.copying = Both(control, firestore, mirror, held, jobs, mappings, database)
    ramping = None
    if ramps is not None and audit is not None:
        guard = (settings.ramp.limits(), settings.ramp.window) if settings.ramp.guard else None
        ramping = Ramping(control, ramps, audit, telemetry, guard=guard)
    wrap = rpc.Wrapper(
        telemetry,
        settings.server.default_timeout,
        allow_pin=settings.migration.allow_pin,
        gate=doors.gate,
    )
    server, checker = rpc.build(
        rpc.Front(migrator, database),
        admin_rpc.handler(
            admin,
            wrap,
            mismatches.methods(
                mismatches.MismatchMethods(
                    control,
                    database,
                    shadowing.comparer,
                    shadowing.redactor,
                    shadowing.repairs,
                    shadowing.table,
                ),
                wrap,
            )
            | ramp_rpc.methods(
                ramp_rpc.RampMethods(
                    ramping, ramps, audit, settings.ramp.limits(), admin.check_collection
                ),
                wrap,
            ),
        ),
        wrap,
        max_message_bytes=settings.server.max_message_mb * 1_048_576,
        watch=Watching(listen, database).watch,
        services={
            job_rpc.SERVICE: job_rpc.handler(job_rpc.JobMethods(jobs), wrap),
            firestore_v1.SERVICE: heart.handler(google, listen, wrap),
            **load_services(settings.migration.mappings, migrator, transactions, database, wrap),
        },
    )
    resources.callback(doors.close)
    address = await doors.bind(server)

    gauges.show(telemetry, control, lease, shadow)
    if settings.admin.port is not None:
        application = http.build(control, admin.status)
        web = http.HttpServer(application, settings.admin.host, settings.admin.port)
        resources.push_async_callback(web.stop)
        await web.start()
    tasks = [
        supervise("shadow", shadow.run),
        supervise("samples", shadowing.samples.run),
        supervise("budget", shadowing.budget.run),
    ]
    if source is not None:
        watch = SettingsWatch(*source, shadowing.applier(control), settings)
        admin.settings_problem = lambda: watch.problem
        telemetry.gauge(SETTINGS_REFUSED, lambda: float(bool(watch.problem)))
        tasks.append(supervise("settings", watch.run))
    admin.settings_problem = doors.problems(admin.settings_problem)
    tasks.append(supervise("access", doors.run))
    tasks.append(supervise("control", control.follow))
    tasks.append(supervise("transactions", transactions.run_sweeps))
    if lease is not None:
        tasks.append(supervise("lease", partial(lease.run, partial(_needs_lease, control))))
    if outbox is not None:
        tasks.append(supervise("outbox", outbox.run))
    if lanes:
        if away is None:
            await settle_stage(coordinator)
        tasks.append(supervise("stage", coordinator.run))
        tasks.append(supervise("gauges", gauges.watch(control, admin, telemetry)))
    if ramping is not None:
        tasks.append(supervise("ramp", ramping.run))
    recopy = None
    if pending is not None and firestore is not None:
        recopy = Recopy(
            control,
            pending,
            firestore,
            telemetry,
            database,
            request_window=settings.migration.request_window,
            **settings.recopy.model_dump(),
        )
        coordinator.wake_recopy = pending.woken.set
        tasks.append(supervise("recopy", recopy.run))
        if settings.follower.enabled:
            follower = Follower(
                control,
                pending,
                firestore,
                telemetry,
                database,
                settings.follower.collections or mapped,
                settle=settings.follower.settle,
            )
            telemetry.gauge(FOLLOWER_LAG, lambda: {} if follower.lag is None else follower.lag)
            tasks.append(supervise("follower", follower.run))
    to_stage = partial(carry_out, control=control, coordinator=coordinator, admin=admin)
    if away is not None:
        tasks.append(asyncio.create_task(open_later(open_postgresql, to_stage)))
    elif to_request is not None:
        tasks.append(asyncio.create_task(to_stage(to_request)))
    return Sidecar(
        address,
        control,
        coordinator,
        admin,
        shadow,
        stores,
        transactions,
        changes,
        forward,
        recopy,
        server,
        checker,
        tasks,
        AsyncExitStack(),
    )


def _traffic(settings: Settings) -> dict[str, Traffic]:
    traffic = {
        name: Traffic(collection.read_percent, collection.shadow_rate, collection.salt)
        for name, collection in settings.collections.items()
    }
    traffic[""] = Traffic(settings.migration.read_percent, settings.migration.shadow_rate)
    return traffic


def _stores(firestore: FirestoreStore | None, postgres: PostgresStore | None) -> Stores:
    return Stores({store.name: store for store in (firestore, postgres) if store is not None})


@dataclass(frozen=True, slots=True)
class _Shadowing:
    """What compares, and what it found."""

    shadow: Shadow
    judge: Judge
    comparer: Comparer
    samples: Samples
    redactor: Redactor
    repairs: Repairs
    budget: Budget
    table: Mismatches | None

    def applier(self, control: Control) -> Apply:
        """Applies what may change while the sidecar runs."""

        async def apply(settings: Settings) -> None:
            # Nothing here waits or fails before all of it is done.
            self.judge.rules = _rules(settings)
            self.redactor.clear = _clear(settings)
            await control.configure(_traffic(settings))

        return apply


def _rules(settings: Settings) -> dict[str, list[Rule]]:
    return {
        name: [each.rule() for each in collection.rules]
        for name, collection in settings.collections.items()
    }


def _clear(settings: Settings) -> dict[str, tuple[FieldPath, ...]]:
    return {name: field_paths(each.clear) for name, each in settings.collections.items()}


def _shadowing(
    settings: Settings,
    telemetry: Telemetry,
    stores: Stores,
    database: Database,
    lanes: Lanes | None,
    pending: Pending | None,
    control: Control,
) -> _Shadowing:
    chosen = settings.shadow
    key = chosen.hash_key
    redactor = Redactor(
        secrets.token_bytes(32) if key is None else key.get_secret_value().encode(),
        _clear(settings),
    )
    table = None if lanes is None else Mismatches(lanes, per_collection=chosen.samples)
    samples = Samples(redactor, telemetry, table)
    judge = Judge(database, _rules(settings), chosen.behind_bound)

    async def vouched() -> bool:
        return control.mirror_vouches(await control.admit(lambda: LEASE_SECONDS))

    budget = Budget(chosen.daily_reads, None if lanes is None else BudgetTable(lanes))

    def charge(reads: int) -> None:
        budget.spend(reads)
        telemetry.count(BUDGET_SPENT, by=reads)

    telemetry.gauge(BUDGET_LEFT, lambda: {} if budget.left is None else budget.left)

    async def read_totals(store: StoreName, totals: Totals, timeout: float) -> Sums:
        asked = cast(Aggregating, stores[store])
        found = await asked.aggregate(totals.query, totals.aggregations, timeout=timeout)
        return Sums(found.values, found.state)

    comparer = Comparer(
        stores,
        database,
        telemetry,
        judge,
        read_totals=read_totals,
        vouched=vouched,
        charge=charge,
    )
    repairs = Repairs(
        _repair(pending) if pending is not None and chosen.repair else None,
        telemetry,
        limit=chosen.repairs_in_a_row,
    )
    shadow = Shadow(
        comparer,
        telemetry,
        samples,
        repairs,
        bounds=Bounds(
            chosen.queue, chosen.memory_mb * 1_048_576, chosen.age, chosen.rate, chosen.lag
        ),
        workers=chosen.workers,
        raises=chosen.on_mismatch == "raise",
        afford=lambda _: budget.afford(),
        complete=control.mirror_is_complete,
    )
    if shadow.raises:
        log.warning("reads fail where the stores differ: on_mismatch = raise is meant for tests")
    return _Shadowing(shadow, judge, comparer, samples, redactor, repairs, budget, table)


def _repair(pending: Pending) -> Mark:
    async def repair(paths: Sequence[str], epoch: int, authority: StoreName) -> None:
        await pending.mark(paths, epoch, "repair", authority)

    return repair


def _needs_lease(control: Control) -> bool:
    return control.snapshot.authority is StoreName.FIRESTORE
