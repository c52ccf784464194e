"""`python -m loadtests.postgres`: the PostgreSQL store against the bare driver, as ratios.

Three groups, each in turns and with a control (see loadtests/bench):

- get: the store's read of one document, in process, against a prepared SELECT of the same
  row by asyncpg that is made into the same protobuf by the same generated decoder.
- queries: the application's, over many tasks against over few.
- put: a page of the first copy (a thousand documents, their versions too) against a COPY of
  the same rows, ready made, into a table with the same indexes and triggers.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Image, Mirror
from loadtests.bench import data, many, report, servers
from loadtests.bench.measure import BenchError, Caller, Case, Comparison, Group, with_children
from violet.mapping import MAPPINGS

GROUPS = ("get", "poll", "user", "status", "put")
FEW, MANY, QUICK = 10_000, 1_000_000, 100_000
TITLES = {
    "poll": "a miner's poll: open tasks with its uid",
    "user": "a user by api key",
    "status": "the first fifty tasks of a status, a rare and a common one in turns",
}


class Bench:
    """Fills the databases as they are needed, and builds the groups."""

    def __init__(self, directory: Path, resources: ExitStack, tasks: int) -> None:
        self._directory = directory
        self._resources = resources
        self._tasks = tasks
        self._postmaster, self._dsn = resources.enter_context(
            servers.postgresql(directory, ("get", "few", "many", "copy", "copy_again", "put"))
        )
        self._users: dict[str, int] = {}

    def get(self) -> Group:
        dsn = self._filled("get", FEW)
        documents = {f"tasks/{data.task_id(n)}": data.fields(n) for n in range(data.COUNT)}
        asyncio.run(_put(dsn, data.PARENTS | documents))
        options = {"dsn": dsn}
        return self._group(
            "get of one document, in process, 8 in flight",
            [("bare", "bare_get", options), ("bare again", "bare_get", options)],
            ("store", "store_get", options),
            ("caller", "rate", "p50"),
            ops=2_000,
            in_flight=8,
        )

    def query(self, name: str) -> Group:
        few, more = self._filled("few", FEW), self._filled("many", self._tasks)
        options = {"dsn": few, "users": self._users["few"]}
        kind = f"store_{name}"
        return self._group(
            f"{TITLES[name]}; {self._tasks:,} tasks against {FEW:,}",
            [("few", kind, options), ("few again", kind, options)],
            ("many", kind, {"dsn": more, "users": self._users["many"]}),
            ("p50", "rate", "total"),
            ops=256,
            in_flight=1,
        )

    def put(self) -> Group:
        for name in ("copy", "copy_again", "put"):
            self._filled(name, 0)
            # What the tasks refer to.
            asyncio.run(_put(self._dsn[name], data.PARENTS))
        return self._group(
            "a thousand documents; operations are pages of them",
            [
                ("copy", "copy_rows", {"dsn": self._dsn["copy"]}),
                ("copy again", "copy_rows", {"dsn": self._dsn["copy_again"]}),
            ],
            ("put", "store_put", {"dsn": self._dsn["put"]}),
            ("rate", "total", "store"),
            ops=4,
            in_flight=1,
        )

    def _group(
        self,
        title: str,
        base: Sequence[tuple[str, str, dict[str, Any]]],
        case: tuple[str, str, dict[str, Any]],
        metrics: tuple[str, ...],
        *,
        ops: int,
        in_flight: int,
    ) -> Group:
        cases = [
            Case(name, self._caller(kind, in_flight, options))
            for name, kind, options in (*base, case)
        ]
        comparison = Comparison(case[0], base[0][0], metrics)
        store = lambda: with_children(self._postmaster)  # noqa: E731 - as the other bench has it
        return Group(title, cases, [comparison], ops, store)

    def _caller(self, kind: str, in_flight: int, options: dict[str, Any]) -> Caller:
        errors = self._directory / f"caller-{kind}-{time.monotonic_ns()}.txt"
        caller = Caller(kind, in_flight, errors, **options)
        self._resources.callback(caller.close)
        return caller

    def _filled(self, name: str, tasks: int) -> str:
        if name not in self._users:
            self._users[name] = asyncio.run(_fill(self._dsn[name], tasks))
        return self._dsn[name]


async def _fill(dsn: str, tasks: int) -> int:
    lanes = await Lanes.open(dsn, size=2)
    try:
        return await many.fill(lanes, tasks)
    finally:
        await lanes.close()


async def _put(dsn: str, documents: dict[str, dict[str, Any]]) -> None:
    lanes = await Lanes.open(dsn, size=1)
    images = [Image(path, fields, many.TIME, many.TIME) for path, fields in documents.items()]
    mirror = Mirror(lanes, MAPPINGS, many.DATABASE)
    await mirror.begin_copy(1, timeout=30)
    await mirror.put_page(images, epoch=1, generation=1, token=1, timeout=30)
    await mirror.end_copy(1, timeout=30)
    await lanes.close()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    begun = time.monotonic()
    tasks = options.tasks or (QUICK if options.quick else MANY)
    names = options.only or GROUPS
    seconds = options.seconds or (20.0 if options.quick else 90.0)
    groups: list[Group] = []
    try:
        with tempfile.TemporaryDirectory(prefix="crossfade-bench-") as directory, ExitStack() as on:
            bench = Bench(Path(directory), on, tasks)
            for name in names:
                group = getattr(bench, name)() if name in {"get", "put"} else bench.query(name)
                report.run(group, options.rounds, seconds / len(names))
                report.show(group)
                groups.append(group)
    except (BenchError, many.DataError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begun
    print(f"\n{tasks:,} tasks; {seconds:.0f} s")
    if options.json is not None:
        report.write(options.json, groups, seconds, tasks=tasks)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.postgres",
        description="The PostgreSQL store against the bare driver, and large tables against small.",
        epilog="Exit codes: 0 measured; 1 a part of the bench failed.",
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} tasks; under 90 s")
    parser.add_argument("--tasks", type=int, help=f"in the large table (default: {MANY:,})")
    parser.add_argument("--rounds", type=int, default=15, help="bursts at most (%(default)s)")
    parser.add_argument("--seconds", type=float, help="for all rounds (90; quick: 20)")
    parser.add_argument("--only", choices=GROUPS, action="append", help="a group; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all medians and ratios")
    return parser


if __name__ == "__main__":
    sys.exit(main())
