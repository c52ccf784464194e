"""What is said about groups: their rounds in turns, a table, a file."""

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from loadtests.bench.measure import MARGIN, Group

MIN_ROUNDS = 3
LABELS = {
    "rate": "operations/s",
    "p50": "p50",
    "p99": "p99",
    "server": "CPU of the server",
    "caller": "CPU of the caller",
    "store": "CPU of PostgreSQL",
    "total": "CPU of all processes",
    "path": "CPU of caller and server",
}


def run(group: Group, most: int, seconds: float) -> None:
    """As many rounds as there is time for: a busy machine measures less, not longer."""
    group.warm_up()
    ends = time.monotonic() + seconds
    for number in range(most):
        if number >= MIN_ROUNDS and time.monotonic() > ends:
            return
        group.round(number)


def show(group: Group) -> None:
    rounds = len(group.cases[0].samples)
    print(f"\n{group.name} ({group.ops} operations a burst; medians of {rounds})")
    print(
        f"  {'':18}{'op/s':>9}{'p50 ms':>9}{'p99 ms':>9}   "
        f"CPU µs per operation: {'caller':>8}{'server':>8}{'store':>8}"
    )
    for case in group.cases:
        server = "-" if case.server is None else f"{case.median('server'):.0f}"
        print(
            f"  {case.name:18}{case.median('rate'):9.0f}{case.median('p50'):9.2f}"
            f"{case.median('p99'):9.2f}   {'':22}{case.median('caller'):8.0f}"
            f"{server:>8}{case.median('store'):8.0f}"
        )
    for ratio in group.ratios():
        print(f"  {ratio.case} / {ratio.base}, {LABELS[ratio.metric]}: {ratio.text}")


def write(path: Path, groups: Sequence[Group], seconds: float, **more: object) -> None:
    """All medians and ratios as JSON."""
    text = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("grpcio", "protobuf", "asyncpg")},
        **more,
        "margin": MARGIN,
        "seconds": round(seconds, 1),
        "groups": [group.to_json() for group in groups],
    }
    path.write_text(json.dumps(text, indent=2) + "\n")
