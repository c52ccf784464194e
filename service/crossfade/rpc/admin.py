"""crossfade.v1.Admin: where the migration stands, and the controls that move it."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from crossfade_api.v1 import admin_pb2

from crossfade.call import Call
from crossfade.control import Control, Traffic, parse_stage
from crossfade.document import Database, check_id
from crossfade.errors import FailedPrecondition, InvalidArgument
from crossfade.jobs.backfill import backfill
from crossfade.plan import STAGES, StoreName
from crossfade.rpc.server import Wrapper, parse
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.mirror import Mirror
from crossfade.telemetry import (
    COMMITS,
    FALLBACK_READS,
    READS,
    SHADOW_DROPPED,
    VERDICTS,
    Telemetry,
)

SERVICE = "crossfade.v1.Admin"
BARRIER_SECONDS = 10.0
COPY_TIMEOUT = 30.0


class Admin:
    """The methods of the service, from request bytes to reply bytes."""

    def __init__(
        self,
        control: Control,
        telemetry: Telemetry,
        database: Database,
        firestore: FirestoreStore | None,
        mirror: Mirror | None,
    ) -> None:
        self._control = control
        self._telemetry = telemetry
        self._database = database
        self._firestore = firestore
        self._mirror = mirror

    async def get_status(self, data: bytes, _: Call) -> bytes:
        parse(admin_pb2.GetStatusRequest, data)
        return (await self.status()).SerializeToString()

    async def set_stage(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.SetStageRequest, data)
        target = parse_stage(request.stage)
        if STAGES[target].mirrored and self._firestore is None:
            raise FailedPrecondition(f"stage {target} needs Firestore, which is not configured")
        seconds = request.timeout_seconds or BARRIER_SECONDS
        await self._control.set_stage(target, timeout=seconds)
        return (await self.status()).SerializeToString()

    async def set_traffic(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.SetTrafficRequest, data)
        if request.collection:
            check_id(request.collection, "collection")
        percent = request.read_percent if request.HasField("read_percent") else None
        rate = request.shadow_rate if request.HasField("shadow_rate") else None
        if percent is None and rate is None:
            raise InvalidArgument("read_percent, shadow_rate: at least one must be given")
        if percent is not None and not 0 <= percent <= 100:
            raise InvalidArgument(f"read_percent: {percent:g} is outside 0..100")
        if rate is not None and not 0 <= rate <= 1:
            raise InvalidArgument(f"shadow_rate: {rate:g} is outside 0..1")
        await self._control.set_traffic(request.collection, Traffic(percent, rate))
        return (await self.status()).SerializeToString()

    async def copy(self, data: bytes, _: Call) -> AsyncIterator[bytes]:
        parse(admin_pb2.CopyRequest, data)
        if self._firestore is None or self._mirror is None:
            raise FailedPrecondition("a copy needs both stores; one is not configured")
        progress = backfill(
            self._control, self._firestore, self._mirror, self._database, COPY_TIMEOUT
        )
        async for step in progress:
            yield admin_pb2.CopyProgress(
                copied=step.copied, removed=step.removed, done=step.done
            ).SerializeToString()

    async def status(self) -> admin_pb2.Status:
        snapshot = self._control.snapshot
        status = admin_pb2.Status(
            stage=snapshot.stage.value,
            authority=snapshot.authority.value if snapshot.writable else "none",
            epoch=snapshot.epoch,
            copied=True,
        )
        if self._mirror is not None:
            summary = await self._mirror.summary(timeout=5.0)
            status.pending = summary.pending
            status.oldest_pending_seconds = summary.oldest_seconds
            status.copied = not summary.wildcards
            status.dead_letters = summary.dead
        if snapshot.authority is StoreName.POSTGRESQL:
            status.forced_rollback_loses = status.pending
        for name in sorted({"", *snapshot.traffic}):
            traffic = snapshot.traffic_of(name)
            plan = snapshot.plan_of(name)
            status.traffic.add(
                collection=name,
                read_percent=plan.threshold / 100,
                shadow_rate=plan.shadow_rate
                if traffic.shadow_rate is None
                else traffic.shadow_rate,
            )
        self._add_counts(status)
        return status

    def _add_counts(self, status: admin_pb2.Status) -> None:
        """What the recorder holds since the start."""
        for (collection, verdict), count in sorted(self._telemetry.counts(VERDICTS).items()):
            status.verdicts.add(collection=collection, verdict=verdict, count=count)
        for series in self._telemetry.latencies():
            status.latencies.add(
                collection=series.collection,
                operation=series.operation,
                store=series.store,
                role=series.role,
                count=series.count,
                errors=series.errors,
                p50_ms=series.p50 * 1e3,
                p95_ms=series.p95 * 1e3,
                p99_ms=series.p99 * 1e3,
            )
        for (_, store), count in self._telemetry.counts(READS).items():
            status.reads_by_store[store] += count
        status.shadow_dropped = self._telemetry.total(SHADOW_DROPPED)
        status.fallback_reads = self._telemetry.total(FALLBACK_READS)
        status.commits = self._telemetry.total(COMMITS)


def handler(admin: Admin, wrap: Wrapper) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetStatus": wrap.unary("GetStatus", admin.get_status),
        "SetStage": wrap.unary("SetStage", admin.set_stage),
        "SetTraffic": wrap.unary("SetTraffic", admin.set_traffic),
        "Copy": wrap.streaming("Copy", admin.copy),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)
