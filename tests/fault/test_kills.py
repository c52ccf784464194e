"""A sidecar that is killed at any step of the protocol loses, doubles and hides nothing."""

from random import Random

import pytest

from tests.fault import kills
from tests.fault.world import world

KILLS = 42
"""In all, whatever the number of fail points; every point at least once."""
SEED = 1


def test_every_step_of_the_code_is_provoked():
    """A fail point without a scenario would never be tried, and nobody would notice."""
    found = kills.points()
    assert {"write.opened", "write.committed", "write.put"} <= set(found)
    assert {point.partition(".")[0] for point in found} <= set(kills.SCENARIOS)


def test_a_plan_tries_every_point():
    chosen = ["write.opened", "write.put", "recopy.read", "drain.opened", "backfill.put"]
    rounds = list(kills.plan(chosen, 12, Random(1)))
    named = [name for names in rounds for name in names]
    assert len(named) == 12
    assert set(named) == set(chosen)
    assert max(map(len, rounds)) == kills.VICTIMS
    # Its scenario disturbs all the others.
    assert all(names == ["drain.opened"] for names in rounds if "drain.opened" in names)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stage", list(kills.stages()))
async def test_a_kill_at_any_step_loses_doubles_and_hides_nothing(
    fault_server, fault_directory, stage
):
    by_stage = kills.stages()
    chosen = by_stage[stage]
    share = round(KILLS * len(chosen) / len(kills.points()))
    begun = "shadow" if stage == "barrier" else stage
    async with world(
        fault_server, fault_directory, sidecars=kills.VICTIMS + 1, stage=begun
    ) as around:
        report = await kills.run(around, chosen, max(share, len(chosen)), SEED, told=print)
    print(report)
    assert set(report.killed) == set(chosen)
