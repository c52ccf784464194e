"""The admin API over HTTP, with a real socket."""

import asyncio

import pytest

from crossfade.admin.http import HttpServer
from crossfade.errors import Unavailable
from crossfade.plan import Stage
from tests.http_caller import call
from tests.sidecar import eventually, running


@pytest.fixture
async def served(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW, http={}) as stack:
        yield stack, stack.sidecar.web.address


async def fetch(address, path):
    answer = await call(address, path)
    return answer.status, answer.json


async def test_alive_ready_and_status(served):
    stack, address = served
    assert await fetch(address, "/healthz") == (200, {"status": "alive"})
    assert await fetch(address, "/readyz") == (200, {"status": "ready", "stage": "shadow"})
    await stack.client.set("tasks/1", {"n": 1})
    status, body = await fetch(address, "/api/v1/status")
    assert (status, body["stage"], body["authority"]) == (200, "shadow", "firestore")
    assert (body["copied"], body["commits"]) == (False, 1)


async def test_ready_means_that_the_store_in_charge_can_be_asked(served, monkeypatch):
    stack, address = served

    async def gone(*_args, **_options):
        raise Unavailable("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(stack.sidecar.control, "refresh", gone)
        assert (await fetch(address, "/readyz"))[0] == 200
        patch.setattr(stack.sidecar.control.lease, "renew", gone)
        refused = (503, {"status": "not ready", "reason": "it is away"})

        async def is_refused() -> bool:
            # Again: a renewal that was on its way comes back once.
            patch.setattr(stack.sidecar.control.lease, "_until", 0.0)
            return await fetch(address, "/readyz") == refused

        await eventually(is_refused)
        assert (await fetch(address, "/healthz"))[0] == 200
    await stack.copy()
    await stack.stage("live")
    monkeypatch.setattr(stack.sidecar.control, "refresh", gone)
    assert (await fetch(address, "/readyz"))[0] == 503


async def test_a_taken_port_is_said():
    async def handle(_reader, writer):
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is taken"):
        HttpServer(None, "127.0.0.1", port)
    server.close()
