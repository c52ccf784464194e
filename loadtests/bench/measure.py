"""Rounds in turn, CPU of processes apart, and ratios that say when they say nothing."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from loadtests.bench.caller import READY

MARGIN = 0.08
"""Two identical cases that differ by more than this resolve nothing."""
ROOT = Path(__file__).resolve().parent.parent.parent


class BenchError(Exception):
    """A process of the bench failed; the message says which and how."""


class Caller:
    """A calling process of `loadtests.bench.caller`."""

    def __init__(self, kind: str, in_flight: int, errors: Path, **options: Any) -> None:
        self.kind = kind
        self._errors = errors
        with errors.open("w") as stderr:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "loadtests.bench.caller", kind),
                    json.dumps({**options, "in_flight": in_flight}),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                start_new_session=True,
            )
        if self._line().strip() != READY:
            raise BenchError(f"caller {kind}: did not get ready")

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, ops: int, rate: float | None = None) -> dict[str, float]:
        """So many calls: as fast as they go, or at `rate` a second."""
        if self._process.stdin is None:
            raise BenchError(f"caller {self.kind}: no pipe")
        self._process.stdin.write(json.dumps({"ops": ops, "rate": rate}) + "\n")
        self._process.stdin.flush()
        result: dict[str, float] = json.loads(self._line())
        return result

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            code = self._process.wait()
            said = self._errors.read_text().strip().splitlines()[-3:]
            raise BenchError(f"caller {self.kind} ended with {code}: {' / '.join(said)}")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of processes, all their threads; of one that is gone nothing.

    By the process's own CPU clock where there is one (Linux): nanoseconds, where
    /proc/PID/stat counts in hundredths of a second.
    """
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime(~pid << 3 | 2)
        except (OSError, OverflowError, AttributeError):
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
    return total


def with_children(pid: int) -> list[int]:
    """A process and everything below it: PostgreSQL's backends are the postmaster's children."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one case. CPU in µs for one operation, times in ms."""

    rate: float
    p50: float
    p99: float
    caller: float
    server: float
    store: float

    @property
    def path(self) -> float:
        """CPU of everything but the store."""
        return self.caller + self.server

    @property
    def total(self) -> float:
        """CPU of all."""
        return self.caller + self.server + self.store


@dataclass
class Case:
    """One way to do the group's operation. `server`: the process between caller and store."""

    name: str
    caller: Caller
    server: int | None = None
    samples: list[Sample] = field(default_factory=list)

    def median(self, metric: str) -> float:
        values: list[float] = [getattr(sample, metric) for sample in self.samples]
        return statistics.median(values)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is set against what, and in which metrics."""

    case: str
    base: str
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """`ratio`: the median of the rounds' ratios. `control`: the same of two identical cases."""

    case: str
    base: str
    metric: str
    ratio: float
    control: float

    @property
    def resolved(self) -> bool:
        return abs(self.control - 1) <= MARGIN

    @property
    def text(self) -> str:
        if not self.resolved:
            return f"not resolved (A/A x{self.control:.2f})"
        return f"x{self.ratio:.2f} (A/A x{self.control:.2f})"


@dataclass
class Group:
    """Cases that run in turns. The first is the reference, the second the same again.

    `settle`: seconds after a burst that its CPU time still counts, for what is done behind it.
    """

    name: str
    cases: list[Case]
    comparisons: list[Comparison]
    ops: int
    store: Callable[[], list[int]]
    settle: float = 0.0

    def warm_up(self) -> None:
        for case in self.cases:
            case.caller.run(self.ops)

    def round(self, number: int) -> None:
        """One burst of each case, in an order that favours none (`orders`)."""
        turns = orders(len(self.cases))
        for index in turns[number % len(turns)]:
            case = self.cases[index]
            case.samples.append(self._measure(case))

    def _measure(self, case: Case) -> Sample:
        server = [] if case.server is None else with_children(case.server)
        store = self.store()
        before = cpu_seconds(server), cpu_seconds(store)
        result = case.caller.run(self.ops)
        time.sleep(self.settle)
        after = cpu_seconds(server), cpu_seconds(store)
        ops = result["ops"]
        return Sample(
            rate=ops / result["seconds"],
            p50=result["p50"] * 1e3,
            p99=result["p99"] * 1e3,
            caller=result["cpu"] / ops * 1e6,
            server=(after[0] - before[0]) / ops * 1e6,
            store=(after[1] - before[1]) / ops * 1e6,
        )

    def ratios(self) -> list[Ratio]:
        by_name = {case.name: case for case in self.cases}
        first, again = self.cases[:2]
        found = []
        for comparison in self.comparisons:
            case, base = by_name.get(comparison.case), by_name.get(comparison.base)
            if case is None or base is None:
                continue
            found += [
                Ratio(
                    case.name,
                    base.name,
                    metric,
                    paired(case.samples, base.samples, metric),
                    paired(again.samples, first.samples, metric),
                )
                for metric in comparison.metrics
            ]
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ops": self.ops,
            "rounds": len(self.cases[0].samples),
            "cases": {
                case.name: {name: case.median(name) for name in Sample.__slots__}
                for case in self.cases
            },
            "ratios": [asdict(ratio) | {"resolved": ratio.resolved} for ratio in self.ratios()],
        }


def orders(count: int) -> list[list[int]]:
    """The orders in which `count` cases take turns: in all of them together each is as often the
    first, the second and so on, and comes as often after each other one (a Williams design).

    Forwards and backwards by turns will not do: what is at an end then goes twice in a row,
    with warm caches, and what is in the middle never does.
    """
    zigzag = [(place + 1) // 2 if place % 2 else -place // 2 for place in range(count)]
    rows = [[(case + shift) % count for case in zigzag] for shift in range(count)]
    return rows if count % 2 == 0 else rows + [row[::-1] for row in rows]


def paired(one: Sequence[Sample], other: Sequence[Sample], metric: str) -> float:
    """The median of the ratios of the same rounds; not a number where there is nothing."""
    ratios = [
        getattr(a, metric) / getattr(b, metric)
        for a, b in zip(one, other, strict=True)
        if getattr(b, metric)
    ]
    return statistics.median(ratios) if ratios else float("nan")
