"""`python -m tests.fault`: kills at fail points, by the hundred, then the mutations.

Exit codes: 0 nothing was found; 1 something was, and the seed that shows it was printed.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Before gRPC is loaded, as in tests/conftest.py: its fork handlers crash what is started here.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

from tests.fault import kills, mutations
from tests.fault.world import Server, servers, world

ROUND = 40
"""Kills of one world; then a fresh one, with a seed of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fault", description=__doc__)
    parser.add_argument("--kills", type=int, default=500, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the first world; default: drawn")
    parser.add_argument("--stage", choices=list(kills.stages()), help="only what it reaches")
    parser.add_argument(
        "--mutations", action=argparse.BooleanOptionalAction, default=True, help="try them, too"
    )
    options = parser.parse_args(arguments)
    seed = int(time.time()) % 1_000_000 if options.seed is None else options.seed
    found = asyncio.run(_kill(options.kills, seed, options.stage))
    if options.mutations and not found:
        found = mutations.run_all()
    return 1 if found else 0


async def _kill(wanted: int, seed: int, only: str | None) -> bool:
    """Whether something was found."""
    by_stage = {s: p for s, p in kills.stages().items() if only in {None, s}}
    every = sum(map(len, by_stage.values()))
    done = 0
    with tempfile.TemporaryDirectory(prefix="crossfade-chaos-", ignore_cleanup_errors=True) as name:
        async with servers(Path(name)) as server:
            while done < wanted:
                for stage, points in by_stage.items():
                    share = max(len(points), round(min(ROUND, wanted) * len(points) / every))
                    try:
                        done += await _world(server, Path(name), stage, points, share, seed)
                    except Exception as error:  # noqa: BLE001 - it is told with its seed
                        print(f"FAILED in stage {stage} with seed {seed}: {error}")
                        print(
                            f"again: python -m tests.fault --seed {seed} --stage {stage} "
                            f"--kills {share} --no-mutations"
                        )
                        return True
                seed += 1
    print(f"{done} kills, nothing was lost, doubled or hidden")
    return False


async def _world(
    server: Server, directory: Path, stage: str, points: list[str], share: int, seed: int
) -> int:
    begun = "shadow" if stage == "barrier" else stage
    async with world(server, directory, sidecars=kills.VICTIMS + 1, stage=begun) as around:
        report = await kills.run(around, points, share, seed)
    print(f"seed {seed}, stage {stage}: {report}", flush=True)
    return report.killed.total()


if __name__ == "__main__":
    sys.exit(main())
