"""Fifty thousand random databases, on the embedded Firestore and on the official emulator.

`python -m tests.differential` runs tests/contract/test_differential.py, two processes at a
time, each with an emulator of its own, and says every 30 seconds how far they are. Exits
with 1 at a difference, which is printed with what reproduces it. `CROSSFADE_CASES` and
`CROSSFADE_SEED` are as there.
"""

import asyncio
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, field

CASES = int(os.environ.get("CROSSFADE_CASES", "50000"))
SEED = int(os.environ.get("CROSSFADE_SEED", "1"))
PROCESSES = 2
CASES_PER_PROCESS = 5_000
"""The emulator forgets nothing: some 20 KB for each database that it ever saw."""
SHARES = 1_000
SECONDS_BETWEEN_LINES = 30
_TEST = "tests/contract/test_differential.py"
_LINE = re.compile(r"test_cases_(\d+)_to_(\d+) (PASSED|FAILED|ERROR)")


@dataclass
class Worker:
    """A share of the cases: how many were the same, and what the last process printed."""

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
        environment = os.environ | {
            "CROSSFADE_CASES": str(size),
            "CROSSFADE_SEED": str(share),
            "CROSSFADE_REQUIRE_OFFICIAL": "1",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", _TEST),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
        try:
            assert process.stdout is not None
            async for data in process.stdout:
                self._read(data.decode(errors="replace").rstrip())
            return await process.wait() == 0
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)  # so that it ends its emulator, too
                await process.wait()

    def _read(self, line: str) -> None:
        self.output.append(line)
        found = _LINE.search(line)
        if found is not None and found[3] == "PASSED":
            self.same += int(found[2]) - int(found[1])


async def main() -> int:
    sizes = [CASES // PROCESSES + (number < CASES % PROCESSES) for number in range(PROCESSES)]
    workers = [Worker(number, size) for number, size in enumerate(sizes) if size]
    started = time.monotonic()
    running = [asyncio.ensure_future(worker.run()) for worker in workers]
    failed: list[Worker] = []
    while not failed and not all(task.done() for task in running):
        await asyncio.wait(running, timeout=SECONDS_BETWEEN_LINES)
        same = sum(worker.same for worker in workers)
        print(f"{time.monotonic() - started:6.0f} s: {same:,} of {CASES:,} cases are the same")
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
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
