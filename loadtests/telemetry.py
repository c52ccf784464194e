"""What traces and metrics cost: `python -m loadtests.telemetry`.

Reads of one document that PostgreSQL answers, the cheapest call there is, through sidecars
that differ in [telemetry] alone: no export; the same again (the control); the default, which
traces a hundredth and holds the rest until its end; every call traced. Both export over OTLP
to a receiver in a process of its own, which takes everything and reads nothing.

In turns, as all benches here. Before that, what the recording of such a call costs by itself,
in this process: a few microseconds, of which a busy machine hides nothing.
Exit codes: 0 within the targets; 1 over one, or not resolved.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import comb
from pathlib import Path
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from crossfade.call import Call
from crossfade.settings import TelemetrySettings
from crossfade.telemetry import READS, Telemetry
from loadtests.bench import report, servers
from loadtests.bench.__main__ import fill, to_stage
from loadtests.bench.measure import (
    BenchError,
    Caller,
    Case,
    Comparison,
    Group,
    orders,
    paired,
    with_children,
)
from loadtests.stack import StackError, started

READY, COUNT = "collector ", "loadtests.Count"
LEAST_BYTES = 300
"""Of traces for each call whose spans are sent: two spans."""
OPS, IN_FLIGHT = 1_500, 32
SETTLE = 0.6
"""Seconds: spans wait for half a second before they are sent."""
MICRO_ROUNDS, MICRO_CALLS = 24, 2_000
KEPT = {"every call": 0.80, "default": 0.95}
"""What is to be left of the throughput."""
MARGINS = {"every call": 0.08, "default": 0.04}
SETTINGS = {
    "off": "",
    "off again": "",
    "default": '[telemetry]\notlp_endpoint = "{endpoint}"\n',
    "every call": '[telemetry]\notlp_endpoint = "{endpoint}"\nsample_ratio = 1.0\n',
}
NAME = "crossfade.v1.Crossfade/GetDocument"


# --- the receiver ------------------------------------------------------------------------------


async def receive() -> None:
    """Serves OTLP until the process is ended, and tells how many bytes of traces have come. An
    empty reply says that all was taken."""
    received = 0

    async def take(data: bytes, _: object) -> bytes:
        nonlocal received
        received += len(data)
        return b""

    async def ignore(_: bytes, __: object) -> bytes:
        return b""

    async def tell(_: bytes, __: object) -> bytes:
        return str(received).encode()

    server = grpc.aio.server()
    traces = trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name
    metrics = metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name
    for service, name, method in (
        (traces, "Export", take),
        (metrics, "Export", ignore),
        (COUNT, "Get", tell),
    ):
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(method)
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"{READY}127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


@contextmanager
def collector(directory: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "loadtests.telemetry", "--receive"]
    with started(command, directory / "collector.txt", READY) as (_, address):
        yield address


async def received(address: str) -> int:
    """Bytes of traces that came so far."""
    async with grpc.aio.insecure_channel(address) as channel:
        ask: Any = channel.unary_unary(f"/{COUNT}/Get")
        return int(await ask(b""))


# --- by itself ---------------------------------------------------------------------------------


def record(telemetry: Telemetry) -> None:
    """What is recorded of a read of one document, without the read."""
    begun = time.perf_counter_ns()
    trace = telemetry.start(NAME)
    call = Call(telemetry, time.monotonic() + 5.0, trace)
    asked = time.time_ns()
    call.record("get", "postgresql", "answered", "tasks", "live", asked, None)
    telemetry.count(READS, "tasks", "postgresql")
    telemetry.record_rpc(NAME, "OK", (time.perf_counter_ns() - begun) / 1e9)
    if trace is not None:
        trace.end("OK")


def recording(endpoint: str) -> dict[str, float]:
    """By case, µs of CPU for a call: all threads, to the last span that was sent."""
    ratios = {"off": None, "off again": None, "default": TelemetrySettings().sample_ratio}
    made = {
        name: Telemetry(
            TelemetrySettings()
            if ratio is None
            else TelemetrySettings(otlp_endpoint=endpoint, sample_ratio=ratio)
        )
        for name, ratio in (ratios | {"every call": 1.0}).items()
    }
    names, found = list(made), {name: list[float]() for name in made}
    turns = orders(len(names))
    for number in range(MICRO_ROUNDS):
        for index in turns[number % len(turns)]:
            telemetry = made[names[index]]
            begun = time.process_time_ns()
            for _ in range(MICRO_CALLS):
                record(telemetry)
            if telemetry.tracing is not None:
                telemetry.flush()
            found[names[index]].append((time.process_time_ns() - begun) / MICRO_CALLS / 1e3)
    for telemetry in made.values():
        telemetry.close()
    return {name: statistics.median(values) for name, values in found.items()}


def tell(recorded: dict[str, float], of_a_call: float) -> None:
    """`of_a_call`: µs of CPU that a sidecar without export takes for one."""
    off = recorded["off"]
    print(f"\nrecording a call, by itself, CPU µs: {off:.1f} without export", end="")
    print(f" (again {recorded['off again']:.1f})")
    for name in KEPT:
        more = recorded[name] - off
        print(
            f"  {name}: {more:.1f} more, x{more / of_a_call:.3f} of the sidecar's {of_a_call:.0f}"
        )


# --- the bench ---------------------------------------------------------------------------------


def measured(directory: Path, resources: ExitStack, address: str) -> Group:
    """`address`: the receiver's."""
    names = {name: name.replace(" ", "_") for name in SETTINGS}
    postmaster, dsn = resources.enter_context(servers.postgresql(directory, tuple(names.values())))
    # No call that is measured comes to it.
    _, _, emulator = resources.enter_context(servers.firestore(directory, embedded=True))
    endpoint = f"http://{address}"
    cases = []
    for name, short in names.items():
        pid, target = resources.enter_context(
            servers.sidecar(
                directory,
                short,
                dsn=dsn[short],
                emulator=emulator,
                mirror="async",
                more=SETTINGS[name].format(endpoint=endpoint),
            )
        )
        asyncio.run(fill(target))
        asyncio.run(to_stage(target, "live"))
        caller = Caller("crossfade_get", IN_FLIGHT, directory / f"{short}.caller", target=target)
        resources.callback(caller.close)
        cases.append(Case(name, caller, pid))
    comparisons = [Comparison(name, "off", ("rate", "server")) for name in KEPT]
    return Group(
        "get of one document, PostgreSQL answers",
        cases,
        comparisons,
        OPS,
        lambda: with_children(postmaster),
        SETTLE,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with a probability of nine in ten, whatever their distribution: as
    many of the values are cut off at either end as would be below it by chance."""
    count, cut, chance = len(values), 0, 1 / 2 ** len(values)
    while chance + comb(count, cut + 1) / 2**count <= 0.05:
        cut += 1
        chance += comb(count, cut) / 2**count
    ordered = sorted(values)
    return ordered[cut], ordered[count - 1 - cut]


def verdict(
    left: Sequence[float], target: float, control: float, margin: float
) -> tuple[bool, str]:
    """Whether the target is met, and what is said of it. `left`: what was left of the throughput
    in each round; `control`: the ratio of the two cases that are the same."""
    low, high = interval(left)
    if abs(control - 1) > margin or low < target <= high:
        word = "not resolved"
    else:
        word = "met" if low >= target else "missed"
    median = statistics.median(left)
    return word == "met", (
        f"x{median:.2f} of the throughput is left ({low:.2f} to {high:.2f}; A/A x{control:.2f}), "
        f"target x{target:.2f}: {word}"
    )


def judge(group: Group) -> bool:
    """By the throughput of a core, the inverse of the sidecar's CPU for a call: callers, stores
    and the receiver share the machine with it, and the calls a second are theirs, too."""
    by_name = {case.name: case.samples for case in group.cases}
    off, control = by_name["off"], paired(by_name["off again"], by_name["off"], "server")
    good = True
    for name, target in KEPT.items():
        left = [a.server / b.server for a, b in zip(off, by_name[name], strict=True)]
        met, told = verdict(left, target, control, MARGINS[name])
        good &= met
        print(f"  {name}: {told}")
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.telemetry",
        description="What is left of a sidecar's throughput while it exports traces and metrics.",
        epilog="Exit codes: 0 within the targets; 1 over one, or not resolved.",
    )
    parser.add_argument("--rounds", type=int, default=16, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all rounds (%(default)s)")
    parser.add_argument("--receive", action="store_true", help="be the receiver, for the bench")
    options = parser.parse_args(arguments)
    if options.receive:
        asyncio.run(receive())
        return 0
    # Processes are started while channels are open; gRPC's fork handlers would crash them.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    begun = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="crossfade-telemetry-") as name,
            ExitStack() as resources,
        ):
            receiver = resources.enter_context(collector(Path(name)))
            recorded = recording(f"http://{receiver}")
            before = asyncio.run(received(receiver))
            group = measured(Path(name), resources, receiver)
            report.run(group, options.rounds, options.seconds)
            report.show(group)
            good = judge(group)
            tell(recorded, group.cases[0].median("server"))
            came = asyncio.run(received(receiver)) - before
            calls = OPS * (1 + len(group.cases[0].samples))
            print(f"  {came:,} bytes of traces came for the {calls:,} calls that were all traced")
            good &= came > LEAST_BYTES * calls
    except (BenchError, StackError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - begun:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
