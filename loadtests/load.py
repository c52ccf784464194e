"""Runs the load test without a browser: `python -m loadtests.load`.

Without --target it starts a throwaway stack of its own. Writes report.html and CSV
files. Exit codes: 0 every call was answered rightly; 1 some was not, or none was made;
2 the target cannot be used.
"""

import argparse
import asyncio
import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from crossfade_client import AsyncCrossfade, CrossfadeError, Write
from loadtests.stack import StackError, start_stack
from violet.sample import documents, keys

ROOT = Path(__file__).resolve().parent.parent
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
# The locustfile cannot be imported for these: importing it patches the process for gevent.
TASKS_VARIABLE = "CROSSFADE_LOAD_TASKS"
OUTPUT_VARIABLE = "CROSSFADE_LOAD_OUTPUT"
STATISTICS = "statistics.csv"
WRITES_PER_COMMIT = 100


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        own = nullcontext(options.target) if options.target else start_stack(options.tasks)
        with own as target:
            if options.target:
                asyncio.run(_prepare(target, options.tasks, write=options.write_sample))
            return _load(target, options)
    except StackError as error:
        print(f"load: {error}", file=sys.stderr)
    except CrossfadeError as error:
        print(f"load: the sidecar at {options.target} answered {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load",
        description="Locust against a sidecar: the proxy server's calls, timed and judged.",
        epilog="Exit codes: 0 every answer was right; 1 some was not; 2 no usable target.",
    )
    parser.add_argument("--target", metavar="HOST:PORT", help="a sidecar; default: one of its own")
    parser.add_argument("--users", type=int, default=16, metavar="N", help="callers (%(default)s)")
    parser.add_argument("--seconds", type=int, default=20, metavar="S", help="(%(default)s)")
    parser.add_argument("--tasks", type=int, default=300, metavar="N", help="in the sample")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "load", metavar="DIR")
    parser.add_argument(
        "--write-sample", action="store_true", help="write the sample documents to --target first"
    )
    return parser


async def _prepare(target: str, tasks: int, *, write: bool) -> None:
    """Sees to it that the target holds the sample. Raises StackError when it does not."""
    async with AsyncCrossfade(target, timeout=30.0) as client:
        if write:
            batch: list[Write] = []
            for path, fields in documents(1, tasks):
                batch.append(Write.set(path, fields))
                if len(batch) == WRITES_PER_COMMIT:
                    await client.commit(batch)
                    batch = []
            if batch:
                await client.commit(batch)
        elif await client.find(f"tasks/{keys(1, tasks).tasks[-1]}") is None:
            raise StackError(
                f"the sidecar at {target} does not hold the sample of {tasks} tasks; "
                f"--write-sample writes it, --tasks says how many it was made with"
            )


def _load(target: str, options: argparse.Namespace) -> int:
    options.output.mkdir(parents=True, exist_ok=True)
    report = options.output / "report.html"
    (options.output / STATISTICS).unlink(missing_ok=True)
    process = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE)),
            *("--headless", "--only-summary", "--host", target),
            *("--users", str(options.users), "--spawn-rate", str(options.users)),
            *("--run-time", f"{options.seconds}s", "--stop-timeout", "10"),
            *("--html", str(report)),
        ],
        env={
            **os.environ,
            TASKS_VARIABLE: str(options.tasks),
            OUTPUT_VARIABLE: str(options.output.resolve()),
        },
        cwd=ROOT,
        check=False,
    )
    requests, failures = _counts(options.output / STATISTICS)
    print(f"{requests} operations, {failures} failed; report: {report}")
    return 0 if process.returncode == 0 and requests and not failures else 1


def _counts(path: Path) -> tuple[int, int]:
    """Operations and failures of the whole run."""
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["Name"] == "Aggregated":
                    return int(row["Request Count"]), int(row["Failure Count"])
    return 0, 0


if __name__ == "__main__":
    sys.exit(main())
