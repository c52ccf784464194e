"""`python -m loadtests.firestore`: runs the groups, loads the documents, judges the targets."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.bench import report, servers
from loadtests.bench.measure import MARGIN, BenchError, Caller, Case, Comparison, Group, cpu_seconds
from loadtests.firestore import bare, messages
from loadtests.firestore.loading import ask, load
from loadtests.firestore.targets import Memory, Target, Verdict
from loadtests.stack import StackError, started

PROJECT = "bench"
IN_FLIGHT = 32
MANY, FEW = 100_000, 1_000
MOST_GIBIBYTES = 2.0
DOCUMENTS = 1_000_000
METHODS = {"get": "GetDocument", "batch get": "BatchGetDocuments", "commit": "Commit"}
GROUPS = (*METHODS, "queries")
PARTS = (*GROUPS, "memory")
TARGETS = (
    *(
        Target(
            f"{name}: throughput of a core, as part of the bare handler's",
            name,
            "embedded",
            "bare",
            "server",
            at_least=least,
            inverse=True,
        )
        for name, least in (("get", 0.6), ("batch get", 0.6), ("commit", 0.5))
    ),
    Target(
        f"equality query over {MANY:,} documents, CPU time as a multiple of {FEW:,}'s",
        "query: equality",
        f"{MANY:,}",
        f"{FEW:,}",
        "server",
        at_most=5,
    ),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done. `seconds`: for the rounds of one group. `official`: whether the
    official emulator takes part, where it is installed."""

    ops: int
    query_ops: int
    rounds: int
    seconds: float
    documents: int
    official: bool


FULL = Size(3_000, 60, rounds=15, seconds=30.0, documents=DOCUMENTS, official=True)
QUICK = Size(800, 20, rounds=5, seconds=4.0, documents=50_000, official=False)


class Bench:
    """Starts what the groups share, and builds them."""

    def __init__(self, directory: Path, resources: ExitStack, size: Size) -> None:
        self._directory = directory
        self._resources = resources
        self._size = size
        self._servers = [("embedded", *resources.enter_context(_embedded(directory / "embedded")))]
        if size.official and servers.official_jar() is not None:
            official = resources.enter_context(_official(directory / "official"))
            self._servers.append(("official emulator", *official))
        for _, __, target in self._servers:
            asyncio.run(ask(target, "Commit", messages.tasks(PROJECT)))
        self._filled = False

    def single(self, name: str) -> Group:
        """One document, read or written, against the bare handler."""
        method = METHODS[name]
        requests = {
            "get": messages.gets,
            "batch get": messages.batch_gets,
            "commit": messages.commits,
        }[name](PROJECT)
        file = self._written(name, requests)
        _, __, embedded = self._servers[0]
        answers = asyncio.run(ask(embedded, method, requests[0]))
        recorded = self._directory / f"{name} answers.json"
        recorded.write_text(json.dumps({method: [answer.hex() for answer in answers]}))
        cases = []
        for bare_name in ("bare", "bare again"):
            process = self._resources.enter_context(_bare(self._directory / name, recorded))
            cases.append(self._case(bare_name, *process, method, file, answers, IN_FLIGHT))
        cases += [self._case(*server, method, file, answers, IN_FLIGHT) for server in self._servers]
        compared = ("server", "rate", "p50", "p99")
        comparisons = [Comparison(server[0], "bare", compared) for server in self._servers]
        return Group(name, cases, comparisons, self._size.ops, list)

    def queries(self) -> Iterator[Group]:
        """Each query over many documents against the same over few."""
        _, pid, target = self._servers[0]
        sizes = (FEW, MANY)
        if not self._filled:
            for size in sizes:
                project = _project(size)
                asyncio.run(load(target, project, messages.items(project, size)))
            self._filled = True
        for name in messages.queries(PROJECT):
            cases = []
            for case, size in ((f"{FEW:,}", FEW), (f"{FEW:,} again", FEW), (f"{MANY:,}", MANY)):
                request = messages.queries(_project(size))[name]
                begun = time.perf_counter()
                answers = asyncio.run(ask(target, "RunQuery", request))
                if size == MANY:
                    milliseconds = (time.perf_counter() - begun) * 1e3
                    print(f"\n{name}: the first one, which makes the index: {milliseconds:.0f} ms")
                file = self._written(f"{name} {case}", [request])
                cases.append(self._case(case, pid, target, "RunQuery", file, answers, 2))
            yield Group(
                f"query: {name}",
                cases,
                [Comparison(f"{MANY:,}", f"{FEW:,}", ("p50", "server", "rate"))],
                self._size.query_ops,
                list,
            )

    def memory(self) -> Memory:
        """Small documents in a server of their own."""
        with _embedded(self._directory / "memory") as (pid, target):
            asyncio.run(ask(target, "Commit", messages.tasks(PROJECT)))
            process = psutil.Process(pid)
            before, cpu, begun = process.memory_info().rss, cpu_seconds([pid]), time.monotonic()
            writes = messages.small_documents(PROJECT, self._size.documents)
            count = asyncio.run(load(target, PROJECT, writes))
            return Memory(
                count,
                before,
                process.memory_info().rss,
                time.monotonic() - begun,
                cpu_seconds([pid]) - cpu,
            )

    def _written(self, name: str, requests: Sequence[bytes]) -> Path:
        file = self._directory / f"{name} requests.txt"
        file.write_text("\n".join(request.hex() for request in requests))
        return file

    def _case(
        self,
        name: str,
        pid: int,
        target: str,
        method: str,
        requests: Path,
        answers: Sequence[bytes],
        in_flight: int,
    ) -> Case:
        caller = Caller(
            "raw",
            in_flight,
            self._directory / f"caller-{time.monotonic_ns()}.txt",
            target=target,
            method=messages.SERVICE + method,
            requests=str(requests),
            answers=len(answers) if method in messages.STREAMS else 0,
            # A time in an answer may be shorter: a round one is.
            least=sum(map(len, answers)) // 2,
        )
        self._resources.callback(caller.close)
        return Case(name, caller, pid)


def _project(size: int) -> str:
    return f"items-{size}"


@contextmanager
def _embedded(directory: Path) -> Iterator[tuple[int, str]]:
    directory.mkdir()
    with servers.firestore(directory, embedded=True) as (_, pid, address):
        yield pid, address


@contextmanager
def _official(directory: Path) -> Iterator[tuple[int, str]]:
    directory.mkdir()
    with servers.firestore(directory) as (_, pid, address):
        yield pid, address


@contextmanager
def _bare(errors: Path, answers: Path) -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "loadtests.firestore.bare", str(answers)]
    with started(command, errors, bare.READY) as (process, address):
        yield process.pid, address


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
        prog="python -m loadtests.firestore",
        description="What the embedded Firestore costs, as ratios to a handler that does nothing "
        "but return the same bytes; how its queries and its memory grow.",
        epilog=f"A ratio is shown only where two identical cases differ by at most {MARGIN:.0%}. "
        "Exit codes: 0 measured; 1 a part of the bench failed.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under a minute: no official emulator, too few documents to judge the memory by",
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all medians and ratios")
    return parser


def _run(directory: Path, options: argparse.Namespace, begun: float) -> int:
    size = QUICK if options.quick else FULL
    parts = options.only or PARTS
    groups: list[Group] = []
    memory: Memory | None = None
    with ExitStack() as resources:
        bench = Bench(directory, resources, size)
        for group in _groups(bench, parts):
            report.run(group, size.rounds, size.seconds)
            report.show(group)
            groups.append(group)
    if "memory" in parts:
        memory = bench.memory()
        print(f"\n{memory.text}")
    verdicts = _verdicts(groups, memory)
    print("\nTargets")
    for verdict in verdicts:
        print(f"  {verdict.text}")
    seconds = time.monotonic() - begun
    print(f"\n{seconds:.0f} s")
    if options.json is not None:
        report.write(
            options.json,
            groups,
            seconds,
            memory=None if memory is None else memory.to_json(),
            targets=[verdict.to_json() for verdict in verdicts],
        )
    return 0


def _groups(bench: Bench, parts: Sequence[str]) -> Iterator[Group]:
    for name in METHODS:
        if name in parts:
            yield bench.single(name)
    if "queries" in parts:
        yield from bench.queries()


def _verdicts(groups: Sequence[Group], memory: Memory | None) -> list[Verdict]:
    found = [target.judge(groups) for target in TARGETS]
    if memory is not None and memory.documents >= DOCUMENTS:
        found.append(memory.judge(MOST_GIBIBYTES))
    return [verdict for verdict in found if verdict is not None]


if __name__ == "__main__":
    sys.exit(main())
