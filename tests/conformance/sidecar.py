"""`python -m tests.conformance.sidecar STAGE PROJECT`: a throwaway sidecar in a stage.

Both stores are embedded, PostgreSQL answers all that it may. Prints "sidecar HOST:PORT" when
it is there; ends with SIGTERM.
"""

import asyncio
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
from pydantic import SecretStr

from crossfade import app
from crossfade.embedded import EmbeddedFirestore, EmbeddedPostgres
from crossfade.plan import STAGES, Stage
from crossfade.settings import (
    FirestoreSettings,
    MigrationSettings,
    PostgresqlSettings,
    ServerSettings,
    Settings,
)
from crossfade.telemetry import Telemetry
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc


async def main(stage: Stage, project: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="crossfade-")))
        postgres = await resources.enter_async_context(EmbeddedPostgres(directory))
        firestore = await resources.enter_async_context(EmbeddedFirestore())
        settings = Settings(
            server=ServerSettings(port=0, default_timeout=60.0),
            firestore=FirestoreSettings(project=project, emulator=firestore.address),
            postgresql=PostgresqlSettings(url=SecretStr(postgres.url), snapshot_lanes=8),
            migration=MigrationSettings(
                stage=Stage.SHADOW if STAGES[stage].mirrored or stage is Stage.COMPLETE else stage,
                read_percent=100,
                shadow_rate=1.0,
                lease=0.5,
                horizon=0.5,
            ),
        )
        sidecar = await app.start(settings, Telemetry())
        resources.push_async_callback(sidecar.stop, 1.0)
        channel = await resources.enter_async_context(grpc.aio.insecure_channel(sidecar.address))
        admin = admin_pb2_grpc.AdminStub(channel)
        if stage is not Stage.OFF:
            async for _ in admin.Copy(admin_pb2.CopyRequest()):
                pass
        for step in _way_to(stage):
            await admin.SetStage(admin_pb2.SetStageRequest(stage=step.value, force=True))
        print(f"sidecar {sidecar.address}", flush=True)
        await stop.wait()


def _way_to(stage: Stage) -> list[Stage]:
    """The changes of stage that lead there from shadow."""
    if STAGES[stage].authority is STAGES[Stage.SHADOW].authority:
        return [] if stage in {Stage.OFF, Stage.SHADOW} else [stage]
    return [Stage.LIVE] if stage is Stage.LIVE else [Stage.LIVE, stage]


if __name__ == "__main__":
    asyncio.run(main(Stage(sys.argv[1]), sys.argv[2]))
