"""A whole sidecar for tests: real PostgreSQL, the embedded Firestore over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc.aio
from pydantic import SecretStr

from crossfade import app
from crossfade.document import Database
from crossfade.plan import Stage
from crossfade.rpc import firestore_v1
from crossfade.settings import (
    AccessSettings,
    AdminSettings,
    FirestoreSettings,
    LimitSettings,
    MigrationSettings,
    PostgresqlSettings,
    RampSettings,
    RecopySettings,
    ServerSettings,
    Settings,
    ShadowSettings,
)
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.stores.memory import MemoryStores
from crossfade.telemetry import Counter, Telemetry
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from crossfade_client import AsyncCrossfade

DATABASE = Database("test")
QUIET: dict[str, Any] = {"slow_mirror": "wait", "patience": 3.0}
"""However busy the machine or its disk is, commits go around the mirror only in the tests of
that."""
PATIENT = {"lag": 60.0}
"""And comparisons are left out only in theirs."""


@dataclass
class Running:
    """The parts of a running stack that tests reach into."""

    sidecar: app.Sidecar
    telemetry: Telemetry
    client: AsyncCrossfade
    admin: Any
    memory: Any
    direct: FirestoreStore
    sql: Any
    firestore_server: Any
    stores: Any
    url: str

    def another(self, **migration: Any) -> Any:
        """A second sidecar on the same stores (an asynchronous context)."""
        return beside(self.stores, self.firestore_server, self.url, **migration)

    async def stage(self, stage: str, group: str = "") -> None:
        """Whatever the checks say."""
        request = admin_pb2.SetStageRequest(stage=stage, group=group, force=True)
        await self.admin.SetStage(request)

    async def percent(self, percent: float, shadow_rate: float = 0.0) -> None:
        await self.admin.SetTraffic(
            admin_pb2.SetTrafficRequest(read_percent=percent, shadow_rate=shadow_rate)
        )

    async def copy(self, group: str = "") -> admin_pb2.CopyProgress:
        steps: list[admin_pb2.CopyProgress] = [
            step async for step in self.admin.Copy(admin_pb2.CopyRequest(group=group))
        ]
        return steps[-1]

    async def settled(self, seconds: float = 10.0) -> None:
        """Waits until nothing is pending and no comparison waits."""
        await eventually(self._is_settled, seconds)

    async def _is_settled(self) -> bool:
        for member in self.sidecar.members.values():
            lease = member.lease
            if lease is not None and await lease.fences.entries(timeout=5):
                return False  # what the outbox has is not pending yet
        rows = await self.sql.fetchval("select count(*) from crossfade.pending where not dead")
        return not rows and self.sidecar.shadow.idle

    def count(self, counter: Counter, *labels: str) -> int:
        """The counter's sum over the series that have all these labels."""
        counts = self.telemetry.counts(counter)
        return sum(n for key, n in counts.items() if set(labels) <= set(key))


async def eventually(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{condition} did not come true in {seconds} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    postgres_url: str,
    stage: Stage = Stage.OFF,
    telemetry: Telemetry | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """`options`: those of `beside`."""
    stores = MemoryStores()
    server = await firestore_v1.serve(stores, "127.0.0.1", 0)
    try:
        async with beside(stores, server, postgres_url, stage, telemetry, **options) as stack:
            yield stack
    finally:
        await server.stop(0)


@asynccontextmanager
async def beside(
    stores: Any,
    server: Any,
    postgres_url: str,
    stage: Stage | None = None,
    telemetry: Telemetry | None = None,
    *,
    shadow: dict[str, Any] | None = None,
    collections: dict[str, Any] | None = None,
    groups: dict[str, Any] | None = None,
    ramp: dict[str, Any] | None = None,
    http: dict[str, Any] | None = None,
    source: app.Source | None = None,
    server_settings: dict[str, Any] | None = None,
    access: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    **migration: Any,
) -> AsyncIterator[Running]:
    """A sidecar, perhaps another one, on stores that are there. `shadow`, `collections`,
    `groups`, `ramp`, `http` (the admin API; None: it is not served), `server_settings`, `access`,
    `limits` and `migration` are sections of its settings; `source`: the file that it watches."""
    # A plain commit may take as long as the horizon; in other stages it is what a fence waits for.
    horizon = 5.0 if stage is Stage.OFF else 0.3
    settings = Settings(
        server=ServerSettings(**({"port": 0} | (server_settings or {}))),
        access=AccessSettings(**(access or {})),
        limits=LimitSettings(**(limits or {})),
        firestore=FirestoreSettings(project=DATABASE.project, emulator=server.address),
        postgresql=PostgresqlSettings(url=SecretStr(postgres_url)),
        migration=MigrationSettings(
            stage=stage,
            mappings="violet",
            **({"shadow_rate": 0.0, "lease": 0.3, "horizon": horizon} | QUIET | migration),
        ),
        shadow=ShadowSettings(**({"behind_bound": 0.2} | PATIENT | (shadow or {}))),
        collections=collections or {},
        groups=groups or {},
        ramp=RampSettings(**(ramp or {})),
        recopy=RecopySettings(interval=0.05, attempts=3),
        admin=AdminSettings(**({} if http is None else {"port": 0} | http)),
    )
    telemetry = telemetry or Telemetry()
    sidecar = await app.start(settings, telemetry, source)
    channel = grpc.aio.insecure_channel(sidecar.address)
    client = AsyncCrossfade(sidecar.address, timeout=10.0)
    direct = connect(DATABASE, server.address)
    sql = await asyncpg.connect(postgres_url)
    try:
        yield Running(
            sidecar,
            telemetry,
            client,
            admin_pb2_grpc.AdminStub(channel),
            stores(DATABASE),
            direct,
            sql,
            server,
            stores,
            postgres_url,
        )
    finally:
        await sql.close()
        await client.close()
        await channel.close()
        await sidecar.stop(1.0)
        await direct.close()
