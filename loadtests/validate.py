"""`python -m loadtests.validate`: a validation against draining Firestore into nothing.

Both stores hold the sample documents; the embedded Firestore and PostgreSQL are processes of
their own. In turns: a drain (all pages of raw RunQuery frames, by as many workers over the
same ranges, thrown away), a drain again (the control), and a full validation, planning,
integrity and certificate with it. Every run is a process of its own. Told are the ratio of
documents a second within one round, and the peak of resident memory with many documents
against that with few.

Exit codes: 0 both targets are met; 1 one is not, or two drains differ too much to tell.
"""

import argparse
import asyncio
import importlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from crossfade.backfill_commands import helped
from crossfade.document import Database, Fields
from crossfade.jobs import validating
from crossfade.jobs.planning import plan_firestore, within
from crossfade.jobs.work import Pacing
from crossfade.settings import FirestoreSettings, PostgresqlSettings, Settings
from crossfade.stores.firestore import INTENTS, FirestoreStore, connect
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import create_schema
from crossfade.validate_commands import opened
from crossfade.wire import identity_of, scan
from crossfade.write import Write
from loadtests.bench import servers
from loadtests.bench.measure import BenchError
from violet.mapping import MAPPINGS

TARGET, MEMORY_TARGET = 0.6, 1.2
MARGIN = 0.15
"""Two drains that differ by more resolve nothing."""
PROJECT = "violet"
DATABASE = Database(PROJECT)
WORKERS, PROCESSES = 4, 2
"""Of a validation. A drain has as many workers, in one process, which is enough for it."""
FEW, MANY = 100_000, 1_000_000
TIMEOUT = 120.0
_SEED = """insert into crossfade.control (grp, stage, authority, epoch, generation, requested)
values ('default', 'shadow', 'firestore', 1, 1, 'shadow')"""


# --- one run, in a process of its own ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """`rate` is documents a second; `memory` the peak of the process in MiB."""

    documents: int
    seconds: float
    memory: float

    @property
    def rate(self) -> float:
        return self.documents / self.seconds


async def _drain(firestore: str, _: str) -> int:
    store = connect(DATABASE, firestore)
    planned, _count = await plan_firestore(store, MAPPINGS, timeout=TIMEOUT)
    ranges = iter([names for _, names in planned if names.collection != INTENTS])
    counts = await asyncio.gather(*(_drain_some(store, ranges) for _ in range(WORKERS)))
    await store.close()
    return sum(counts)


async def _drain_some(store: FirestoreStore, ranges: Iterator[Any]) -> int:
    total = 0
    for names in ranges:
        after: str | None = None
        count = validating.PAGE
        while count == validating.PAGE:
            count, last = 0, b""
            query = within(names, after=after, limit=validating.PAGE)
            async for page in store.query(query, timeout=TIMEOUT):
                for number, value in scan(page.frames):
                    if number == 1 and isinstance(value, bytes):
                        count, last = count + 1, value
            if last:
                after = DATABASE.relative(identity_of(last)[0])
            total += count
    return total


async def _validate(firestore: str, postgres: str) -> int:
    settings = Settings(
        firestore=FirestoreSettings(project=PROJECT, emulator=firestore),
        postgresql=PostgresqlSettings(url=SecretStr(postgres)),
    )
    async with opened(settings, workers=WORKERS) as stack:
        job = await validating.begin(stack, validating.Asked(fresh=True))
        pacing = Pacing(WORKERS, page=validating.PAGE, target=validating.PAGE_SECONDS)
        words = ["validate", "--join", str(job.id), "--workers", str(WORKERS)]
        async with helped(words, PROCESSES - 1, None):
            job = await validating.work(stack, job, pacing=pacing).run()
            report = await validating.report_of(stack, job)
    if not report["equal"]:
        raise BenchError(f"the stores differ: {report['totals']}")
    return int(report["totals"]["match"])


KINDS = {"drain": _drain, "validate": _validate}


def _child(kind: str, firestore: str, postgres: str) -> int:
    import uvloop

    begun = time.perf_counter()
    documents = uvloop.run(KINDS[kind](firestore, postgres))
    seconds = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"documents": documents, "seconds": seconds, "memory": memory}))
    return 0


def _run(kind: str, firestore: str, postgres: str) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.validate", "--child", kind, firestore, postgres],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=_environment(firestore, postgres),
    )
    if done.returncode:
        raise BenchError(f"{kind}: ended with {done.returncode}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


# --- the stores --------------------------------------------------------------------------------


async def _fill(firestore: str, postgres: str, wanted: int) -> int:
    """Writes sample documents and copies them; how many there are."""
    sample = importlib.import_module("violet.sample")
    store = connect(DATABASE, firestore)
    documents = itertools.islice(sample.documents(1, wanted), wanted)
    counts = await asyncio.gather(*(_load(store, documents) for _ in range(WORKERS)))
    await store.close()
    lanes = await Lanes.open(postgres, size=1)
    await create_schema(lanes, MAPPINGS, timeout=60)
    await lanes.execute(_SEED, timeout=10)
    await lanes.close()
    return sum(counts)


async def _load(store: FirestoreStore, documents: Iterator[tuple[str, Fields]]) -> int:
    total = 0
    while few := list(itertools.islice(documents, 200)):
        await store.commit([Write(path, fields) for path, fields in few], timeout=TIMEOUT)
        total += len(few)
    return total


def _environment(firestore: str, postgres: str) -> dict[str, str]:
    return servers.clean_environment() | {
        "DATABASE_URL": postgres,
        "FIRESTORE_EMULATOR_HOST": firestore,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
    }


def _copy(firestore: str, postgres: str) -> None:
    command = [sys.executable, "-m", "crossfade", "backfill"]
    done = subprocess.run(
        command, env=_environment(firestore, postgres), stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise BenchError(f"the copy ended with {done.returncode}")


# --- the bench ---------------------------------------------------------------------------------


@dataclass
class Round:
    """The runs of one size."""

    documents: int
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def ratio(self, one: str, other: str) -> float:
        """The median of the rounds' ratios of the rates."""
        pairs = zip(self.runs[one], self.runs[other], strict=True)
        return statistics.median(left.rate / right.rate for left, right in pairs)

    def memory(self, kind: str) -> float:
        return statistics.median(run.memory for run in self.runs[kind])


def _measure(wanted: int, rounds: int) -> Round:
    with tempfile.TemporaryDirectory(prefix="crossfade-bench-") as name, ExitStack() as on:
        directory = Path(name)
        _, dsn = on.enter_context(servers.postgresql(directory, ("validate",)))
        _, _, firestore = on.enter_context(servers.firestore(directory, embedded=True))
        postgres = dsn["validate"]
        begun = time.monotonic()
        count = asyncio.run(_fill(firestore, postgres, wanted))
        _copy(firestore, postgres)
        print(f"{count:,} documents in both stores after {time.monotonic() - begun:.0f} s")
        found = Round(count)
        for _ in range(rounds):
            for case, kind in (("drain", "drain"), ("again", "drain"), ("validate", "validate")):
                run = _run(kind, firestore, postgres)
                if run.documents != count:
                    raise BenchError(f"{case}: {run.documents} documents, not {count}")
                found.runs.setdefault(case, []).append(run)
                print(f"  {case:9} {run.rate:9,.0f} documents/s {run.memory:7.0f} MiB", flush=True)
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.child:
        return _child(*options.child)
    try:
        few = _measure(options.few, options.rounds)
        many = None if options.quick else _measure(options.many, 1)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    control, ratio = few.ratio("again", "drain"), few.ratio("validate", "drain")
    unresolved = abs(control - 1) > MARGIN
    print(f"\nvalidate : drain {ratio:.2f} (target {TARGET}; drain : drain {control:.2f})")
    if unresolved:
        print("the drains differ: this machine has other things to do")
    ok = ratio >= TARGET and not unresolved
    memory = None
    if many is not None:
        memory = many.memory("validate") / few.memory("validate")
        print(
            f"memory at {many.documents:,} : at {few.documents:,} documents {memory:.2f} "
            f"(target {MEMORY_TARGET})"
        )
        ok = ok and memory <= MEMORY_TARGET
    if options.json is not None:
        figures = {"ratio": ratio, "control": control, "memory": memory, "cpus": os.cpu_count()}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.validate",
        description="A validation against a drain of the same pages, and its memory.",
        epilog="Exit codes: 0 within the targets; 1 not, or not resolved.",
    )
    parser.add_argument("--quick", action="store_true", help="without the many documents")
    parser.add_argument("--few", type=int, default=FEW, help="documents (%(default)s)")
    parser.add_argument("--many", type=int, default=MANY, help="documents (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of the few (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the ratios")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
