"""Fifty thousand random databases here and on the official emulator, twenty thousand on PostgreSQL.

`python -m tests.differential` runs tests/contract/test_differential.py in two processes,
each with an emulator of its own, then test_differential_postgres.py in one, and says every
30 seconds how far they are. Exits with 1 at a difference, which is printed with what
reproduces it. `CROSSFADE_CASES`, `CROSSFADE_POSTGRES_CASES` (0: none) and `CROSSFADE_SEED`
are as there.
"""

import asyncio
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, field

CASES = int(os.environ.get("CROSSFADE_CASES", "50000"))
POSTGRES_CASES = int(os.environ.get("CROSSFADE_POSTGRES_CASES", "20000"))
SEED = int(os.environ.get("CROSSFADE_SEED", "1"))
PROCESSES = 2
SECONDS_BETWEEN_LINES = 30
_LINE = re.compile(r"test_cases_(\d+)_to_(\d+)\w* (PASSED|FAILED|ERROR)")


@dataclass
class Part:
    """One process: the cases that were the same, and all it printed."""

    test: str
    cases: int
    environment: dict[str, str]
    same: int = 0
    output: list[str] = field(default_factory=list)

    async def run(self) -> bool:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", self.test),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | self.environment | {"CROSSFADE_REQUIRE_OFFICIAL": "1"},
        )
        try:
            assert process.stdout is not None
            async for data in process.stdout:
                self._read(data.decode(errors="replace").rstrip())
            return await process.wait() == 0 and self.same == self.cases
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)  # so that it ends its servers, too
                await process.wait()

    def _read(self, line: str) -> None:
        self.output.append(line)
        found = _LINE.search(line)
        if found is not None and found[3] == "PASSED":
            self.same += int(found[2]) - int(found[1])


def embedded() -> list[Part]:
    sizes = [CASES // PROCESSES + (number < CASES % PROCESSES) for number in range(PROCESSES)]
    return [
        Part(
            "tests/contract/test_differential.py",
            size,
            {"CROSSFADE_CASES": str(size), "CROSSFADE_SEED": str(PROCESSES * SEED + number)},
        )
        for number, size in enumerate(sizes)
        if size
    ]


def postgres() -> list[Part]:
    environment = {"CROSSFADE_POSTGRES_CASES": str(POSTGRES_CASES), "CROSSFADE_SEED": str(SEED)}
    test = "tests/contract/test_differential_postgres.py"
    return [Part(test, POSTGRES_CASES, environment)] if POSTGRES_CASES else []


async def run(what: str, parts: list[Part]) -> bool:
    """Whether all cases were the same; says how far they are."""
    started = time.monotonic()
    running = [asyncio.ensure_future(part.run()) for part in parts]
    failed: list[Part] = []
    total = sum(part.cases for part in parts)
    while not failed and not all(task.done() for task in running):
        await asyncio.wait(running, timeout=SECONDS_BETWEEN_LINES)
        same = sum(part.same for part in parts)
        seconds = time.monotonic() - started
        print(f"{what}: {seconds:6.0f} s: {same:,} of {total:,} cases are the same", flush=True)
        failed = [
            part
            for part, task in zip(parts, running, strict=True)
            if task.done() and not task.result()
        ]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for part in failed:
        print("\n".join(part.output))
    return not failed


async def main() -> int:
    if not await run("embedded", embedded()):
        return 1
    return 0 if await run("postgresql", postgres()) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
