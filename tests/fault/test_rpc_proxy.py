"""The proxy of Firestore's methods does what its faults say, shown with an embedded Firestore."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from crossfade.errors import DeadlineExceeded, NotFound, Unavailable
from crossfade.query import Query
from crossfade.stores.firestore import FirestoreStore, connect
from crossfade.write import Write
from tests.fault.rpc_proxy import RpcProxy
from tests.firestore_fixture import fresh_database


@pytest.fixture
async def proxy(embedded_firestore) -> AsyncIterator[RpcProxy]:
    async with RpcProxy(embedded_firestore) as proxy:
        yield proxy


@pytest.fixture
async def store(proxy) -> AsyncIterator[FirestoreStore]:
    store = connect(fresh_database(), proxy.address)
    yield store
    await store.close()


async def held_now(store: FirestoreStore, path: str) -> bool:
    reading = await store.get([path], timeout=5)
    return reading.documents[0].data is not None


async def test_without_a_fault_every_method_passes_with_its_errors(store):
    await store.commit([Write("notes/1", {"n": 1})], timeout=5)
    assert await held_now(store, "notes/1")
    assert not await held_now(store, "notes/2")
    reading = await store.get(["notes/1", "notes/2"], timeout=5)
    assert [stored.data is None for stored in reading.documents] == [False, True]
    pages = [page async for page in store.query(Query(collection="notes"), timeout=5)]
    assert pages[0].frames
    with pytest.raises(NotFound):
        await store.commit([Write("notes/9", {"n": 1}, exists=True)], timeout=5)


async def test_a_held_commit_arrives_after_its_caller_gave_up(proxy, store):
    held = proxy.hold("Commit")
    with pytest.raises(DeadlineExceeded):
        await store.commit([Write("notes/1", {"n": 1})], timeout=0.2)
    assert held.arrived.is_set()
    assert not await held_now(store, "notes/1")
    held.release()
    await asyncio.wait_for(held.ended.wait(), 5)
    assert held.code == "OK"
    assert await held_now(store, "notes/1")


async def test_a_held_commit_that_firestore_refuses_says_so(proxy, store):
    held = proxy.hold("Commit", lambda request: b"notes/9" in request)
    commit = asyncio.create_task(store.commit([Write("notes/9", {"n": 1}, exists=True)], timeout=5))
    await store.commit([Write("notes/1", {"n": 1})], timeout=5)
    await asyncio.wait_for(held.arrived.wait(), 5)
    held.release()
    with pytest.raises(NotFound):
        await commit
    assert held.code == "NOT_FOUND"


async def test_lost_requests_do_nothing_and_lost_answers_all(proxy, store):
    proxy.lose_request("Commit")
    with pytest.raises(Unavailable):
        await store.commit([Write("notes/1", {"n": 1})], timeout=5)
    assert not await held_now(store, "notes/1")
    proxy.lose_answer("Commit")
    with pytest.raises(Unavailable):
        await store.commit([Write("notes/1", {"n": 1})], timeout=5)
    assert await held_now(store, "notes/1")
    await store.commit([Write("notes/1", None)], timeout=5)
    assert not await held_now(store, "notes/1")


async def test_delays_hold_for_the_calls_that_match_until_it_heals(proxy, store):
    proxy.delay("Commit", 0.5, matches=lambda request: b"slow" in request)
    await store.commit([Write("notes/1", {"n": 1})], timeout=0.4)
    with pytest.raises(DeadlineExceeded):
        await store.commit([Write("notes/slow", {"n": 1})], timeout=0.3)
    proxy.heal()
    await store.commit([Write("notes/slow", {"n": 2})], timeout=5)
