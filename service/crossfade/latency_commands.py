"""`crossfade latency`: how long both stores take for the same reads."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crossfade.asking import (
    DEFAULT_ADDRESS,
    OK,
    READ_SECONDS,
    Address,
    Json,
    duration,
    run,
    show,
)
from crossfade.probes import CannotStart

if TYPE_CHECKING:
    from crossfade_api.v1 import admin_pb2

COLUMNS = ("collection", "operation", "reads", "", "p50 ms", "p95 ms", "p99 ms")


def latency(
    *,
    since: Annotated[str | None, Parameter(help="90s, 10m, at most 1h.")] = None,
    collection: str = "",
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Compares the latencies of both stores: reads of which both were timed, one by one.

    The third line of each is PostgreSQL minus Firestore: negative where PostgreSQL is faster.
    Only reads that are compared (`shadow_rate`) are timed so, of the sidecar at --address.
    docs/telemetry.md says what bias remains.

    Example: crossfade latency --since 10m
    """
    from crossfade_api.v1 import admin_pb2

    seconds = 0.0 if since is None else duration(since)
    if since is not None and not 0 < seconds <= 3600:
        raise CannotStart(f'--since: "{since}" is not within an hour, which is what is kept')

    async def work(admin: Any) -> int:
        request = admin_pb2.GetLatencyRequest(since_seconds=seconds, collection=collection)
        reply = await admin.GetLatency(request, timeout=READ_SECONDS)
        rows = (row for found in reply.comparisons for row in _rows(found))
        show(reply, json_, COLUMNS, rows)
        if not reply.comparisons and not json_:
            print("no read was compared in this time")
        return OK

    return run(address, work)


def _rows(found: "admin_pb2.LatencyComparison") -> list[tuple[str, ...]]:
    def row(name: str, held: "admin_pb2.LatencyQuantiles", sign: str = "") -> tuple[str, ...]:
        return name, *(f"{each:{sign}.2f}" for each in (held.p50_ms, held.p95_ms, held.p99_ms))

    return [
        (found.collection, found.operation, str(found.count), *row("Firestore", found.firestore)),
        ("", "", "", *row("PostgreSQL", found.postgresql)),
        (
            *("", "", f"{found.slower:.0%} slower"),
            *row("difference", found.difference, "+"),
        ),
    ]
