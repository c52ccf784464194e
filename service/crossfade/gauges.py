"""Gauges of what a sidecar knows, and the loop that asks PostgreSQL for the rest.

They are read from a thread, and at any time. While PostgreSQL does not answer, those that it
has to be asked for show nothing, and not the last that was known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from crossfade.control import Control
from crossfade.errors import CrossfadeError
from crossfade.lease import Lease
from crossfade.plan import Stage
from crossfade.rpc import admin as admin_rpc
from crossfade.shadow import Shadow
from crossfade.telemetry import (
    DEAD_LETTERS,
    EFFECTIVE_PERCENT,
    EPOCH,
    FOREIGN,
    GATE_OPEN,
    OLDEST_PENDING,
    PENDING,
    READ_PERCENT,
    ROLLBACK_LOSES,
    SHADOW_QUEUE,
    STAGE,
    GaugeSource,
    Labels,
    Telemetry,
)

log = structlog.get_logger(__name__)

WATCH_SECONDS = 2.0
COMPLETE_SECONDS = 30.0


def show(telemetry: Telemetry, control: Control, lease: Lease | None, shadow: Shadow) -> None:
    """What is known without asking anybody."""
    telemetry.gauge(EPOCH, lambda: control.snapshot.epoch)
    telemetry.gauge(STAGE, lambda: {(control.snapshot.stage.value,): 1.0})
    telemetry.gauge(SHADOW_QUEUE, lambda: shadow.waiting)
    telemetry.gauge(READ_PERCENT, lambda: _read_percents(control))
    if lease is not None:
        telemetry.gauge(GATE_OPEN, lambda: float(lease.document.gate_open))


def watch(
    control: Control, admin: admin_rpc.Admin, telemetry: Telemetry
) -> Callable[[], Awaitable[None]]:
    """Shows what PostgreSQL has to be asked for; returns what asks it, for ever."""
    seen: admin_rpc.Backlog | None = None

    def shown(value: Callable[[admin_rpc.Backlog], float]) -> GaugeSource:
        return lambda: {} if seen is None else {(): value(seen)}

    def loses() -> Mapping[Labels, float]:
        if seen is None:
            return {}
        return {("barrier",): seen.rollback_loses, ("forced",): seen.forced_rollback_loses}

    telemetry.gauge(EFFECTIVE_PERCENT, lambda: _by_collection(admin.effective.percents()))
    telemetry.gauge(PENDING, shown(lambda backlog: backlog.pending))
    telemetry.gauge(OLDEST_PENDING, shown(lambda backlog: backlog.oldest_seconds))
    telemetry.gauge(DEAD_LETTERS, shown(lambda backlog: backlog.dead))
    telemetry.gauge(FOREIGN, shown(lambda backlog: backlog.foreign))
    telemetry.gauge(ROLLBACK_LOSES, loses)

    async def ask() -> None:
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

    return ask


def _by_collection(values: Mapping[str, float]) -> dict[Labels, float]:
    return {(collection,): value for collection, value in values.items()}


def _read_percents(control: Control) -> dict[Labels, float]:
    """By collection; `*` stands for those without a setting of their own."""
    snapshot = control.snapshot
    names = {"", *snapshot.traffic}
    return {(name or "*",): snapshot.plan_of(name).threshold / 100 for name in names}
