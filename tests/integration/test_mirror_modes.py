"""What `mirror` promises while PostgreSQL is the authority: the answer waits for Firestore,
as long as that is any use, and is never an error once PostgreSQL has the commit."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from crossfade.errors import Unavailable
from crossfade.plan import Stage
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.mirror import Mirror
from crossfade.write import Write
from crossfade_client import UnavailableError
from tests.sidecar import running

METHODS = ("commit", "revoke", "get")


@pytest.fixture
def make_live(postgres_database):
    @asynccontextmanager
    async def make(mode: str):
        async with running(await postgres_database(), Stage.SHADOW, mirror=mode) as stack:
            await stack.copy()
            await stack.stage("live")
            yield stack

    return make


async def away(*_args, **_options):
    raise Unavailable("Firestore is away")


def cut(patch) -> None:
    for name in METHODS:
        patch.setattr(FirestoreStore, name, away)


async def rows(stack) -> int:
    return await stack.sql.fetchval("select count(*) from crossfade.pending")


@pytest.mark.parametrize("mode", ["async", "wait", "required"])
async def test_the_answer_comes_after_the_copy(make_live, monkeypatch, mode):
    real, sent = FirestoreStore.commit, asyncio.Event()

    async def slow(self, *args, **options):
        if options.get("intent") is not None:
            sent.set()
            await asyncio.sleep(0.3)
        return await real(self, *args, **options)

    monkeypatch.setattr(FirestoreStore, "commit", slow)
    async with make_live(mode) as stack:
        for number in range(3):
            await stack.client.set("tasks/1", {"n": number}, timeout=8)
            held = stack.memory.read("tasks/1")
            if mode == "async":
                assert held is None or held.fields != {"n": number}
            else:
                assert held.fields == {"n": number}
        await asyncio.wait_for(sent.wait(), 5)


@pytest.mark.parametrize("mode", ["wait", "required"])
async def test_a_commit_that_postgresql_has_is_no_error(make_live, monkeypatch, mode):
    """H32: Firestore goes away after the commit, before the copy."""
    async with make_live(mode) as stack:
        with monkeypatch.context() as patch:
            cut(patch)
            await stack.client.set("tasks/1", {"n": 1}, timeout=4)
            assert await rows(stack) == 1
        await stack.settled()
        assert stack.memory.read("tasks/1").fields == {"n": 1}


async def test_required_refuses_beforehand_while_firestore_is_away(make_live, monkeypatch):
    async with make_live("required") as stack:
        with monkeypatch.context() as patch:
            cut(patch)
            await stack.client.set("tasks/1", {"n": 1}, timeout=4)
            for _ in range(3):
                with pytest.raises(UnavailableError, match="not begun"):
                    await stack.client.set("tasks/2", {"n": 1}, timeout=2)
                await asyncio.sleep(0.3)
        assert await stack.sql.fetchval("select count(*) from violet.tasks") == 1
        await stack.settled()
        await stack.client.set("tasks/2", {"n": 1}, timeout=5)
        assert stack.memory.read("tasks/2").fields == {"n": 1}


async def test_wait_does_not_wait_for_a_store_that_is_known_to_be_away(make_live, monkeypatch):
    async with make_live("wait") as stack:
        with monkeypatch.context() as patch:
            cut(patch)
            started = time.monotonic()
            for number in range(3):
                await stack.client.set("tasks/1", {"n": number}, timeout=30)
            assert time.monotonic() - started < 20


async def test_a_copy_that_another_sidecar_makes_ends_the_waiting(make_live, monkeypatch):
    async def nothing(*_args, **_options):
        return []

    async with make_live("required") as stack:
        monkeypatch.setattr(Mirror, "claim", nothing)
        started = time.monotonic()
        write = asyncio.create_task(stack.client.set("tasks/1", {"n": 1}, timeout=60))
        await asyncio.wait([write], timeout=0.5)
        assert not write.done()
        await stack.sql.execute("delete from crossfade.pending")
        await write
        assert time.monotonic() - started < 30


async def test_dead_letters_are_not_waited_for(make_live):
    async with make_live("required") as stack:
        await stack.direct.commit([Write("tasks/1", {"by": "somebody"})], timeout=5)
        started = time.monotonic()
        await stack.client.set("tasks/1", {"n": 1}, timeout=60)
        assert time.monotonic() - started < 30
        assert stack.memory.read("tasks/1").fields == {"by": "somebody"}
