"""The processes of the fault tests come and go as they are told, and keep their data."""

import asyncio
import json
import os
import signal
import sys

import psutil
import pytest

from crossfade.stores.postgres.lanes import Lanes
from crossfade_client import CrossfadeError
from tests.fault.processes import ROOT, SidecarProcess
from tests.fault.world import Server, Sidecar, skew, world
from tests.sidecar import eventually


async def test_a_killed_postgresql_and_firestore_come_back_with_their_data(
    fault_server: Server, fault_directory
):
    async with world(fault_server, fault_directory, sidecars=1) as around:
        client = around.sidecars[0].client
        await client.set("notes/1", {"n": 1}, timeout=10)
        await around.settled()
        await fault_server.postgres.kill()
        await fault_server.firestore.kill()
        await fault_server.postgres.start()
        await fault_server.firestore.start()
        await around.equal()
        assert await around.in_postgres("notes/1") == {"n": 1}
        assert await around.in_firestore("notes/1") == {"n": 1}


async def _answers(sidecar: Sidecar) -> bool:
    """Its connections may still be those that it did not answer while it stood still."""
    try:
        await sidecar.client.find("notes/1", timeout=1)
    except CrossfadeError:
        return False
    return True


async def test_a_sidecar_is_stopped_continued_killed_and_started_again(
    fault_server, fault_directory
):
    async with world(fault_server, fault_directory, sidecars=1) as around:
        sidecar = around.sidecars[0]
        sidecar.process.stop()
        with pytest.raises(Exception, match=r"DEADLINE|UNAVAILABLE"):
            await sidecar.client.set("notes/1", {"n": 1}, timeout=0.5)
        sidecar.process.go_on()
        await eventually(lambda: _answers(sidecar))
        await sidecar.client.set("notes/1", {"n": 2}, timeout=10)
        await sidecar.process.kill()
        assert sidecar.process.exit_code == -signal.SIGKILL
        await sidecar.restart()
        assert (await sidecar.client.get("notes/1", timeout=10)).fields == {"n": 2}
        assert await sidecar.process.terminate() == 0


async def test_an_armed_sidecar_ends_or_stands_still_at_its_fail_point(
    fault_server, fault_directory
):
    async with world(fault_server, fault_directory, sidecars=1) as around:
        sidecar = around.sidecars[0]
        await sidecar.restart("write.opened:kill:2")
        await sidecar.client.set("notes/1", {"n": 1}, timeout=10)
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await sidecar.client.set("notes/1", {"n": 2}, timeout=5)
        assert await sidecar.process.gone() == -signal.SIGKILL
        await sidecar.restart("write.committed:stop:1")
        with pytest.raises(Exception, match=r"DEADLINE|UNAVAILABLE"):
            await sidecar.client.set("notes/1", {"n": 3}, timeout=1)
        await sidecar.process.stands_still()
        assert await around.in_firestore("notes/1") == {"n": 3}
        sidecar.process.go_on()
        await around.equal()


async def test_the_clock_of_postgresql_can_be_shifted(fault_server, fault_directory):
    async with world(fault_server, fault_directory, sidecars=1, skewed=True) as around:
        await skew(around, 3600)
        lanes = await Lanes.open(around.url, size=1)
        ahead = await lanes.fetchval(
            "select extract(epoch from clock_timestamp() - now())::float8", timeout=5
        )
        await lanes.close()
        assert 3590 < ahead < 3610


LEFT_ALONE = """
import json, sys, time
from pathlib import Path
from tests.fault.forks import Forked

environment, log, cwd = json.loads(sys.argv[1])
words = ["firestore", "--port", "0", "--http-port", "0"]
print(Forked(words, environment=environment, log=Path(log), cwd=Path(cwd)).pid, flush=True)
time.sleep(60)
"""


async def test_what_was_forked_ends_with_the_test_however_that_ended(fault_directory):
    environment = SidecarProcess("alone", fault_directory, {}).environment()
    log = fault_directory / "alone.log"
    test = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LEFT_ALONE),
        json.dumps([environment, str(log), str(ROOT)]),
        env=os.environ | environment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert test.stdout is not None
    forked = psutil.Process(int(await asyncio.wait_for(test.stdout.readline(), 60)))
    server = forked.parent()
    assert server is not None
    assert server.ppid() == test.pid

    async def answers() -> bool:
        assert forked.is_running()
        return "http " in log.read_text()

    await eventually(answers, 60)
    test.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, [forked, server], 20)
    for each in alive:
        each.kill()
    await asyncio.wait_for(test.wait(), 20)
    assert not alive
