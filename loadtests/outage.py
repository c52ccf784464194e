"""What callers notice while only the mirror is away: `python -m loadtests.outage`.

A sidecar in stage dual_write with Firestore 20 ms away, under calls at a steady rate. In
turns: undisturbed, undisturbed again (the control), PostgreSQL down, PostgreSQL stalled
(it takes everything and says nothing), PostgreSQL slow. Only ratios within one run are
told: p99 against the undisturbed one of the same round. The first write of an outage may
wait for the gate, and the first of slowness wait for PostgreSQL until the gate is closed: so
the same calls are made for some seconds, in every phase, before the clock runs.

Exit codes: 0 no error and every ratio within the target; 1 otherwise, or not resolved.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from crossfade_client import CrossfadeError
from tests.fault.world import Sidecar, World, servers, world

TARGET = 1.5
MARGIN = 0.25
"""Two identical phases whose p99 differs by more resolve nothing."""
ONE_WAY = 0.01
"""Seconds to Firestore, each way: what a region's own costs."""
SLOW = 0.02
"""Seconds to PostgreSQL, each way, while it is slow."""
DOCUMENTS = 200
WARM_SECONDS = 30.0
SETTLE_SECONDS = 5.0
"""Of calls that are not counted: to notice slowness, and for a lease to end."""

Disturb = Callable[[Sidecar], Awaitable[None]]


async def _nothing(sidecar: Sidecar) -> None:
    """What the others are measured against."""


async def _down(sidecar: Sidecar) -> None:
    sidecar.postgres.down()


async def _stalled(sidecar: Sidecar) -> None:
    sidecar.postgres.black_hole()


async def _slow(sidecar: Sidecar) -> None:
    sidecar.postgres.latency = SLOW


@dataclass
class Phase:
    """One way to be disturbed. `p99` in ms, one a round; `errors` by what they said."""

    name: str
    disturb: Disturb
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def ratio(self, base: "Phase") -> float:
        """The median of the rounds' ratios of p99."""
        return statistics.median(a / b for a, b in zip(self.p99, base.p99, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.outage",
        description="p99 of callers while only the mirror is away, against the undisturbed one.",
        epilog="Exit codes: 0 within the target; 1 an error, over the target, or not resolved.",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of a phase")
    parser.add_argument("--rate", type=float, default=60.0, metavar="R", help="calls a second")
    options = parser.parse_args(arguments)
    phases = asyncio.run(_measure(options.rounds, options.seconds, options.rate))
    return _judge(phases)


async def _measure(rounds: int, seconds: float, rate: float) -> list[Phase]:
    phases = [
        Phase("undisturbed", _nothing),
        Phase("undisturbed again", _nothing),
        Phase("PostgreSQL down", _down),
        Phase("PostgreSQL stalled", _stalled),
        Phase("PostgreSQL slow", _slow),
    ]
    with tempfile.TemporaryDirectory(
        prefix="crossfade-outage-", ignore_cleanup_errors=True
    ) as name:
        async with (
            servers(Path(name)) as server,
            world(
                server, Path(name), sidecars=1, stage="dual_write", CROSSFADE_MIGRATION__LEASE="2"
            ) as around,
        ):
            for number in range(rounds):
                # Every other round backwards, so that a drift favours none.
                for phase in phases if number % 2 == 0 else reversed(phases):
                    await _phase(around, phase, seconds, rate)
            await around.equal()
    return phases


async def _phase(around: World, phase: Phase, seconds: float, rate: float) -> None:
    sidecar = around.sidecars[0]
    sidecar.firestore.latency = ONE_WAY
    await phase.disturb(sidecar)
    await _warm(sidecar)
    await _load(sidecar, phase, SETTLE_SECONDS, rate)
    times = await _load(sidecar, phase, seconds, rate)
    times.sort()
    phase.p50.append(times[len(times) // 2] * 1e3)
    phase.p99.append(times[int(len(times) * 0.99)] * 1e3)
    await sidecar.postgres.heal()
    await around.settled()


async def _warm(sidecar: Sidecar) -> None:
    """Until a few writes in a row were answered: the gate is closed where it has to be."""
    deadline, answered = time.monotonic() + WARM_SECONDS, 0
    while answered < 20 and time.monotonic() < deadline:
        answered += 1
        try:
            await sidecar.client.set("notes/warm", {"n": answered}, timeout=10)
        except CrossfadeError:
            answered = 0


async def _load(sidecar: Sidecar, phase: Phase, seconds: float, rate: float) -> list[float]:
    """Calls at the rate, whatever becomes of those before: seconds that each took."""
    times: list[float] = []

    async def call(number: int) -> None:
        path = f"notes/{number * 7 % DOCUMENTS}"
        began = time.monotonic()
        try:
            if number % 2:
                await sidecar.client.set(path, {"n": number}, timeout=10)
            else:
                await sidecar.client.find(path, timeout=10)
        except CrossfadeError as error:
            phase.errors[error.code.name] = phase.errors.get(error.code.name, 0) + 1
        times.append(time.monotonic() - began)

    began = time.monotonic()
    async with asyncio.TaskGroup() as calls:
        for number in range(int(seconds * rate)):
            await asyncio.sleep(began + number / rate - time.monotonic())
            calls.create_task(call(number))
    return times


def _judge(phases: Sequence[Phase]) -> int:
    base, again, *disturbed = phases
    control = again.ratio(base)
    resolved = abs(control - 1) <= MARGIN
    failed = False
    print(f"{'':20}{'p50 ms':>9}{'p99 ms':>9}   p99 against undisturbed (A/A x{control:.2f})")
    for phase in phases:
        ratio, told = phase.ratio(base), ""
        if phase in disturbed:
            told = f"x{ratio:.2f}" if resolved else "not resolved"
            over = ratio > TARGET
            failed |= over or not resolved or bool(phase.errors)
            told += f", over x{TARGET}" if over and resolved else ""
        told += f", errors: {phase.errors}" if phase.errors else ""
        with suppress(statistics.StatisticsError):
            p50, p99 = statistics.median(phase.p50), statistics.median(phase.p99)
            print(f"{phase.name:20}{p50:9.1f}{p99:9.1f}   {told}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
