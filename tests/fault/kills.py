"""Sidecars that end by SIGKILL at a named step, under writers, again and again.

A round arms some sidecars, each at one fail point, starts them, does what brings them
there, and waits until they are dead. One sidecar goes on all the time, but for rounds in
which it is killed, too, wherever it is. Then the dead stay dead while what they left is
settled by whoever is there, and the history of the round is judged.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

import grpc.aio

from crossfade_api.v1 import admin_pb2
from tests.fault.processes import ROOT, all_started
from tests.fault.workload import Workload
from tests.fault.world import Sidecar, World

_REACH = re.compile(r"\breach\((.*)")
_NAME = re.compile(r'"([a-z]+\.[a-z]+)"')
REACH_SECONDS = 60.0
VICTIMS = 3
Provoke: TypeAlias = Callable[[World, Sidecar, Random], Coroutine[Any, Any, None]]


APART = ("validate.",)
"""Steps of commands that no sidecar takes: their own tests kill the process there."""


def points() -> list[str]:
    """The fail points of sidecars, in the order of the code."""
    found: dict[str, None] = {}
    for source in sorted((ROOT / "service/crossfade").rglob("*.py")):
        for arguments in _REACH.findall(source.read_text()):
            found |= dict.fromkeys(_NAME.findall(arguments))
    return [name for name in found if not name.startswith(APART)]


# --- what brings a sidecar to a step -----------------------------------------------------------


async def _nothing(world: World, victim: Sidecar, random: Random) -> None:
    """The clients do."""


async def _copies(world: World, victim: Sidecar, random: Random) -> None:
    while victim.process.running:
        with suppress(grpc.aio.AioRpcError):
            async for _ in victim.admin.Copy(admin_pb2.CopyRequest(), timeout=20):
                pass
        await asyncio.sleep(0.05)


async def _loses_postgresql(world: World, victim: Sidecar, random: Random) -> None:
    """What is written then goes another way. Again, for another may have closed the gate, which
    opens after some quiet: each time it is left alone for longer."""
    for quiet in range(1, 30, 2):
        if not victim.process.running:
            return
        victim.postgres.down()
        await asyncio.sleep(4)
        await victim.postgres.heal()
        await asyncio.sleep(quiet)


async def _finds_postgresql_again(world: World, victim: Sidecar, random: Random) -> None:
    """What all wrote meanwhile comes back by this one: the others stand still that long."""
    others = [each for each in world.sidecars if each is not victim]
    try:
        while victim.process.running:
            for sidecar in world.sidecars:
                sidecar.postgres.down()
            await asyncio.sleep(1.2 + random.random())
            for sidecar in others:
                sidecar.process.stop_if_running()
            await victim.postgres.heal()
            await asyncio.sleep(3)  # the gate opens when the outbox has been quiet for a while
            await _all_go_on(world)
            await asyncio.sleep(1)
    finally:
        await _all_go_on(world)


async def _all_go_on(world: World) -> None:
    for sidecar in world.sidecars:
        sidecar.process.go_on_if_stopped()
        await sidecar.postgres.heal()


async def _changes_the_authority(world: World, victim: Sidecar, random: Random) -> None:
    while victim.process.running:
        for stage in ("live", "shadow"):
            request = admin_pb2.SetStageRequest(stage=stage, timeout_seconds=5, force=True)
            with suppress(grpc.aio.AioRpcError):
                await victim.admin.SetStage(request, timeout=15)
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`most`: at which time of being reached the process ends, at the latest."""

    stage: str
    provoke: Provoke
    most: int
    alone: bool = False


SCENARIOS = {
    "write": Scenario("shadow", _nothing, 30),
    "recopy": Scenario("shadow", _nothing, 3),
    "backfill": Scenario("shadow", _copies, 2),
    "outbox": Scenario("shadow", _loses_postgresql, 1),
    "drain": Scenario("shadow", _finds_postgresql_again, 1, alone=True),
    "reverse": Scenario("live", _nothing, 10),
    "barrier": Scenario("shadow", _changes_the_authority, 2),
}
"""By the first part of a fail point's name. A step without a scenario is an error."""


def scenario_of(point: str) -> Scenario:
    return SCENARIOS[point.partition(".")[0]]


def stages() -> dict[str, list[str]]:
    """The fail points by the stage in which they are reached. Barriers, which leave the stage
    open, are apart."""
    found: dict[str, list[str]] = {}
    for point in points():
        name = "barrier" if point.startswith("barrier.") else scenario_of(point).stage
        found.setdefault(name, []).append(point)
    return found


# --- rounds ------------------------------------------------------------------------------------


@dataclass
class Report:
    """`killed`: by fail point. `never`: points that were armed and not reached."""

    killed: Counter[str] = field(default_factory=Counter)
    never: list[str] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        points = ", ".join(f"{name} {count}" for name, count in sorted(self.killed.items()))
        return (
            f"{self.killed.total()} kills in {self.seconds:.0f} s under "
            f"{self.operations} operations: {points}"
        )


def plan(chosen: list[str], kills: int, random: Random) -> Iterator[list[str]]:
    """Rounds of points for `kills` in all, each point as often as any other; one whose scenario
    disturbs all sidecars has a round of its own."""
    left: list[str] = []
    while len(left) < kills:
        left += random.sample(chosen, len(chosen))
    left = left[:kills]
    alone = [point for point in left if scenario_of(point).alone]
    together = [point for point in left if not scenario_of(point).alone]
    rounds = [[point] for point in alone]
    rounds += [together[n : n + VICTIMS] for n in range(0, len(together), VICTIMS)]
    random.shuffle(rounds)
    yield from rounds


async def run(
    world: World,
    chosen: list[str],
    kills: int,
    seed: int,
    told: Callable[[str], None] = lambda _: None,
) -> Report:
    """`world` has a sidecar more than `VICTIMS`; the last one goes on. Raises AssertionError
    for the first round that cannot be explained."""
    random, report, began = Random(seed), Report(), time.monotonic()
    *victims, steady = world.sidecars
    assert len(victims) == VICTIMS
    async with Workload(world, seed) as load:
        for number, names in enumerate(plan(chosen, kills, random)):
            armed = list(zip(victims, names, strict=False))
            await _round(world, armed, random, report)
            if random.random() < 0.25:
                await steady.process.kill()
                await steady.restart()
            elif not steady.process.running:
                await steady.restart()
            report.operations += len(load.history.operations)
            verdict = await load.judged()
            told(f"round {number}: {', '.join(names)}; {verdict}")
            load.resume()
    report.seconds = time.monotonic() - began
    return report


async def _round(
    world: World, armed: list[tuple[Sidecar, str]], random: Random, report: Report
) -> None:
    for victim, point in armed:
        await victim.process.end()
        number = random.randint(1, scenario_of(point).most)
        victim.process.fail_point = f"{point}:kill:{number}"
    # Some die while they start, at what the dead have left: that is a kill like any other.
    for victim, _ in armed:
        victim.process.launch()
    await asyncio.gather(*(victim.process.answers() for victim, _ in armed), return_exceptions=True)
    for victim, _ in armed:
        await victim.connect()
    provoking = [
        asyncio.create_task(scenario_of(point).provoke(world, victim, random))
        for victim, point in armed
    ]
    ends = await asyncio.gather(
        *(victim.process.gone(REACH_SECONDS) for victim, _ in armed), return_exceptions=True
    )
    for task in provoking:
        task.cancel()
    await asyncio.gather(*provoking, return_exceptions=True)
    for (victim, point), end in zip(armed, ends, strict=True):
        await victim.postgres.heal()
        if end == -9:
            report.killed[point] += 1
        else:
            report.never.append(f"{point} ({victim.process.fail_point}): {end!r}")
    assert not report.never, report.never


async def revived(world: World) -> None:
    """All sidecars run again, unarmed."""
    dead = [sidecar for sidecar in world.sidecars if not sidecar.process.running]
    for sidecar in dead:
        sidecar.process.fail_point = ""
    await all_started([sidecar.process for sidecar in dead])
    for sidecar in dead:
        await sidecar.connect()
