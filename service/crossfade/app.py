"""The composition root: settings in, a running sidecar out. Only here are stores named."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc.aio
import structlog

from crossfade import gauges
from crossfade import group as group_parts
from crossfade.access import Role
from crossfade.admin.api import AdminServer
from crossfade.admin.guard import admission
from crossfade.admin.parts import Parts, none_made
from crossfade.authority import Authority
from crossfade.barrier import Coordinator
from crossfade.certified import Validations
from crossfade.control import Control
from crossfade.controls import Controls
from crossfade.dispatch import Dispatch
from crossfade.document import Database
from crossfade.doors import Doors, is_loopback
from crossfade.errors import FailedPrecondition, InfrastructureError
from crossfade.follower import Follower
from crossfade.groups import DEFAULT
from crossfade.jobs.both import Both
from crossfade.jobs.ramp import Ramping
from crossfade.jobs.settings_watch import SettingsWatch
from crossfade.jobs.trail import Trail
from crossfade.mapping import Mappings
from crossfade.migrator import Documents
from crossfade.plan import Stage, StoreName
from crossfade.rpc import admin as admin_rpc
from crossfade.rpc import firestore_v1, latency, mismatches
from crossfade.rpc import jobs as job_rpc
from crossfade.rpc import ramps as ramp_rpc
from crossfade.rpc import server as rpc
from crossfade.rpc.firestore_v1 import heart
from crossfade.rpc.firestore_v1.heart_listen import HeartListen
from crossfade.rpc.watch import Watching
from crossfade.settings import Settings
from crossfade.shadow import Shadow
from crossfade.shadowing import build as build_shadowing
from crossfade.shadowing import traffic_of
from crossfade.starting import (
    carry_out,
    check_groups,
    hide_ids,
    load_mappings,
    load_services,
    open_controls,
    open_later,
    settle_stage,
    start_without_postgresql,
    supervise,
)
from crossfade.store import Stores
from crossfade.stores.firestore import connect
from crossfade.stores.postgres.audit import Audit
from crossfade.stores.postgres.changes import Changes
from crossfade.stores.postgres.check import refuse_strays
from crossfade.stores.postgres.findings import Findings
from crossfade.stores.postgres.held import HeldPages
from crossfade.stores.postgres.jobs import Jobs
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.ramps import Ramps
from crossfade.stores.postgres.schema import create_schema, fingerprint
from crossfade.stores.postgres.snapshots import Snapshots
from crossfade.telemetry import FOLLOWER_LAG, MISFITS, SETTINGS_REFUSED, Labels, Telemetry
from crossfade.transactions import Transactions
from crossfade_api.v1 import admin_pb2

log = structlog.get_logger(__name__)

DRIFT_SECONDS = 30.0
LISTEN_LANES = 4
"""Connections while anybody listens: two that hear of commits, and two for what is read then."""

Source = tuple[Path, Callable[[], Settings]]
"""The file of the settings, and what reads them anew. Raises SettingsError."""


@dataclass
class Sidecar:
    """A running sidecar. `address` is host:port, or unix:PATH where there is no TCP; `members`
    are its groups of collections, and `control`, `coordinator` and `stores` those of the
    default one."""

    address: str
    control: Control
    coordinator: Coordinator
    admin: admin_rpc.Admin
    shadow: Shadow
    stores: Stores
    transactions: Transactions
    members: Mapping[str, group_parts.Member]
    web: AdminServer | None
    """The admin API and the dashboard, where they are served."""
    _changes: Changes | None
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
        for member in self.members.values():
            for part in (member.forward, member.recopy):
                if part is not None:
                    await part.drain(max(0.0, ends - time.monotonic()))
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
    hide_ids(settings, mappings)
    doors = Doors(settings, telemetry)
    groups = settings.grouping()
    check_groups(groups, mappings)
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
    controls = Controls(
        groups,
        {
            group.name: Control(
                lanes.get("mirror"), None, traffic_of(settings), settings.postgresql.timeout, group
            )
            for group in groups.all
        },
    )

    if lanes:
        telemetry.locate("postgresql", *settings.postgresql.target.rsplit("/", 1))

    async def open_postgresql() -> dict[str, Stage]:
        if lanes:
            await create_schema(lanes["mirror"], mappings)
            await refuse_strays(lanes["mirror"], mappings, timeout=settings.postgresql.timeout)
        return await open_controls(controls, settings)

    away, to_request = None, dict[str, Stage]()
    try:
        to_request = await open_postgresql()
    except InfrastructureError as error:
        away = error
    firestore = None
    over = all(each.snapshot.stage is Stage.COMPLETE for each in controls.values())
    if not over or settings.firestore.emulator is not None:
        firestore = connect(
            database,
            settings.firestore.emulator,
            request_window=settings.migration.request_window,
        )
        resources.push_async_callback(firestore.close)
        where = settings.firestore.emulator or "firestore.googleapis.com:443"
        telemetry.locate("firestore", where, settings.firestore.database)
        for control in controls.values():
            control.lease = group_parts.lease_of(control.group, settings, firestore)
    if away is not None:
        await start_without_postgresql(controls, away)
    shared = group_parts.Shared(settings, telemetry, database, mappings, lanes, firestore)
    members = {name: group_parts.build(control, shared) for name, control in controls.items()}
    for member in members.values():
        if member.outbox is not None:
            resources.push_async_callback(member.outbox.close)
    shadowing = build_shadowing(
        settings,
        telemetry,
        database,
        lanes.get("shadow"),
        groups,
        controls,
        {name: member.shadow_stores for name, member in members.items()},
        {name: each.pending for name, each in members.items() if each.pending is not None},
    )
    shadow = shadowing.shadow
    hearts = {name: member.heart(shared, shadow) for name, member in members.items()}
    documents: Documents = Dispatch(groups, hearts) if len(hearts) > 1 else hearts[DEFAULT]
    by_group = {name: each.postgres for name, each in members.items() if each.postgres is not None}
    authority = Authority(groups, controls, firestore, by_group)
    transactions = Transactions(
        groups,
        controls,
        documents,
        database,
        authority,
        Snapshots(lanes["snapshot"], mappings, database) if lanes else None,
    )
    changes = Changes(lanes["listen"]) if lanes else None
    google = heart.Heart(documents, transactions, telemetry, database, changes)
    listen = HeartListen(
        google,
        groups,
        controls,
        transactions,
        firestore,
        changes,
        Snapshots(lanes["listen"], mappings, database) if lanes else None,
    )
    mapped = [mapping.collection_id for mapping in mappings]
    ramps = Ramps(lanes["mirror"]) if lanes else None
    audit = Audit(lanes["mirror"]) if lanes else None
    trail = Trail(audit) if audit is not None else None
    findings = Findings(lanes["mirror"]) if lanes else None
    tables = fingerprint(mappings)
    admin = admin_rpc.Admin(
        controls,
        {
            name: admin_rpc.Led(member.coordinator, member.mirror)
            for name, member in members.items()
        },
        telemetry,
        database,
        firestore,
        mapped,
        ramps=ramps,
        trail=trail,
        limits=settings.ramp.limits(),
        findings=findings,
        fingerprint=tables,
        certificate_age=settings.ramp.certificate_age,
    )
    jobs = Jobs(lanes["mirror"]) if lanes else None
    if firestore is not None and jobs is not None:
        admin.copying = {
            name: Both(
                member.control,
                firestore,
                member.mirror,
                HeldPages(lanes["mirror"], name),
                jobs,
                mappings,
                database,
            )
            for name, member in members.items()
            if member.mirror is not None
        }
    ramping = None
    if ramps is not None and audit is not None:
        guard = (settings.ramp.limits(), settings.ramp.window) if settings.ramp.guard else None
        ramping = Ramping(controls, ramps, audit, telemetry, guard=guard)
    differing = mismatches.MismatchMethods(
        controls,
        database,
        shadowing.comparer,
        shadowing.redactor,
        shadowing.repairs,
        shadowing.table,
    )
    ramp_methods = ramp_rpc.RampMethods(
        ramping, ramps, audit, settings.ramp.limits(), admin.check_collection
    )
    job_methods = job_rpc.JobMethods(jobs)
    latency_methods = latency.LatencyMethods(telemetry.paired)
    wrap = rpc.Wrapper(
        telemetry,
        settings.server.default_timeout,
        allow_pin=settings.migration.allow_pin,
        gate=doors.gate,
    )
    server, checker = rpc.build(
        rpc.Front(documents, database),
        admin_rpc.handler(
            admin,
            wrap,
            mismatches.methods(differing, wrap)
            | ramp_rpc.methods(ramp_methods, wrap)
            | latency.methods(latency_methods, wrap),
        ),
        wrap,
        max_message_bytes=settings.server.max_message_mb * 1_048_576,
        watch=Watching(listen, database).watch,
        services={
            job_rpc.SERVICE: job_rpc.handler(job_methods, wrap),
            firestore_v1.SERVICE: heart.handler(google, listen, wrap),
            **load_services(settings.migration.mappings, documents, transactions, database, wrap),
        },
    )
    resources.callback(doors.close)
    address = await doors.bind(server)

    gauges.show(telemetry, controls, shadow)
    watch: SettingsWatch | None = None
    web = None
    if settings.admin.port is not None:
        admitted = partial(
            admission,
            doors.access,
            minded=not settings.admin.insecure and not is_loopback(settings.admin.host),
        )
        parts = Parts(
            controls,
            telemetry,
            admin_rpc.unary(admin)
            | mismatches.unary(differing)
            | ramp_rpc.unary(ramp_methods)
            | latency.unary(latency_methods)
            | job_rpc.unary(job_methods),
            judge=ramp_methods.judged,
            settings=lambda: settings if watch is None else watch.current,
            settings_problem=lambda: str(admin.settings_problem()),
            schema_drift=_schema_drift(settings, lanes.get("mirror"), mappings),
            validations=none_made
            if findings is None
            else Validations(findings, controls, tables, settings.ramp.certificate_age).latest,
            admit=admitted(),
            # Prometheus's token must not be one that could move the migration.
            admit_scraper=admitted(role=Role.READER),
            hosts=settings.admin.hosts,
        )
        web = AdminServer(parts, settings.admin.host, settings.admin.port)
        resources.push_async_callback(web.stop)
        await web.start()
    tasks = [
        supervise("shadow", shadow.run),
        supervise("samples", shadowing.samples.run),
        supervise("budget", shadowing.budget.run),
    ]
    if source is not None:
        told = partial(trail.add_of_file, str(source[0])) if trail is not None else None
        watch = SettingsWatch(*source, shadowing.applier(controls), settings, told)
        admin.settings_problem = partial(getattr, watch, "problem")
        telemetry.gauge(SETTINGS_REFUSED, partial(_refused, watch))
        tasks.append(supervise("settings", watch.run))
    admin.settings_problem = doors.problems(admin.settings_problem)
    tasks.append(supervise("access", doors.run))
    tasks.append(supervise("transactions", transactions.run_sweeps))
    if lanes:
        tasks.append(supervise("gauges", gauges.watch(controls, admin, telemetry, jobs)))
    if trail is not None:
        tasks.append(supervise("trail", trail.run))
    if ramping is not None:
        tasks.append(supervise("ramp", ramping.run))
    for member in members.values():
        if lanes and away is None:
            await settle_stage(member.coordinator)
        tasks += [supervise(name, run) for name, run in _workers(member, lanes=bool(lanes))]
    followers = [
        follower
        for member in members.values()
        if (follower := group_parts.follower_of(member, shared, mapped)) is not None
    ]
    if followers:
        telemetry.gauge(FOLLOWER_LAG, partial(_lag, followers))
        tasks += [supervise("follower", follower.run) for follower in followers]

    def to_stages(wanted: Mapping[str, Stage]) -> list[Awaitable[None]]:
        return [
            carry_out(
                stage,
                control=controls[name],
                coordinator=members[name].coordinator,
                backlog=partial(admin.backlog, name),
            )
            for name, stage in wanted.items()
        ]

    if away is not None:
        tasks.append(asyncio.create_task(open_later(open_postgresql, to_stages)))
    else:
        tasks += [asyncio.ensure_future(each) for each in to_stages(to_request)]
    default = members[DEFAULT]
    return Sidecar(
        address,
        controls.default,
        default.coordinator,
        admin,
        shadow,
        default.stores,
        transactions,
        members,
        web,
        changes,
        server,
        checker,
        tasks,
        AsyncExitStack(),
    )


def _refused(watch: SettingsWatch) -> float:
    return float(bool(watch.problem))


def _schema_drift(
    settings: Settings, lanes: Lanes | None, mappings: Mappings
) -> Callable[[], Awaitable[list[str]]]:
    """What differs between the database and the mapping, one look at a time."""
    looking = asyncio.Lock()

    async def differences() -> list[str]:
        if lanes is None:
            raise FailedPrecondition("this sidecar runs without PostgreSQL; set DATABASE_URL")
        from crossfade.stores.postgres.drift import schema_drift
        from crossfade.stores.postgres.evolve import Evolution

        evolution = Evolution(settings.postgresql.dsn, mappings, settings.migration.mappings)
        async with looking:
            return await schema_drift(evolution, lanes, mappings, timeout=DRIFT_SECONDS)

    return differences


def _workers(
    member: group_parts.Member, *, lanes: bool
) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """What runs for ever for a group, and what it is called."""
    suffix = f" of {member.group.name}" if member.group.named else ""
    yield f"control{suffix}", member.control.follow
    if member.lease is not None:
        yield f"lease{suffix}", partial(member.lease.run, partial(_needs_lease, member.control))
    if member.outbox is not None:
        yield f"outbox{suffix}", member.outbox.run
    if lanes:
        yield f"stage{suffix}", member.coordinator.run
    if member.recopy is not None:
        yield f"recopy{suffix}", member.recopy.run


def _lag(followers: Sequence[Follower]) -> float | dict[Labels, float]:
    """That of the one that is most behind."""
    return max((follower.lag for follower in followers if follower.lag is not None), default={})


def _needs_lease(control: Control) -> bool:
    return control.snapshot.authority is StoreName.FIRESTORE
