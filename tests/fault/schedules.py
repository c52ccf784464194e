"""Schedules of faults, as Hypothesis draws them: which, at which sidecar, for how long.

A schedule is data that prints as the code that makes it: a failing one is given to the test
again with `@example`, or by the blob that Hypothesis prints. Threads of several processes
take turns as they like, so the same schedule may well pass the next time: it is not made
smaller, for a smaller one that passes says nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import grpc.aio
from hypothesis import strategies as st

from crossfade_api.v1 import admin_pb2
from tests.fault.world import Sidecar, World

Fault = Callable[[World, Sidecar], Awaitable[None]]


async def _postgres_down(world: World, sidecar: Sidecar) -> None:
    sidecar.postgres.down()


async def _postgres_black_hole(world: World, sidecar: Sidecar) -> None:
    sidecar.postgres.black_hole()


async def _postgres_slow(world: World, sidecar: Sidecar) -> None:
    sidecar.postgres.latency = 0.04


async def _firestore_cut(world: World, sidecar: Sidecar) -> None:
    sidecar.firestore.cut()


async def _firestore_half_open(world: World, sidecar: Sidecar) -> None:
    sidecar.firestore.half_open()


async def _firestore_held(world: World, sidecar: Sidecar) -> None:
    """What it sends arrives when something heals it, long after it may have been given up."""
    sidecar.firestore.hold()


async def _stops(world: World, sidecar: Sidecar) -> None:
    sidecar.process.stop_if_running()


async def _goes_on(world: World, sidecar: Sidecar) -> None:
    sidecar.process.go_on_if_stopped()


async def _killed(world: World, sidecar: Sidecar) -> None:
    await sidecar.process.kill()


async def _restarted(world: World, sidecar: Sidecar) -> None:
    if not sidecar.process.running:
        await sidecar.restart()


async def _healed(world: World, sidecar: Sidecar) -> None:
    await sidecar.postgres.heal()
    await sidecar.firestore.heal()


async def _flip(world: World, sidecar: Sidecar) -> None:
    await _change(sidecar, "live")


async def _flop(world: World, sidecar: Sidecar) -> None:
    await _change(sidecar, "shadow")


async def _change(sidecar: Sidecar, stage: str) -> None:
    """Asked for, and perhaps refused or given up: what that leaves is judged."""
    request = admin_pb2.SetStageRequest(stage=stage, timeout_seconds=1)
    with suppress(grpc.aio.AioRpcError):
        await sidecar.admin.SetStage(request, timeout=3)


FAULTS: dict[str, Fault] = {
    "postgres down": _postgres_down,
    "postgres black hole": _postgres_black_hole,
    "postgres slow": _postgres_slow,
    "firestore cut": _firestore_cut,
    "firestore half open": _firestore_half_open,
    "firestore held": _firestore_held,
    "sidecar stops": _stops,
    "sidecar goes on": _goes_on,
    "sidecar killed": _killed,
    "sidecar restarted": _restarted,
    "healed": _healed,
    "to live": _flip,
    "to shadow": _flop,
}
"""A fault lasts until something ends it, at the latest the end of the schedule."""


@dataclass(frozen=True, slots=True)
class Event:
    """`after`: seconds that the load has run since the event before."""

    fault: str
    sidecar: int
    after: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """`seed`: what the clients do."""

    seed: int
    events: tuple[Event, ...]


def schedules(sidecars: int) -> st.SearchStrategy[Schedule]:
    event = st.builds(
        Event,
        st.sampled_from(list(FAULTS)),
        st.integers(0, sidecars - 1),
        st.sampled_from((0.05, 0.2, 0.6)),
    )
    events = st.lists(event, min_size=3, max_size=8).map(tuple)
    return st.builds(Schedule, st.integers(0, 9_999), events)


async def happen(world: World, schedule: Schedule) -> None:
    """Lets it all happen, then ends every fault."""
    try:
        for event in schedule.events:
            await asyncio.sleep(event.after)
            await FAULTS[event.fault](world, world.sidecars[event.sidecar])
        await asyncio.sleep(0.3)
    finally:
        for sidecar in world.sidecars:
            await _goes_on(world, sidecar)
            await _healed(world, sidecar)
            await _restarted(world, sidecar)
    await asyncio.sleep(0.3)
