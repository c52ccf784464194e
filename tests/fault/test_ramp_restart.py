"""A ramp whose only sidecar is killed in the middle of it."""

import asyncio
from contextlib import suppress

import orjson
import pytest

from crossfade_api.v1 import admin_pb2
from crossfade_client import CrossfadeError
from tests.fault.world import Sidecar, World, eventually, world

pytestmark = pytest.mark.timeout(180)
DOCUMENTS = 20
STEPS = [60, 100]


async def _read(sidecar: Sidecar) -> None:
    """For ever, of whichever process is there."""
    number = 0
    while True:
        number = (number + 1) % DOCUMENTS
        with suppress(CrossfadeError):
            await sidecar.client.get(f"notes/{number}")
        await asyncio.sleep(0.01)


async def _ramp(sidecar: Sidecar) -> admin_pb2.Ramp:
    reply = await sidecar.admin.ListRamps(admin_pb2.ListRampsRequest(), timeout=5)
    found: admin_pb2.Ramp
    (found,) = reply.ramps
    return found


async def _routed(built: World) -> float:
    """The percent by which every sidecar routes, as PostgreSQL keeps it."""
    traffic = await built.sql.fetchval("select traffic from crossfade.control")
    return float(orjson.loads(traffic)["notes"]["read_percent"])


async def test_a_ramp_goes_on_from_its_step_when_its_only_sidecar_was_killed(
    fault_server, fault_directory
):
    async with world(
        fault_server,
        fault_directory,
        sidecars=1,
        percent=0,
        CROSSFADE_MIGRATION__SHADOW_RATE="1",
        FAULT_SETTLE="0.5",
    ) as built:
        (sidecar,) = built.sidecars
        for number in range(DOCUMENTS):
            await sidecar.client.set(f"notes/{number}", {"n": number})
        readers = [asyncio.create_task(_read(sidecar)) for _ in range(3)]
        try:
            await sidecar.admin.StartRamp(
                admin_pb2.StartRampRequest(
                    collection="notes",
                    steps=STEPS,
                    bake_seconds=0.5,
                    max_mismatch=0.2,
                    max_error_delta=0.5,
                    max_p99_ratio=1000,
                    min_samples=15,
                    who="me",
                ),
                timeout=5,
            )

            async def at_60() -> bool:
                return (await _ramp(sidecar)).percent == 60

            await eventually(at_60, 40, "the ramp stands at 60 %")
            await sidecar.process.kill()
            assert sidecar.process.exit_code == -9
            recorded = await built.sql.fetchval("select state from crossfade.ramps")
            assert orjson.loads(recorded)["step"] == STEPS.index(60)

            await sidecar.process.start()
            await sidecar.connect()
            seen: list[tuple[float, float]] = []

            async def done() -> bool:
                ramp = await _ramp(sidecar)
                seen.append((ramp.percent, await _routed(built)))
                assert (ramp.who, ramp.setbacks) == ("me", 0)
                return bool(ramp.status == "done")

            await eventually(done, 60, "the ramp has come to its end")
        finally:
            for task in readers:
                task.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        # From where it stood, and never back: neither as it is told nor as reads are routed.
        assert seen[0][0] == 60
        assert seen[-1] == (100, 100)
        for percents in zip(*seen, strict=True):
            assert list(percents) == sorted(percents)
        reply = await sidecar.admin.ListAudit(admin_pb2.ListAuditRequest(collection="notes"))
        moves = [(each.before, each.after) for each in reply.entries if each.action == "ramp"]
        assert moves[::-1] == [
            ("none", "0 %"),
            ("0 %", "60 %"),
            ("60 %", "100 %"),
            ("100 %", "100 %"),
        ]
