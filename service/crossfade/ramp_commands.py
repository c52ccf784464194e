"""`crossfade ramp`: begins, shows and ends ramps."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from crossfade.asking import (
    ALL,
    DEFAULT_ADDRESS,
    OK,
    READ_SECONDS,
    Address,
    Json,
    duration,
    run,
    share,
    show,
    who,
)
from crossfade.probes import CannotStart

if TYPE_CHECKING:
    from crossfade_api.v1 import admin_pb2

ramp = App(
    name="ramp",
    help="Moves reads to PostgreSQL step by step, as long as the figures allow, and back by "
    "itself when they do not.",
    help_format="markdown",
)


@ramp.default
def show_ramps(*, address: Address = DEFAULT_ADDRESS, json_: Json = False) -> int:
    """Shows the ramps: where each stands, and what it did last or waits for.

    Example: crossfade ramp
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        reply = await admin.ListRamps(admin_pb2.ListRampsRequest(), timeout=READ_SECONDS)
        _show_ramps(reply, json_)
        return OK

    return run(address, work)


@ramp.command(name="start")
def start_ramp(
    collection: str,
    *,
    steps: str = "1,5,25,50,100",
    bake: str = "10m",
    max_mismatch: str | None = None,
    max_error_delta: str | None = None,
    max_p99_ratio: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    min_samples: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Begins at 0 percent, and goes a step forward whenever bake and figures allow.

    It holds while the data are too few, goes back a step when PostgreSQL fails or is slow,
    and to 0 when the data differ; a sidecar carries it on, this command does not wait.
    Limits that are not given are those of [ramp] in the sidecar's settings.

    Example: crossfade ramp start tasks --steps 1,5,25,50,100 --bake 10m --max-mismatch 0.01%

    :param collection: A collection id, or "all": a ramp for the defaults and one for each
        collection that has a percent of its own.
    :param steps: Percents, rising.
    :param bake: How long each is looked at: 90s, 10m, 2h.
    :param max_mismatch: Share of comparisons that may be bad, as 0.01% or 0.0001.
    :param max_error_delta: How much larger PostgreSQL's share of failed reads may be.
    :param max_p99_ratio: How many times as slow PostgreSQL's p99 may be.
    :param min_samples: Comparisons, and reads of each store, that a step needs.
    """
    from crossfade_api.v1 import admin_pb2

    given: dict[str, Any] = {
        "max_mismatch": None if max_mismatch is None else share(max_mismatch),
        "max_error_delta": None if max_error_delta is None else share(max_error_delta),
        "max_p99_ratio": max_p99_ratio,
        "min_samples": min_samples,
    }
    try:
        percents = [float(step) for step in steps.split(",")]
    except ValueError:
        raise CannotStart("--steps: percents with commas between them, as 1,5,25") from None
    seconds = duration(bake)

    async def work(admin: Any) -> int:
        status = await admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=READ_SECONDS)
        every = dict.fromkeys(each.collection for each in status.traffic)
        for name in every if collection == ALL else [collection]:
            request = admin_pb2.StartRampRequest(
                collection=name, steps=percents, bake_seconds=seconds, who=who(), **given
            )
            await admin.StartRamp(request, timeout=READ_SECONDS)
        reply = await admin.ListRamps(admin_pb2.ListRampsRequest(), timeout=READ_SECONDS)
        _show_ramps(reply, json_)
        return OK

    return run(address, work)


@ramp.command(name="stop")
def stop_ramp(collection: str, *, address: Address = DEFAULT_ADDRESS, json_: Json = False) -> int:
    """Ends a ramp and leaves the reads where they are.

    Example: crossfade ramp stop all

    :param collection: A collection id, or "all".
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        everything = collection == ALL
        request = admin_pb2.StopRampRequest(
            collection="" if everything else collection, all=everything, who=who()
        )
        _show_ramps(await admin.StopRamp(request, timeout=READ_SECONDS), json_)
        return OK

    return run(address, work)


def _show_ramps(reply: "admin_pb2.ListRampsReply", json_: bool) -> None:
    rows = (
        (each.collection or "(default)", each.status, f"{each.percent:g}", each.reason)
        for each in reply.ramps
    )
    show(reply, json_, ("collection", "status", "percent", "why"), rows)
