"""Gauges of what a sidecar knows, and the loop that asks PostgreSQL for the rest.

They are read from a thread, and at any time. While PostgreSQL does not answer, those that it
has to be asked for show nothing, and not the last that was known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from crossfade.control import Control
from crossfade.controls import Controls
from crossfade.errors import CrossfadeError
from crossfade.plan import Stage
from crossfade.rpc import admin as admin_rpc
from crossfade.shadow import Shadow
from crossfade.stores.postgres.jobs import Job, Jobs
from crossfade.telemetry import (
    DEAD_LETTERS,
    EFFECTIVE_PERCENT,
    EPOCH,
    FOREIGN,
    GATE_OPEN,
    JOB_DOCUMENTS,
    JOB_PROCESSES,
    JOB_PROGRESS,
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


def show(telemetry: Telemetry, controls: Controls, shadow: Shadow) -> None:
    """What is known without asking anybody."""

    def of_each(value: Callable[[Control], float]) -> GaugeSource:
        return lambda: {(name,): value(control) for name, control in controls.items()}

    telemetry.gauge(EPOCH, of_each(lambda control: control.snapshot.epoch))
    telemetry.gauge(
        STAGE,
        lambda: {(control.snapshot.stage.value, name): 1.0 for name, control in controls.items()},
    )
    telemetry.gauge(SHADOW_QUEUE, lambda: shadow.waiting)
    telemetry.gauge(READ_PERCENT, lambda: _read_percents(controls))
    if controls.default.lease is not None:
        telemetry.gauge(GATE_OPEN, of_each(_gate_open))


def _gate_open(control: Control) -> float:
    return float(control.lease is not None and control.lease.document.gate_open)


def watch(
    controls: Controls, admin: admin_rpc.Admin, telemetry: Telemetry, jobs: Jobs | None = None
) -> Callable[[], Awaitable[None]]:
    """Shows what PostgreSQL has to be asked for; returns what asks it, for ever."""
    seen: dict[str, admin_rpc.Backlog] = {}

    def shown(value: Callable[[admin_rpc.Backlog], float]) -> GaugeSource:
        return lambda: {(name,): value(backlog) for name, backlog in seen.items()}

    def loses() -> Mapping[Labels, float]:
        return {
            (how, name): count
            for name, backlog in seen.items()
            for how, count in (
                ("barrier", backlog.rollback_loses),
                ("forced", backlog.forced_rollback_loses),
            )
        }

    telemetry.gauge(EFFECTIVE_PERCENT, lambda: _by_collection(admin.effective.percents()))
    telemetry.gauge(PENDING, shown(lambda backlog: backlog.pending))
    telemetry.gauge(OLDEST_PENDING, shown(lambda backlog: backlog.oldest_seconds))
    telemetry.gauge(DEAD_LETTERS, shown(lambda backlog: backlog.dead))
    telemetry.gauge(FOREIGN, shown(lambda backlog: backlog.foreign))
    telemetry.gauge(ROLLBACK_LOSES, loses)
    working: list[Job] = []
    telemetry.gauge(JOB_PROGRESS, lambda: _progress(working))
    telemetry.gauge(JOB_DOCUMENTS, lambda: _documents(working))
    telemetry.gauge(JOB_PROCESSES, lambda: {_of(job): job.processes for job in working})

    async def ask() -> None:
        nonlocal seen, working
        while True:
            admin.effective.observe()
            try:
                seen = {name: await admin.backlog(name) for name in controls}
                working = [] if jobs is None else _unfinished(await jobs.list())
            except CrossfadeError as error:
                seen, working = {}, []
                log.info("the backlog is not known", error=error.code)
            # In stage complete the answer costs PostgreSQL the reading of a whole table.
            complete = any(each.snapshot.stage is Stage.COMPLETE for each in controls.values())
            await asyncio.sleep(COMPLETE_SECONDS if complete else WATCH_SECONDS)

    return ask


def _unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Of a kind and group there is one."""
    return [job for job in jobs if not job.state.ended]


def _of(job: Job) -> Labels:
    return (job.kind, job.group)


def _progress(jobs: Sequence[Job]) -> dict[Labels, float]:
    """In percent."""
    return {_of(job): 100 * job.partitions_done / job.partitions for job in jobs if job.partitions}


def _documents(jobs: Sequence[Job]) -> dict[Labels, float]:
    """By what came of them, all collections together. What has a ":" are digests and the like."""
    return {
        (*_of(job), word): job.total(word)
        for job in jobs
        for word in {word for counts in job.counts.values() for word in counts if ":" not in word}
    }


def _by_collection(values: Mapping[str, float]) -> dict[Labels, float]:
    return {(collection,): value for collection, value in values.items()}


def _read_percents(controls: Controls) -> dict[Labels, float]:
    """By collection; `*` stands for those without a setting of their own."""
    return {
        (name or "*",): controls.snapshot_of(name).plan_of(name).threshold / 100
        for name in controls.traffic()
    }
