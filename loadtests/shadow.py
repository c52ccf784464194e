"""What shadow reads cost those who wait for answers: `python -m loadtests.shadow`.

One sidecar at half of the load that saturates it, in turns: no read compared, no read
compared again (the control), every read compared. Only the shadow rate is changed, by the
admin service, so it is always the same process. What a phase leaves in the queue is waited
for before its CPU is read, and a phase whose comparisons were dropped says nothing.

Twice: Firestore answers and PostgreSQL is compared (stage shadow), and the other way (live).
The store that only shadow reads ask, the mirror, has the lowest priority in every phase alike:
elsewhere it has a machine of its own, and here it would take the CPU from those who answer. What
the sidecar itself does for a shadow read is at the priority of everything else, and so are
the store that answers and the caller.

That does not make the mirror free. In stage live a fourth phase says what it costs by itself:
no read is compared, and a process of the lowest priority asks Firestore for as many documents
in calls of as many. Nothing is judged by it.

Exit codes: 0 within the targets; 1 over one, not resolved, or comparisons were dropped.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from crossfade.shadow import BATCH
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from loadtests.bench import servers
from loadtests.bench.__main__ import fill, to_stage
from loadtests.bench.measure import (
    BenchError,
    Caller,
    Sample,
    cpu_seconds,
    paired,
    with_children,
)
from loadtests.bench.priority import give_way
from loadtests.firestore import messages
from loadtests.stack import StackError

TARGETS = {"p99": 1.25, "server": 1.40}
TOLD = ("p99", "server", "total")
"""What is told. The CPU of all is not judged: the more reads a store answers the more it has to
do, whoever asks, and Firestore does it elsewhere."""
MARGINS = {"p99": 0.15, "server": 0.08, "total": 0.08}
"""Two identical phases that differ by more resolve nothing."""
LABELS = {"p99": "p99", "server": "CPU of the sidecar", "total": "CPU of all processes"}
COMPARED = 0.99
"""The share of the reads that has to be compared for a figure to be one."""
IN_FLIGHT = 32
PROJECT = "shadow"
SATURATING_OPS = 1_500
SETTLE_SECONDS = 10.0
SETTINGS = """[shadow]
rate = 1000000
queue = 100000
lag = 1.0
"""


@dataclass
class Phase:
    """`compared`, of its `offered` reads; both of all rounds together. `elsewhere`: Firestore is
    asked for as many documents as if all were compared, by another process."""

    name: str
    shadow_rate: float
    elsewhere: bool = False
    samples: list[Sample] = field(default_factory=list)
    offered: int = 0
    compared: int = 0

    def median(self, metric: str) -> float:
        values: list[float] = [getattr(sample, metric) for sample in self.samples]
        return statistics.median(values)


class Bench:
    """`stores`, `mirror`: the process ids of both, and of the one that only shadow reads ask,
    PostgreSQL's backends among them. `asking`: who asks Firestore elsewhere."""

    def __init__(
        self,
        address: str,
        server: int,
        stores: Callable[[], list[int]],
        mirror: Callable[[], list[int]],
        errors: Path,
        asking: Caller | None,
    ) -> None:
        self.address = address
        self._server = server
        self._stores = stores
        self._mirror = mirror
        self._caller = Caller("crossfade_get", IN_FLIGHT, errors, target=address)
        self._asking = asking
        self._beside = ThreadPoolExecutor(1)

    def close(self) -> None:
        self._caller.close()
        if self._asking is not None:
            self._asking.close()
        self._beside.shutdown()

    def half(self) -> float:
        """Half of the reads a second that saturate."""
        asyncio.run(self._traffic(0.0))
        give_way(self._mirror())
        rates = []
        for _ in range(4):
            found = self._caller.run(SATURATING_OPS)
            rates.append(found["ops"] / found["seconds"])
        return statistics.median(rates[1:]) / 2

    def measure(self, phase: Phase, rate: float, seconds: float) -> None:
        asyncio.run(self._traffic(phase.shadow_rate))
        before = asyncio.run(self._compared())
        give_way(self._mirror())  # those that have connected since, too
        server, stores = with_children(self._server), self._stores()
        spent = cpu_seconds(server), cpu_seconds(stores)
        beside = None
        if phase.elsewhere and self._asking is not None:
            give_way([self._asking.pid])
            calls = max(1, round(rate * seconds / BATCH))
            beside = self._beside.submit(self._asking.run, calls, rate / BATCH)
        found = self._caller.run(max(1, round(rate * seconds)), rate)
        if beside is not None:
            beside.result()
        compared = asyncio.run(self._settled(before, phase, int(found["ops"])))
        after = cpu_seconds(server), cpu_seconds(stores)
        ops = found["ops"]
        phase.offered += int(ops * phase.shadow_rate)
        phase.compared += compared
        phase.samples.append(
            Sample(
                rate=ops / found["seconds"],
                p50=found["p50"] * 1e3,
                p99=found["p99"] * 1e3,
                caller=found["cpu"] / ops * 1e6,
                server=(after[0] - spent[0]) / ops * 1e6,
                store=(after[1] - spent[1]) / ops * 1e6,
            )
        )

    async def _settled(self, before: int, phase: Phase, ops: int) -> int:
        """How many were compared, once all were or no more are."""
        ends = time.monotonic() + SETTLE_SECONDS
        compared = await self._compared() - before
        while compared < ops * phase.shadow_rate and time.monotonic() < ends:
            await asyncio.sleep(0.1)
            compared = await self._compared() - before
        return compared

    async def _compared(self) -> int:
        async with grpc.aio.insecure_channel(self.address) as channel:
            admin: Any = admin_pb2_grpc.AdminStub(channel)
            status = await admin.GetStatus(admin_pb2.GetStatusRequest())
        return sum(each.count for each in status.verdicts if each.verdict == "match")

    async def _traffic(self, shadow_rate: float) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            admin: Any = admin_pb2_grpc.AdminStub(channel)
            await admin.SetTraffic(admin_pb2.SetTrafficRequest(shadow_rate=shadow_rate))


def measured(stage: str, options: argparse.Namespace) -> list[Phase]:
    phases = [Phase("off", 0.0), Phase("off again", 0.0), Phase("every read", 1.0)]
    if stage == "live":
        phases.append(Phase("elsewhere", 0.0, elsewhere=True))
    with (
        tempfile.TemporaryDirectory(prefix="crossfade-shadow-") as name,
        ExitStack() as resources,
    ):
        directory = Path(name)
        postmaster, dsn = resources.enter_context(servers.postgresql(directory, (PROJECT,)))
        which, firestore, emulator = resources.enter_context(
            servers.firestore(directory, embedded=options.embedded)
        )
        server, address = resources.enter_context(
            servers.sidecar(
                directory,
                PROJECT,
                dsn=dsn[PROJECT],
                emulator=emulator,
                mirror="async",
                more=SETTINGS,
            )
        )
        asyncio.run(fill(address))
        asyncio.run(to_stage(address, stage))
        mirror = postmaster if stage == "shadow" else firestore
        bench = Bench(
            address,
            server,
            lambda: [*with_children(postmaster), *with_children(firestore)],
            lambda: with_children(mirror),
            directory / "caller.txt",
            _asking(directory, emulator) if stage == "live" else None,
        )
        resources.callback(bench.close)
        rate = options.rate or bench.half()
        for phase in phases:
            bench.measure(phase, rate, 1.0)  # warms up
            phase.samples.clear()
        for number in range(options.rounds):
            for phase in in_turn(phases, number):
                bench.measure(phase, rate, options.seconds)
    print(f"\nstage {stage}, {rate:.0f} reads a second, Firestore: {which}")
    return phases


def _asking(directory: Path, emulator: str) -> Caller:
    """Who asks Firestore for documents in calls such as the sidecar's, and looks at none."""
    requests = directory / "requests.txt"
    batches = messages.batch_gets(PROJECT, BATCH)
    requests.write_text("\n".join(each.hex() for each in batches))
    return Caller(
        "raw",
        IN_FLIGHT,
        directory / "asking.txt",
        target=emulator,
        method=f"{messages.SERVICE}BatchGetDocuments",
        requests=str(requests),
        answers=BATCH,
        least=0,
    )


def in_turn(phases: Sequence[Phase], number: int) -> list[Phase]:
    """The phases of a round: each begins in its turn, and every other round goes backwards, so
    that neither a drift nor what a phase leaves behind favours one."""
    first = number % len(phases)
    order = [*phases[first:], *phases[:first]]
    return order if number % 2 == 0 else order[::-1]


def judge(phases: Sequence[Phase]) -> bool:
    """Prints a table and what can be said; whether all is within the targets."""
    base, again, on = phases[:3]
    print(f"  {'':12}{'p50 ms':>9}{'p99 ms':>9}   CPU µs a read: {'sidecar':>8}{'all':>8}")
    for phase in phases:
        print(
            f"  {phase.name:12}{phase.median('p50'):9.2f}{phase.median('p99'):9.2f}"
            f"   {'':15}{phase.median('server'):8.0f}{phase.median('total'):8.0f}"
        )
    good = True
    for metric in TOLD:
        ratio = paired(on.samples, base.samples, metric)
        control = paired(again.samples, base.samples, metric)
        resolved = abs(control - 1) <= MARGINS[metric]
        told = f"x{ratio:.2f}" if resolved else f"x{ratio:.2f}, not resolved"
        told = f"  {LABELS[metric]}: {told} (A/A x{control:.2f})"
        target = TARGETS.get(metric)
        if target is not None:
            good &= resolved and ratio <= target
            told += f", target x{target:.2f}{'' if ratio <= target else ', over'}"
        print(told)
    for elsewhere in phases[3:]:
        mirror = paired(elsewhere.samples, base.samples, "p99")
        rest = paired(on.samples, elsewhere.samples, "p99")
        told = f"x{mirror:.2f} with Firestore asked by another process, x{rest:.2f} more"
        print(f"  p99, of that: {told}")
    if on.compared < on.offered * COMPARED:
        print(f"  only {on.compared} of {on.offered} reads were compared")
        return False
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.shadow",
        description="p99 and CPU of answers while every read is compared, against none.",
        epilog="Exit codes: 0 within the targets; 1 over one, not resolved, or reads were dropped.",
    )
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, metavar="S", help="of a phase (%(default)s)"
    )
    parser.add_argument("--rate", type=float, metavar="R", help="reads a second (half the load)")
    parser.add_argument("--stage", choices=("shadow", "live"), action="append", help="(both)")
    parser.add_argument("--embedded", action="store_true", help="even if the official is there")
    options = parser.parse_args(arguments)
    # Processes are started while channels are open; gRPC's fork handlers would crash them.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    good = True
    try:
        for stage in options.stage or ("shadow", "live"):
            good &= judge(measured(stage, options))
    except (BenchError, StackError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
