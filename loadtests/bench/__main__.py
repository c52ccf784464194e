"""`python -m loadtests.bench`: runs the groups and prints what can be said."""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from crossfade_client import AsyncCrossfade, Write
from loadtests.bench import data, report, servers, sql
from loadtests.bench.measure import (
    MARGIN,
    BenchError,
    Caller,
    Case,
    Comparison,
    Group,
    with_children,
)
from loadtests.stack import StackError

GROUPS = ("get", "query", "commit")
CONNECTIONS = 8


class Bench:
    """Starts what the groups share, and builds them."""

    def __init__(self, directory: Path, resources: ExitStack, *, embedded: bool) -> None:
        self._directory = directory
        self._resources = resources
        self._postmaster, self._dsn = resources.enter_context(
            servers.postgresql(directory, ("bare", "live", "dual", "adapter"))
        )
        self.firestore, self._firestore_pid, self._emulator = resources.enter_context(
            servers.firestore(directory, embedded=embedded)
        )
        self._dual: tuple[int, str] | None = None

    def get(self, ops: int) -> Group:
        """One document, PostgreSQL answers."""
        asyncio.run(sql.fill(self._dsn["bare"]))
        cases = []
        for name in ("bare", "bare again"):
            pid, address = self._resources.enter_context(
                servers.bare_handler(self._directory, self._dsn["bare"], name)
            )
            cases.append(Case(name, self._caller("crossfade_get", 32, target=address), pid))
        pid, address = self._sidecar("live", mirror="async")
        asyncio.run(to_stage(address, "live"))
        cases.append(Case("sidecar", self._caller("crossfade_get", 32, target=address), pid))
        orm = self._caller("orm_get", 32, dsn=self._dsn["bare"], connections=CONNECTIONS)
        cases.append(Case("orm", orm))
        return Group(
            "get of one document, PostgreSQL answers",
            cases,
            [
                Comparison("sidecar", "bare", ("server", "rate", "p50", "p99")),
                Comparison("sidecar", "orm", ("path", "rate", "p50")),
            ],
            ops,
            lambda: with_children(self._postmaster),
        )

    def query(self, ops: int) -> Group:
        """A hundred documents, Firestore answers."""
        pid, address = self._dual_sidecar()
        cases = [
            Case(name, self._caller("firestore_query", 8, **self._native()))
            for name in ("client", "client again")
        ]
        cases.append(Case("sidecar", self._caller("crossfade_query", 8, target=address), pid))
        return Group(
            f"query of {data.IN_QUERY} documents, Firestore answers",
            cases,
            [Comparison("sidecar", "client", ("path", "rate", "p50"))],
            ops,
            lambda: with_children(self._firestore_pid),
        )

    def commit(self, ops: int) -> Group:
        """One set; Firestore is the authority."""
        pid, address = self._dual_sidecar()
        cases = [
            Case(name, self._caller("firestore_set", 32, **self._native()))
            for name in ("client", "client again")
        ]
        asyncio.run(sql.fill(self._dsn["adapter"]))
        adapter = self._caller(
            "dual_set", 32, dsn=self._dsn["adapter"], connections=CONNECTIONS, **self._native()
        )
        cases.append(Case("dual in process", adapter))
        cases.append(Case("sidecar", self._caller("crossfade_set", 32, target=address), pid))
        return Group(
            "commit of one set into both stores",
            cases,
            [
                Comparison("sidecar", "dual in process", ("path", "rate", "p50", "p99")),
                Comparison("sidecar", "client", ("path", "rate", "p50")),
            ],
            ops,
            lambda: with_children(self._firestore_pid) + with_children(self._postmaster),
        )

    def _native(self) -> dict[str, str]:
        return {"emulator": self._emulator, "project": "dual"}

    def _caller(self, kind: str, in_flight: int, **options: object) -> Caller:
        errors = self._directory / f"caller-{kind}-{time.monotonic_ns()}.txt"
        caller = Caller(kind, in_flight, errors, **options)
        self._resources.callback(caller.close)
        return caller

    def _dual_sidecar(self) -> tuple[int, str]:
        """In stage dual_write; a commit's answer waits for the mirror, as the adapter's does."""
        if self._dual is None:
            self._dual = self._sidecar("dual", mirror="wait")
        return self._dual

    def _sidecar(self, name: str, mirror: str) -> tuple[int, str]:
        """Filled, in stage dual_write."""
        pid, address = self._resources.enter_context(
            servers.sidecar(
                self._directory,
                name,
                dsn=self._dsn[name],
                emulator=self._emulator,
                mirror=mirror,
            )
        )
        asyncio.run(fill(address))
        return pid, address


async def fill(target: str) -> None:
    async with AsyncCrossfade(target, timeout=30.0) as client:
        await client.commit(
            [Write.set(path, fields) for path, fields in data.PARENTS.items()]
            + [
                Write.set(f"{data.COLLECTION}/{data.task_id(number)}", data.fields(number))
                for number in range(data.COUNT)
            ]
        )


async def to_stage(target: str, stage: str) -> None:
    """The way to a stage: the copy, and for PostgreSQL as the authority the barrier."""
    async with grpc.aio.insecure_channel(target) as channel:
        admin: Any = admin_pb2_grpc.AdminStub(channel)
        async for _ in admin.Copy(admin_pb2.CopyRequest()):
            pass  # its progress, to the end
        await admin.SetStage(admin_pb2.SetStageRequest(stage=stage, force=True))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="crossfade-bench-") as directory:
            return _run(Path(directory), options, begun)
    except (BenchError, StackError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description="What a call through the sidecar costs, as ratios to the alternatives.",
        epilog=f"A ratio is shown only where two identical cases differ by at most {MARGIN:.0%}. "
        "Exit codes: 0 measured; 1 a part of the bench failed.",
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="bursts of each case at most (%(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=54.0,
        help=f"for all rounds; {report.MIN_ROUNDS} of each group are run in any case (%(default)s)",
    )
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="the embedded Firestore even where the official emulator is installed",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times the operations in a burst")
    parser.add_argument("--only", choices=GROUPS, action="append", help="a group; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all medians and ratios")
    return parser


OPS = {"get": 1_500, "query": 30, "commit": 400}


def _run(directory: Path, options: argparse.Namespace, begun: float) -> int:
    groups: list[Group] = []
    with ExitStack() as resources:
        bench = Bench(directory, resources, embedded=options.embedded)
        names = options.only or GROUPS
        for name in names:
            group: Group = getattr(bench, name)(max(1, round(OPS[name] * options.scale)))
            report.run(group, options.rounds, options.seconds / len(names))
            report.show(group)
            groups.append(group)
        firestore = bench.firestore
    seconds = time.monotonic() - begun
    print(f"\nFirestore: {firestore}; {seconds:.0f} s")
    if options.json is not None:
        report.write(options.json, groups, seconds, firestore=firestore)
    return 0


if __name__ == "__main__":
    sys.exit(main())
