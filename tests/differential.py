"""Fifty thousand random databases here and on the official emulator, twenty thousand on PostgreSQL.

`python -m tests.differential` runs tests/contract/test_differential.py, two processes at a
time, each with an emulator of its own, then test_differential_postgres.py in one, and says
every 30 seconds how far they are. Exits with 1 at a difference, which is printed with what
reproduces it. `CROSSFADE_CASES`, `CROSSFADE_POSTGRES_CASES` (0: none) and `CROSSFADE_SEED`
are as there.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

CASES = int(os.environ.get("CROSSFADE_CASES", "50000"))
POSTGRES_CASES = int(os.environ.get("CROSSFADE_POSTGRES_CASES", "20000"))
SEED = int(os.environ.get("CROSSFADE_SEED", "1"))
PROCESSES = 2
CASES_PER_PROCESS = 5_000
"""The emulator forgets nothing: some 20 KB for each database that it ever saw."""
SHARES = 1_000
SECONDS_BETWEEN_LINES = 30
_LINE = re.compile(r"test_cases_(\d+)_to_(\d+)\w* (PASSED|FAILED|ERROR)")


@dataclass
class Worker:
    """A share of the cases of a test, whose number is told to it in `variable`: how many were
    the same, and what the last process printed."""

    test: str
    variable: str
    number: int
    cases: int
    same: int = 0
    output: list[str] = field(default_factory=list)

    async def run(self) -> bool:
        """Whether all of them were the same."""
        for start in range(0, self.cases, CASES_PER_PROCESS):
            size = min(CASES_PER_PROCESS, self.cases - start)
            share = SHARES * SEED + PROCESSES * (start // CASES_PER_PROCESS) + self.number
            if not await self._pytest(size, share) or self.same != start + size:
                return False
        return True

    async def _pytest(self, size: int, share: int) -> bool:
        self.output.clear()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", self.test),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ
            | {self.variable: str(size), "CROSSFADE_SEED": str(share)}
            | {"CROSSFADE_REQUIRE_OFFICIAL": "1"},
        )
        try:
            assert process.stdout is not None
            async for data in process.stdout:
                self._read(data.decode(errors="replace").rstrip())
            return await process.wait() == 0
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)  # so that it ends its servers, too
                await process.wait()

    def _read(self, line: str) -> None:
        self.output.append(line)
        found = _LINE.search(line)
        if found is not None and found[3] == "PASSED":
            self.same += int(found[2]) - int(found[1])


def embedded() -> list[Worker]:
    sizes = [CASES // PROCESSES + (number < CASES % PROCESSES) for number in range(PROCESSES)]
    test = "tests/contract/test_differential.py"
    return [Worker(test, "CROSSFADE_CASES", number, size) for number, size in enumerate(sizes)]


def postgresql() -> list[Worker]:
    test = "tests/contract/test_differential_postgres.py"
    return [Worker(test, "CROSSFADE_POSTGRES_CASES", 0, POSTGRES_CASES)]


async def run(what: str, workers: Sequence[Worker]) -> bool:
    """Whether all cases were the same; says how far they are."""
    started = time.monotonic()
    running = [asyncio.ensure_future(worker.run()) for worker in workers]
    failed: list[Worker] = []
    total = sum(worker.cases for worker in workers)
    while not failed and not all(task.done() for task in running):
        await asyncio.wait(running, timeout=SECONDS_BETWEEN_LINES)
        same = sum(worker.same for worker in workers)
        seconds = time.monotonic() - started
        print(f"{what}: {seconds:6.0f} s: {same:,} of {total:,} cases are the same", flush=True)
        failed = [
            worker
            for worker, task in zip(workers, running, strict=True)
            if task.done() and not task.result()
        ]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for worker in failed:
        print("\n".join(worker.output))
    return not failed


async def main() -> int:
    if not await run("embedded", embedded()):
        return 1
    return 0 if await run("postgresql", postgresql()) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
