"""crossfade.v1.Admin: how long both stores took for the same reads."""

from typing import Any

import grpc

from crossfade import wire
from crossfade.call import Call
from crossfade.errors import InvalidArgument
from crossfade.paired import SLOT_SECONDS, SLOTS, Comparison, Moment, Paired, Quantiles
from crossfade.rpc.server import Unary, Wrapper, parse
from crossfade_api.v1 import admin_pb2

SERVICE = "crossfade.v1.Admin"
KEPT_SECONDS = SLOT_SECONDS * SLOTS


class LatencyMethods:
    """The methods, from request bytes to reply bytes."""

    def __init__(self, paired: Paired) -> None:
        self._paired = paired

    async def get(self, data: bytes, _: Call) -> bytes:
        return self.reply(parse(admin_pb2.GetLatencyRequest, data)).SerializeToString()

    def reply(self, request: admin_pb2.GetLatencyRequest) -> admin_pb2.GetLatencyReply:
        """Raises InvalidArgument for times that are not kept."""
        since, step = request.since_seconds, request.step_seconds
        if not 0 <= since <= KEPT_SECONDS:
            raise InvalidArgument(f"since_seconds: {since:g} is outside 0..{KEPT_SECONDS:g}")
        if step and not SLOT_SECONDS <= step <= KEPT_SECONDS:
            raise InvalidArgument(
                f"step_seconds: {step:g} is outside {SLOT_SECONDS:g}..{KEPT_SECONDS:g}"
            )
        wanted = {"collection": request.collection, "operation": request.operation}
        reply = admin_pb2.GetLatencyReply(
            comparisons=map(_comparison, self._paired.comparisons(since or None, **wanted))
        )
        if step:
            moments = self._paired.moments(since or KEPT_SECONDS, step=step, **wanted)
            reply.moments.extend(map(_moment, moments))
        return reply


def _comparison(found: Comparison) -> admin_pb2.LatencyComparison:
    return admin_pb2.LatencyComparison(
        collection=found.collection,
        operation=found.operation,
        count=found.count,
        firestore=_quantiles(found.firestore),
        postgresql=_quantiles(found.postgresql),
        difference=_quantiles(found.difference),
        slower=found.slower,
        buckets=[
            admin_pb2.DifferenceBucket(to_ms=bound * 1e3, count=count)
            for bound, count in found.histogram
        ],
    )


def _moment(found: Moment) -> admin_pb2.LatencyMoment:
    made = admin_pb2.LatencyMoment(
        count=found.count,
        firestore=_quantiles(found.firestore),
        postgresql=_quantiles(found.postgresql),
        difference=_quantiles(found.difference),
    )
    wire.encode_time(round(found.at * 1e6), made.at)
    return made


def _quantiles(found: Quantiles | None) -> admin_pb2.LatencyQuantiles | None:
    if found is None:
        return None
    return admin_pb2.LatencyQuantiles(
        p50_ms=found.p50 * 1e3, p95_ms=found.p95 * 1e3, p99_ms=found.p99 * 1e3
    )


def unary(latency: LatencyMethods) -> dict[str, Unary]:
    return {"GetLatency": latency.get}


def methods(latency: LatencyMethods, wrap: Wrapper) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
    return {
        name: wrap.unary(f"{SERVICE}/{name}", method) for name, method in unary(latency).items()
    }
