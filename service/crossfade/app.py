"""The composition root: settings in, a running sidecar out. Only here are stores named."""

import asyncio
import importlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import grpc.aio
import structlog

from crossfade.admin import http
from crossfade.barrier import Coordinator
from crossfade.budget import Budget
from crossfade.comparing import Comparer, Sums
from crossfade.control import Control
from crossfade.document import Database, FieldPath
from crossfade.errors import CrossfadeError, EpochChanged, InfrastructureError
from crossfade.follower import Follower
from crossfade.forward import Forward
from crossfade.jobs.ramp import Ramping
from crossfade.jobs.settings_watch import Apply, SettingsWatch
from crossfade.lease import Lease
from crossfade.mapping import Mappings
from crossfade.migrator import Migrator
from crossfade.outbox import Outbox
from crossfade.pending import Pending
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.recopy import Recopy
from crossfade.repairs import Mark, Repairs
from crossfade.rpc import admin as admin_rpc
from crossfade.rpc import firestore_v1, mismatches
from crossfade.rpc import ramps as ramp_rpc
from crossfade.rpc import server as rpc
from crossfade.rpc.firestore_v1 import heart
from crossfade.rpc.firestore_v1.heart_listen import HeartListen
from crossfade.rules import Rule
from crossfade.samples import Redactor, Samples
from crossfade.settings import Settings, SettingsError, field_paths
from crossfade.shadow import Bounds, Shadow
from crossfade.snapshot import Traffic
from crossfade.store import Aggregating, Stores
from crossfade.stores.fences import Fences
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.stores.postgres.audit import Audit
from crossfade.stores.postgres.budget import BudgetTable
from crossfade.stores.postgres.changes import Changes
from crossfade.stores.postgres.check import refuse_strays
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
    DEAD_LETTERS,
    EFFECTIVE_PERCENT,
    EPOCH,
    FOLLOWER_LAG,
    FOREIGN,
    GATE_OPEN,
    MISFITS,
    OLDEST_PENDING,
    PENDING,
    READ_PERCENT,
    ROLLBACK_LOSES,
    SETTINGS_REFUSED,
    SHADOW_QUEUE,
    STAGE,
    GaugeSource,
    Labels,
    Telemetry,
)
from crossfade.transactions import Transactions
from crossfade.verdict import Judge, Totals
from crossfade_api.v1 import admin_pb2

log = structlog.get_logger(__name__)

LISTEN_LANES = 4
"""Connections while anybody listens: two that hear of commits, and two for what is read then."""
WATCH_SECONDS = 2.0
LEASE_SECONDS = 2.0
"""For a comparison that finds no lease."""
COMPLETE_SECONDS = 30.0
KEEPS_UP_SECONDS = 2.0
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0

Source = tuple[Path, Callable[[], Settings]]
"""The file of the settings, and what reads them anew. Raises SettingsError."""


@dataclass
class Sidecar:
    """A running sidecar. `address` is host:port."""

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
        await _start_without_postgresql(control, lease, away)
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
        Outbox(control, lease, firestore, pending, telemetry, settings.migration.patience)
        if pending is not None and firestore is not None and lease is not None
        else None
    )
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
    ramping = None
    if ramps is not None and audit is not None:
        guard = (settings.ramp.limits(), settings.ramp.window) if settings.ramp.guard else None
        ramping = Ramping(control, ramps, audit, telemetry, guard=guard)
    wrap = rpc.Wrapper(
        telemetry, settings.server.default_timeout, allow_pin=settings.migration.allow_pin
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
        services={
            firestore_v1.SERVICE: heart.handler(google, listen, wrap),
            **load_services(settings.migration.mappings, migrator, transactions, database, wrap),
        },
    )
    address = await _bind(server, settings)

    telemetry.gauge(EPOCH, lambda: control.snapshot.epoch)
    telemetry.gauge(STAGE, lambda: {(control.snapshot.stage.value,): 1.0})
    telemetry.gauge(SHADOW_QUEUE, lambda: shadow.waiting)
    telemetry.gauge(EFFECTIVE_PERCENT, lambda: _by_collection(admin.effective.percents()))
    if lease is not None:
        telemetry.gauge(GATE_OPEN, lambda: float(lease.document.gate_open))
    telemetry.gauge(READ_PERCENT, lambda: _read_percents(control))
    if settings.admin.port is not None:
        application = http.build(control, admin.status)
        web = http.HttpServer(application, settings.admin.host, settings.admin.port)
        resources.push_async_callback(web.stop)
        await web.start()
    tasks = [
        _supervise("shadow", shadow.run),
        _supervise("samples", shadowing.samples.run),
        _supervise("budget", shadowing.budget.run),
    ]
    if source is not None:
        watch = SettingsWatch(*source, shadowing.applier(control), settings)
        admin.settings_problem = lambda: watch.problem
        telemetry.gauge(SETTINGS_REFUSED, lambda: float(bool(watch.problem)))
        tasks.append(_supervise("settings", watch.run))
    tasks.append(_supervise("control", control.follow))
    tasks.append(_supervise("transactions", transactions.run_sweeps))
    if lease is not None:
        tasks.append(_supervise("lease", partial(lease.run, partial(_needs_lease, control))))
    if outbox is not None:
        tasks.append(_supervise("outbox", outbox.run))
    if lanes:
        if away is None:
            await _settle_stage(coordinator)
        tasks.append(_supervise("stage", coordinator.run))
        tasks.append(_supervise("gauges", _watch(control, admin, telemetry)))
    if ramping is not None:
        tasks.append(_supervise("ramp", ramping.run))
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
        tasks.append(_supervise("recopy", recopy.run))
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
            tasks.append(_supervise("follower", follower.run))
    carry_out = partial(_carry_out, control=control, coordinator=coordinator, admin=admin)
    if away is not None:
        tasks.append(asyncio.create_task(_open_later(open_postgresql, carry_out)))
    elif to_request is not None:
        tasks.append(asyncio.create_task(carry_out(to_request)))
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


def load_mappings(module: str) -> Mappings:
    """The declarations of a mapping package: its `mapping.MAPPINGS`."""
    name = f"{module}.mapping"
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SettingsError(f"[migration] mappings: there is no module {name}") from error
    mappings = getattr(found, "MAPPINGS", None)
    if not isinstance(mappings, Mappings):
        raise SettingsError(f"[migration] mappings: {name} has no MAPPINGS")
    return mappings


def load_services(
    module: str,
    migrator: Migrator,
    transactions: Transactions,
    database: Database,
    wrap: rpc.Wrapper,
) -> Mapping[str, grpc.GenericRpcHandler]:
    """What a mapping package serves besides: by its `service.handlers`, if it has one."""
    name = f"{module}.service"
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return {}
    handlers: Mapping[str, grpc.GenericRpcHandler] = found.handlers(
        migrator, transactions, database, wrap
    )
    return handlers


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


async def _bind(server: grpc.aio.Server, settings: Settings) -> str:
    host, port = settings.server.host, settings.server.port
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(
            f"port {port} of {host} is taken or not allowed; choose another with --port, "
            f"[server] port or CROSSFADE_SERVER__PORT (0 takes a free one)"
        ) from error
    await server.start()
    return f"{host}:{bound}"


def _watch(
    control: Control, admin: admin_rpc.Admin, telemetry: Telemetry
) -> Callable[[], Awaitable[None]]:
    """Feeds the gauges that PostgreSQL has to be asked for: they are read from a thread, and
    at any time. While it does not answer they show nothing, not the last that was known."""
    seen: admin_rpc.Backlog | None = None

    def shown(value: Callable[[admin_rpc.Backlog], float]) -> GaugeSource:
        return lambda: {} if seen is None else {(): value(seen)}

    def loses() -> Mapping[Labels, float]:
        if seen is None:
            return {}
        return {("barrier",): seen.rollback_loses, ("forced",): seen.forced_rollback_loses}

    telemetry.gauge(PENDING, shown(lambda backlog: backlog.pending))
    telemetry.gauge(OLDEST_PENDING, shown(lambda backlog: backlog.oldest_seconds))
    telemetry.gauge(DEAD_LETTERS, shown(lambda backlog: backlog.dead))
    telemetry.gauge(FOREIGN, shown(lambda backlog: backlog.foreign))
    telemetry.gauge(ROLLBACK_LOSES, loses)

    async def watch() -> None:
        nonlocal seen
        while True:
            admin.effective.observe()
            try:
                seen = await admin.backlog()
            except CrossfadeError as error:
                seen = None
                log.info("the backlog is not known", error=error.code)
            # In stage complete the answer costs PostgreSQL the reading of a whole table.
            complete = control.snapshot.stage is Stage.COMPLETE
            await asyncio.sleep(COMPLETE_SECONDS if complete else WATCH_SECONDS)

    return watch


def _by_collection(values: Mapping[str, float]) -> dict[Labels, float]:
    return {(collection,): value for collection, value in values.items()}


def _read_percents(control: Control) -> dict[Labels, float]:
    """By collection; `*` stands for those without a setting of their own."""
    snapshot = control.snapshot
    names = {"", *snapshot.traffic}
    return {(name or "*",): snapshot.plan_of(name).threshold / 100 for name in names}


async def _start_without_postgresql(
    control: Control, lease: Lease | None, away: InfrastructureError
) -> None:
    """The mirror's outage is not the application's, at a start either: Firestore's control
    document says enough to go on with, through the outbox. Raises `away` where it does not."""
    if lease is None:
        raise away
    try:
        document = await lease.renew()
    except CrossfadeError:
        raise away from None
    if not document.update_time or not document.open:
        raise away
    await control.adopt()
    log.warning("PostgreSQL is away: started by Firestore's control document", error=away.code)


async def _open_later(
    open_postgresql: Callable[[], Awaitable[Stage | None]],
    carry_out: Callable[[Stage], Awaitable[None]],
) -> None:
    """What a start does in PostgreSQL, once it is back."""
    pause = RETRY_SECONDS
    while True:
        await asyncio.sleep(pause)
        try:
            to_request = await open_postgresql()
        except InfrastructureError:
            continue
        except CrossfadeError as error:
            log.error("PostgreSQL is back and not as it should be", reason=str(error))  # noqa: TRY400
            pause = min(2 * pause, MAX_RETRY_SECONDS)
            continue
        if to_request is not None:
            await carry_out(to_request)
        return


def _needs_lease(control: Control) -> bool:
    return control.snapshot.authority is StoreName.FIRESTORE


async def _settle_stage(coordinator: Coordinator) -> None:
    """Ends at once what the first start of all, or a sidecar that died, left to be done."""
    try:
        await coordinator.look()
    except CrossfadeError as error:
        log.info("the stage is settled later", reason=str(error))


async def _carry_out(
    stage: Stage, *, control: Control, coordinator: Coordinator, admin: admin_rpc.Admin
) -> None:
    """Moves to the stage that the settings ask for; a refusal leaves the old one.

    A change of authority waits until the mirror keeps up (after a crash that may take a
    lease): a barrier that could not end in time would hold back writes for nothing.
    """
    pause, waits = RETRY_SECONDS, False
    while control.request is stage:
        snapshot = control.snapshot
        try:
            moves = STAGES[stage].authority is not snapshot.authority
            backlog = await admin.backlog() if moves else None
            if backlog and backlog.oldest_seconds > KEEPS_UP_SECONDS and not backlog.dead:
                if not waits:
                    log.info("a change of stage waits for the mirror", asked=stage.value)
                waits = True
                await asyncio.sleep(RETRY_SECONDS)
                continue
            await coordinator.set_stage(stage)
        except (InfrastructureError, EpochChanged) as error:
            _not_reached(stage, snapshot.stage, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)
        except CrossfadeError as error:
            _not_reached(stage, snapshot.stage, error)
            return


def _not_reached(asked: Stage, stands: Stage, error: CrossfadeError) -> None:
    log.warning(
        "the stage that the settings ask for was not reached",
        asked=asked.value,
        stands=stands.value,
        reason=str(error),
    )


def _supervise(name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Keeps a worker running: its defect is logged and costs it a second, not its life."""

    async def supervised() -> None:
        while True:
            try:
                await run()
            except Exception:
                log.exception("a worker failed and starts again", worker=name)
            await asyncio.sleep(1.0)

    return asyncio.create_task(supervised(), name=name)
