"""The development stack of `crossfade up`: both stores, the sidecar, sample data, traffic."""

import asyncio
import importlib
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from pydantic import SecretStr

from crossfade import app
from crossfade.display import StatusLine
from crossfade.document import Database
from crossfade.embedded import EmbeddedFirestore, EmbeddedPostgres
from crossfade.plan import STAGES, Stage
from crossfade.rehearse import load, sample_traffic
from crossfade.settings import (
    AdminSettings,
    FirestoreSettings,
    MigrationSettings,
    PostgresqlSettings,
    ServerSettings,
    Settings,
)
from crossfade.starting import load_mappings
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.stores.postgres.evolve import bring_on
from crossfade.telemetry import Telemetry
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from crossfade_client import AsyncCrossfade

STATUS_SECONDS = 1.0
SEED = 1
REQUEST_WINDOW = 600.0
"""Seconds: short, so that a stack that runs for days does not fill its memory with intents."""
UPGRADE_SECONDS = 60.0
CALLERS = 5
MARKER = "_crossfade_sample/loaded"
"""Says that this Firestore holds the sample documents."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """`firestore` (host:port) and `postgres` (URL) replace the embedded ones; port 0 is a free one.

    `rate`: operations a second of the sample traffic.
    """

    directory: Path = Path(".crossfade")
    firestore: str | None = None
    postgres: str | None = None
    port: int = 7600
    dashboard_port: int = 7601
    traffic: bool = True
    tasks: int = 300
    rate: float = 50.0
    sample: str = "violet"
    project: str = "violet"


async def run_up(options: UpOptions, stop: asyncio.Event, status: StatusLine) -> None:
    """Runs until `stop` is set, then stops everything it started.

    The migration stands in stage shadow at first: both stores are written, every
    read is compared, and half of the reads are answered by PostgreSQL. A second
    start goes on with the data and the stage of the first.
    """
    async with AsyncExitStack() as resources:
        postgres_url = options.postgres
        if postgres_url is None:
            status.say("starting PostgreSQL")
            postgres = EmbeddedPostgres(options.directory / "postgresql")
            postgres_url = (await resources.enter_async_context(postgres)).url
        firestore_address = options.firestore
        if firestore_address is None:
            status.say("starting Firestore")
            firestore = EmbeddedFirestore(data_dir=options.directory / "firestore")
            firestore_address = (await resources.enter_async_context(firestore)).address
        sample = importlib.import_module(f"{options.sample}.sample")
        database = Database(options.project)
        await _load_once(options, database, firestore_address, sample, status)

        settings = Settings(
            server=ServerSettings(port=options.port),
            firestore=FirestoreSettings(project=options.project, emulator=firestore_address),
            postgresql=PostgresqlSettings(url=SecretStr(postgres_url)),
            migration=MigrationSettings(
                stage=Stage.SHADOW,
                mappings=options.sample,
                read_percent=50,
                shadow_rate=1.0,
                request_window=REQUEST_WINDOW,
            ),
            admin=AdminSettings(port=options.dashboard_port),
        )
        # The data of a former start may be a former version's; nobody else works with them.
        mappings = load_mappings(options.sample)
        dsn = settings.postgresql.dsn
        await bring_on(dsn, mappings, options.sample, database, timeout=UPGRADE_SECONDS)
        sidecar = await app.start(settings, Telemetry(settings.telemetry))
        resources.push_async_callback(sidecar.stop, 5.0)
        channel = await resources.enter_async_context(grpc.aio.insecure_channel(sidecar.address))
        admin = admin_pb2_grpc.AdminStub(channel)
        status_now = await sidecar.status()
        if STAGES[Stage(status_now.stage)].mirrored and not status_now.copied:
            said = -1
            async for step in admin.Copy(admin_pb2.CopyRequest()):
                if step.copied != said:  # its last steps copy nothing more
                    said = step.copied
                    status.say(f"copying the old documents: {said}")
        status.say(f"firestore {firestore_address}")
        status.say(f"postgresql {settings.postgresql.target}")
        status.answer(f"sidecar {sidecar.address}")
        if sidecar.web is not None:
            status.answer(f"dashboard http://{sidecar.web.address}/")

        work = [asyncio.create_task(_show(sidecar, status))]
        if options.traffic:
            client = await resources.enter_async_context(AsyncCrossfade(sidecar.address))
            work.append(asyncio.create_task(_traffic(client, options)))
        ended = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([ended, *work], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ended}:
                task.result()  # a part of the stack that ended by itself has failed
        finally:
            status.say("stopping")
            for task in (ended, *work):
                task.cancel()
            await asyncio.gather(ended, *work, return_exceptions=True)


async def _load_once(
    options: UpOptions, database: Database, address: str, sample: Any, status: StatusLine
) -> None:
    """The application's past: written around the sidecar, before there was one."""
    store: FirestoreStore = connect(database, address)
    try:
        marker = await store.get([MARKER], timeout=10.0)
        if marker.documents[0].data is None:
            status.say("writing sample documents to Firestore")
            await load(store, sample.documents(SEED, options.tasks))
            await store.commit([Write(MARKER, {"tasks": options.tasks})], timeout=10.0)
    finally:
        await store.close()


async def _show(sidecar: app.Sidecar, status: StatusLine) -> None:
    while True:
        status.update(await sidecar.status())
        await asyncio.sleep(STATUS_SECONDS)


async def _traffic(client: AsyncCrossfade, options: UpOptions) -> None:
    """The application's mix of calls, at `rate` a second together, for ever."""
    traffic, operations = sample_traffic(options.sample, SEED, options.tasks)
    tally = traffic.Tally()
    async with asyncio.TaskGroup() as group:
        for caller in range(CALLERS):
            group.create_task(
                traffic.drive(
                    client,
                    operations(caller),
                    tally,
                    until=lambda: False,
                    period=CALLERS / options.rate,
                )
            )
