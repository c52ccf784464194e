"""`fence = "horizon"`: no intent documents, and rows that wait as long as Firestore may."""

import asyncio
import time

import pytest

from crossfade.errors import Unavailable
from crossfade.plan import Stage
from crossfade.stores.firestore import FirestoreStore
from crossfade_client import Increment, OutcomeUnknownError
from tests.sidecar import running


@pytest.fixture
async def trusting(postgres_database):
    url = await postgres_database()
    async with running(url, Stage.SHADOW, fence="horizon", horizon=1.0, read_percent=100) as stack:
        await stack.copy()
        yield stack


async def test_a_commit_costs_one_write_and_one_with_a_request_id_two(trusting, monkeypatch):
    sent, real = [], FirestoreStore._send

    async def counted(self, writes, deadline, transaction=None):
        writes = list(writes)
        sent.append(len(writes))
        return await real(self, writes, deadline, transaction)

    monkeypatch.setattr(FirestoreStore, "_send", counted)
    await trusting.client.set("tasks/1", {"n": 1}, request_id=None)
    await trusting.client.set("tasks/1", {"n": 2}, request_id="r")
    await trusting.settled()
    assert sent == [1, 2]
    assert (await trusting.client.get("tasks/1")).fields == {"n": 2}


async def test_a_commit_that_is_applied_late_is_met_by_the_recopy(trusting, monkeypatch):
    """Sent, given up, and applied within the horizon: the rows are not settled before."""
    real, held, released = FirestoreStore.commit, asyncio.Event(), asyncio.Event()

    async def late(self, writes, *, timeout, intent=None, transaction=None):
        if intent is None and not held.is_set():
            held.set()

            async def apply() -> None:
                await released.wait()
                await real(self, writes, timeout=5)

            applying.append(asyncio.create_task(apply()))
            raise Unavailable("connection reset")
        return await real(self, writes, timeout=timeout, intent=intent, transaction=transaction)

    applying: list[asyncio.Task[None]] = []
    monkeypatch.setattr(FirestoreStore, "commit", late)
    began = time.monotonic()
    with pytest.raises(OutcomeUnknownError):
        await trusting.client.merge("tasks/1", {"n": Increment(1)}, request_id=None)
    await asyncio.sleep(0.7)
    released.set()
    await applying[0]
    await trusting.settled()
    assert time.monotonic() - began >= 2.0
    assert trusting.memory.read("tasks/1").fields == {"n": 1}
    assert (await trusting.client.get("tasks/1")).fields == {"n": 1}
    assert await trusting.sql.fetchval("select count(*) from violet.tasks") == 1
