"""A whole world for one test: both stores, proxies before them, and n sidecars, each with
proxies of its own, so that one of them can be cut off while the others are not."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio

from crossfade.document import Database, Document
from crossfade.jobs.compare import Comparison, compare
from crossfade.jobs.scan import scan
from crossfade.store import DocumentStore
from crossfade.stores.fences import Fences
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from crossfade_client import AsyncCrossfade
from tests.fault.processes import Firestore, Postgres, SidecarProcess, all_started
from tests.fault.proxy import TcpProxy
from tests.fault.rpc_proxy import RpcProxy
from violet.mapping import MAPPINGS

LEASE = 0.6
"""Seconds that a dead writer's pending rows wait for a worker."""
SETTLE_SECONDS = 40.0
TEMPLATE = "fault_template"

_numbers = itertools.count(1)


@dataclass
class Server:
    """The stores' processes, shared by the worlds of a session."""

    postgres: Postgres
    firestore: Firestore

    async def sql(self, statement: str) -> None:
        connection = await asyncpg.connect(self.postgres.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@asynccontextmanager
async def servers(directory: Path) -> AsyncIterator[Server]:
    """Both stores, running, with a template of a database that has the schema."""
    postgres, firestore = Postgres(directory), Firestore(directory)
    await postgres.create()
    async with postgres, firestore:
        server = Server(postgres, firestore)
        await server.sql(f"create database {TEMPLATE} template template0")
        lanes = await Lanes.open(postgres.url(TEMPLATE), size=1)
        await create_schema(lanes, MAPPINGS)
        await lanes.close()
        yield server


@dataclass
class Sidecar:
    """A sidecar's process, the proxies before its stores, and clients of it."""

    process: SidecarProcess
    postgres: TcpProxy
    firestore: TcpProxy
    rpc: RpcProxy | None
    _connections: AsyncExitStack
    client: AsyncCrossfade = field(init=False)
    admin: Any = field(init=False)

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def methods(self) -> RpcProxy:
        """The proxy of Firestore's methods."""
        assert self.rpc is not None
        return self.rpc

    async def restart(self, fail_point: str = "", **variables: str) -> None:
        """Ends the process, in whatever state it is, and starts it again, armed or not."""
        await self.process.end()
        self.process.fail_point = fail_point
        self.process.variables |= variables
        await self.process.start()
        await self.connect()

    async def connect(self) -> None:
        """New connections: the old ones would not look for a process that was away before a
        pause is over. They are closed at the end, for calls may be under way on them."""
        self.client = AsyncCrossfade(self.process.address, timeout=5.0, retries=0)
        self._connections.push_async_callback(self.client.close)
        channel = grpc.aio.insecure_channel(self.process.address)
        self._connections.push_async_callback(channel.close)
        self.admin = admin_pb2_grpc.AdminStub(channel)


@dataclass
class World:
    """`sidecars` run; `direct` and `mirror` are the stores themselves, around all proxies."""

    server: Server
    database: Database
    url: str
    sidecars: list[Sidecar]
    direct: FirestoreStore
    mirror: PostgresStore
    sql: asyncpg.Pool
    read_percent: float = 100

    # --- control --------------------------------------------------------------------------------

    async def stage(self, stage: str, by: int = 0, timeout: float = 10.0) -> None:
        """Asks one sidecar for a stage, and waits until all that run have seen it."""
        request = admin_pb2.SetStageRequest(stage=stage, timeout_seconds=timeout, force=True)
        await self.sidecars[by].admin.SetStage(request, timeout=timeout + 20)
        await self.all_see(stage)

    async def all_see(self, stage: str) -> None:
        async def seen() -> bool:
            states = [
                await sidecar.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=5)
                for sidecar in self.sidecars
                if sidecar.process.running and not sidecar.process.stopped
            ]
            return all(status.stage == stage for status in states)

        await eventually(seen, 20.0, f"every sidecar sees stage {stage}")

    async def percent(self, percent: float) -> None:
        """The share of reads that PostgreSQL answers, at all sidecars that do not sleep."""
        self.read_percent = percent
        request = admin_pb2.SetTrafficRequest(read_percent=percent)
        await self.sidecars[0].admin.SetTraffic(request, timeout=10)
        await asyncio.sleep(0.6)  # within a poll everywhere

    async def copy(self, by: int = 0) -> None:
        async for _ in self.sidecars[by].admin.Copy(admin_pb2.CopyRequest(), timeout=60):
            pass

    async def restored(self, lease: float = LEASE) -> None:
        """As new for the next test: no fault, no arm, stage shadow, no document. Raises when
        that cannot be."""
        for sidecar in self.sidecars:
            sidecar.process.go_on_if_stopped()
            await sidecar.postgres.heal()
            await sidecar.firestore.heal()
            if sidecar.rpc is not None:
                sidecar.rpc.heal()
            variables = {"FAULT_LEASE": str(lease)}
            if (
                not sidecar.process.running
                or sidecar.process.fail_point
                or sidecar.process.variables["FAULT_LEASE"] != variables["FAULT_LEASE"]
            ):
                await sidecar.restart(**variables)
        await self.sql.execute("update crossfade.pending set lease_until = clock_timestamp()")
        await self.stage("shadow")
        if self.read_percent != 100:
            await self.percent(100)
        await self.settled(10)
        for path in await self.contents(self.direct):
            await self.sidecars[0].client.delete(path)
        await self.equal()

    # --- rest -----------------------------------------------------------------------------------

    async def pending(self) -> list[Any]:
        return list(
            await self.sql.fetch(
                "select path, reason, dead, failure from crossfade.pending order by id limit 20"
            )
        )

    async def settled(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits until nothing is pending and the outbox is empty. Fails with what still is, dead
        letters too. The outbox first: what leaves it is pending before."""
        deadline = time.monotonic() + seconds
        fences = Fences(self.direct)
        while rows := [*await fences.entries(timeout=10), *await self.pending()]:
            assert time.monotonic() < deadline, f"still pending: {rows}"
            await asyncio.sleep(0.05)

    async def settled_but_dead(self) -> None:
        """Waits until nothing is left to do but by hand: wildcards, too, wait for a copy."""

        async def rest() -> bool:
            if await Fences(self.direct).entries(timeout=10):
                return False
            return all(row["dead"] or not row["path"] for row in await self.pending())

        await eventually(rest, SETTLE_SECONDS, "nothing is left but dead letters")

    async def compared(self) -> Comparison:
        """Both stores, document by document."""
        return await compare(self.direct, self.mirror, self.database, timeout=20.0)

    async def contents(self, store: DocumentStore) -> dict[str, dict[str, Any]]:
        """All that a store holds, but for what is Crossfade's own."""
        return {
            document.path: dict(document.fields)
            async for page in scan(store, self.database, timeout=20.0)
            for document in page
        }

    async def equal(self) -> None:
        """Waits until nothing is pending, then fails on any difference between the stores."""
        await self.settled()
        found = await self.compared()
        assert not found.bad, found.samples

    async def in_firestore(self, path: str) -> dict[str, Any] | None:
        return await _fields(self.direct, path, self.database)

    async def in_postgres(self, path: str) -> dict[str, Any] | None:
        return await _fields(self.mirror, path, self.database)

    def logs(self) -> str:
        """The ends of all logs, for a failing test."""
        shown = [self.server.postgres, self.server.firestore]
        processes = [*(sidecar.process for sidecar in self.sidecars), *shown]
        return "\n".join(f"--- {each.name} ---\n{each.tail()}" for each in processes)


async def _fields(store: Any, path: str, database: Database) -> dict[str, Any] | None:
    reading = await store.get([path], timeout=10)
    data = reading.documents[0].data
    document: Document | None = None if data is None else parse_document(data, database)
    return None if document is None else dict(document.fields)


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.03)


class Worlds:
    """One world for several tests, given on as new; another one where that fails."""

    def __init__(self, server: Server, directory: Path, **options: Any) -> None:
        self._make = lambda: world(server, directory, **options)
        self._resources = AsyncExitStack()
        self._world: World | None = None

    async def given(self, lease: float = LEASE) -> World:
        if self._world is not None:
            try:
                await self._world.restored(lease)
            except (Exception, AssertionError):  # noqa: BLE001 - the former test left it so
                await self.close()
        if self._world is None:
            self._world = await self._resources.enter_async_context(self._make())
            await self._world.restored(lease)
        return self._world

    async def close(self) -> None:
        self._world = None
        await self._resources.aclose()


@asynccontextmanager
async def world(
    server: Server,
    directory: Path,
    *,
    sidecars: int = 2,
    stage: str = "shadow",
    percent: float = 100.0,
    rpc: bool = False,
    skewed: bool = False,
    **variables: str,
) -> AsyncIterator[World]:
    """A fresh database in each store, and sidecars that are copied and in `stage`.

    `rpc`: a proxy of Firestore's methods before each sidecar's Firestore, behind the TCP
    one. `skewed`: `skew()` shifts what PostgreSQL takes for its clock.
    """
    number = next(_numbers)
    name = f"fault_{os.getpid()}_{number}"
    database = Database(f"fault-{os.getpid()}-{number}")
    await server.sql(f"create database {name} template {TEMPLATE}")
    async with AsyncExitStack() as resources:
        url = server.postgres.url(name)
        sql = await resources.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=4))
        if skewed:
            await _skewed(sql, name)
        direct = connect(database, server.firestore.address)
        resources.push_async_callback(direct.close)
        lanes = await Lanes.open(url, size=2)
        resources.push_async_callback(lanes.close)
        made: list[Sidecar] = []
        for index in range(sidecars):
            settings = _settings(database, stage, percent) | variables
            made.append(
                await _sidecar(resources, server, directory, f"{name}_{index}", name, settings, rpc)
            )
        built = World(
            server, database, url, made, direct, PostgresStore(lanes, MAPPINGS, database), sql
        )
        # One alone first: it seeds the control row.
        await made[0].process.start()
        await all_started([sidecar.process for sidecar in made[1:]])
        await built.copy()
        if stage in {"live", "ramp_down"}:
            await built.stage(stage)
        try:
            yield built
        except BaseException:
            print(built.logs())
            raise


def _settings(database: Database, stage: str, percent: float) -> dict[str, str]:
    seed = "shadow" if stage in {"live", "ramp_down"} else stage
    return {
        "GOOGLE_CLOUD_PROJECT": database.project,
        "CROSSFADE_MIGRATION__STAGE": seed,
        "CROSSFADE_MIGRATION__READ_PERCENT": str(percent),
        "CROSSFADE_MIGRATION__SHADOW_RATE": "0",
        "CROSSFADE_MIGRATION__LEASE": "0.5",
        "CROSSFADE_MIGRATION__HORIZON": "3",
        "CROSSFADE_RECOPY__INTERVAL": "0.05",
        "CROSSFADE_RECOPY__LEASE": "1",
        "CROSSFADE_FIRESTORE__TIMEOUT": "3",
        "CROSSFADE_POSTGRESQL__TIMEOUT": "3",
        "FAULT_LEASE": str(LEASE),
        "FAULT_COORDINATOR": "1",
        "FAULT_CLAIM": "1",
    }


async def _sidecar(
    resources: AsyncExitStack,
    server: Server,
    directory: Path,
    name: str,
    database: str,
    settings: dict[str, str],
    rpc: bool,
) -> Sidecar:
    to_postgres = await resources.enter_async_context(
        TcpProxy(lambda: ("127.0.0.1", server.postgres.port))
    )
    methods = (
        await resources.enter_async_context(RpcProxy(server.firestore.address)) if rpc else None
    )
    behind = int(methods.address.rpartition(":")[2]) if methods else server.firestore.port
    to_firestore = await resources.enter_async_context(TcpProxy(lambda: ("127.0.0.1", behind)))
    process = SidecarProcess(
        name,
        directory,
        settings
        | {
            "DATABASE_URL": server.postgres.url(database, to_postgres.address),
            "FIRESTORE_EMULATOR_HOST": to_firestore.address,
        },
    )
    resources.push_async_callback(process.end)
    connections = await resources.enter_async_context(AsyncExitStack())
    sidecar = Sidecar(process, to_postgres, to_firestore, methods, connections)
    await sidecar.connect()
    return sidecar


# --- PostgreSQL's clock ------------------------------------------------------------------------


async def _skewed(sql: asyncpg.Pool, database: str) -> None:
    """A clock of the test's own: found before the server's, because the search path names
    the server's schema explicitly, and after it."""
    await sql.execute("create schema skew")
    await sql.execute("create table skew.by (seconds float8 not null)")
    await sql.execute("insert into skew.by values (0)")
    await sql.execute(
        """create function skew.clock_timestamp() returns timestamptz language sql volatile as
        $$ select pg_catalog.clock_timestamp() + (select seconds from skew.by)
            * interval '1 second' $$"""
    )
    await sql.execute(f"alter database {database} set search_path = skew, pg_catalog, public")
    with suppress(Exception):
        await sql.expire_connections()


async def skew(world: World, seconds: float) -> None:
    """Shifts the clock that PostgreSQL gives to the sidecars' statements."""
    await world.sql.execute("update skew.by set seconds = $1", seconds)
