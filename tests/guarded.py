"""A sidecar that asks who calls, for tests: over the embedded Firestore, without PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from crossfade import app
from crossfade.rpc import firestore_v1
from crossfade.rpc.firestore_v1 import faults
from crossfade.settings import (
    AccessSettings,
    FirestoreSettings,
    LimitSettings,
    MigrationSettings,
    ServerSettings,
    Settings,
)
from crossfade.stores.memory import MemoryStores
from crossfade.telemetry import Telemetry

READER, WRITER, ADMIN = "reader-0123456789", "writer-0123456789", "admin-01234567890"
EXPIRED, SMALL = "expired-0123456789", "small-0123456789-0"
TOKENS = f"""
[[token]]
name = "dashboards"
role = "reader"
token = "{READER}"

[[token]]
name = "proxy"
role = "writer"
token = "{WRITER}"

[[token]]
name = "operator"
role = "admin"
token = "{ADMIN}"

[[token]]
name = "gone"
role = "admin"
token = "{EXPIRED}"
expires = 2026-01-01T00:00:00Z
"""


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call."""
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def guarded(
    *,
    telemetry: Telemetry | None = None,
    server: dict[str, Any] | None = None,
    access: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    latency: str | None = None,
) -> AsyncIterator[app.Sidecar]:
    """Sections of the settings; the rest stands as it does by default. `latency` of Firestore:
    "MEAN,JITTER" in milliseconds."""
    feigned = faults.parse(latency, (), 1)
    firestore = await firestore_v1.serve(MemoryStores(), "127.0.0.1", 0, feigned)
    settings = Settings(
        server=ServerSettings(**({"port": 0} | (server or {}))),
        access=AccessSettings(**(access or {})),
        limits=LimitSettings(**(limits or {})),
        firestore=FirestoreSettings(project="test", emulator=firestore.address),
        migration=MigrationSettings(mappings="violet"),
    )
    try:
        sidecar = await app.start(settings, telemetry or Telemetry())
        try:
            yield sidecar
        finally:
            await sidecar.stop(1.0)
    finally:
        await firestore.stop(0)
