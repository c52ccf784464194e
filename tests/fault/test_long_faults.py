"""Faults that take long; only `make chaos` collects them."""

import pytest

from crossfade.write import Write
from tests.fault.world import eventually, world

pytestmark = pytest.mark.timeout(300)


async def test_what_others_write_is_found_though_the_sidecars_that_follow_are_killed(
    fault_server, fault_directory
):
    """Writers that use no sidecar, beside those that do; each follower dies once meanwhile."""
    async with world(
        fault_server,
        fault_directory,
        CROSSFADE_FOLLOWER__ENABLED="true",
        CROSSFADE_FOLLOWER__SETTLE="0.2",
        CROSSFADE_FOLLOWER__COLLECTIONS='["tasks", "notes"]',
    ) as around:
        for sidecar in around.sidecars:
            other = next(each for each in around.sidecars if each is not sidecar)
            for number in range(20):
                path = f"{('tasks', 'notes')[number % 2]}/{number % 6}"
                await around.direct.commit([Write(path, {"title": f"{number}"})], timeout=5)
                if number == 7:
                    await sidecar.process.kill()
                if number == 14:
                    await sidecar.restart()
                if number % 3 == 0:
                    await other.client.merge(path, {"n": number})

            async def same() -> bool:
                return not (await around.compared()).bad

            await eventually(same, 30, "both stores hold what others wrote")
        await around.equal()
