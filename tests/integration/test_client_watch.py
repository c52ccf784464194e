"""`watch` of both clients: from a sidecar that plays a script, and from a real one."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from crossfade.plan import Stage
from crossfade_api.v1 import crossfade_pb2 as pb
from crossfade_client import (
    AsyncCrossfade,
    CallCancelledError,
    Crossfade,
    InvalidArgumentError,
    Moment,
    Query,
    UnavailableError,
    Write,
)
from tests.fake_sidecar import Failure, FakeSidecar
from tests.sidecar import running
from tests.waiting import Waiting

SECONDS = 30.0
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DOCUMENTS = "projects/fake/databases/(default)/documents/"


@pytest.fixture(params=[AsyncCrossfade, Waiting], ids=["awaiting", "waiting"])
def connect(request) -> Any:
    return request.param


@asynccontextmanager
async def scripted(connect, *watches) -> AsyncIterator[tuple[FakeSidecar, Any]]:
    fake = FakeSidecar(watches=[list(watch) for watch in watches])
    try:
        async with connect(await fake.start()) as client:
            yield fake, client
    finally:
        await fake.stop()


def told(changed: str = "", removed: str = "", *, consistent: bool = True, at: int = 1) -> Any:
    """A reply about the documents of these letters, updated `at` that second."""
    reply = pb.WatchReply(consistent=consistent, removed=[f"{DOCUMENTS}a/{c}" for c in removed])
    for letter in changed:
        document = reply.changed.add(name=f"{DOCUMENTS}a/{letter}")
        document.create_time.seconds = 1
        document.update_time.seconds = at
    reply.read_time.seconds = at
    return reply


def spelled(moments: Iterable[Moment]) -> list[tuple[str, str]]:
    return [
        (
            "".join(snapshot.id for snapshot in moment.changed),
            "".join(path.removeprefix("a/") for path in moment.removed),
        )
        for moment in moments
    ]


async def first(count: int, watching: Any) -> list[Moment]:
    moments: list[Moment] = []
    async with asyncio.timeout(SECONDS), aclosing(watching) as told_:
        async for moment in told_:
            moments.append(moment)
            if len(moments) == count:
                return moments
    raise AssertionError(f"only {len(moments)} of {count}")


async def test_replies_are_told_when_they_make_a_moment(connect):
    script = [
        told("ab", consistent=False),
        told("c", "z"),
        told(),  # nothing is other than before
        told("d", consistent=False, at=2),
        told("", "d", at=2),  # never told, so not missed
        told("a", "b", at=3),
    ]
    async with scripted(connect, script) as (_, client):
        moments = await first(2, client.watch("a"))
    assert spelled(moments) == [("abc", "z"), ("a", "b")]
    assert [moment.read_time.timestamp() for moment in moments] == [1, 3]


async def test_an_empty_result_is_told_once(connect):
    async with scripted(connect, [told(), told(), told("a")]) as (_, client):
        assert spelled(await first(2, client.watch("a"))) == [("", ""), ("a", "")]


async def test_a_stream_that_breaks_is_opened_again_unnoticed(connect):
    one = [told("abc"), told("x", consistent=False), UNAVAILABLE]
    other = [told("ac", consistent=False), told("d"), told("a", at=5)]
    async with scripted(connect, one, [UNAVAILABLE], [grpc.StatusCode.CANCELLED], other) as (
        fake,
        client,
    ):
        moments = await first(3, client.watch(Query("a").where("n", ">", 1)))
        assert spelled(moments) == [("abc", ""), ("d", "b"), ("a", "")]
        assert fake.calls["Watch"] == 4


async def test_what_changed_while_the_stream_was_broken_is_told(connect):
    async with scripted(connect, [told("ab"), UNAVAILABLE], [told("ab", at=2)]) as (_, client):
        assert spelled(await first(2, client.watch(["a/a", "a/b"]))) == [("ab", ""), ("ab", "")]


async def test_what_cannot_be_watched_is_an_error(connect):
    async with scripted(connect, [told(), grpc.StatusCode.INVALID_ARGUMENT]) as (fake, client):
        with pytest.raises(InvalidArgumentError, match="told to"):
            await first(2, client.watch("a"))
        assert fake.calls["Watch"] == 1
        wrong: Any
        for wrong in ("a/b", []):
            with pytest.raises(InvalidArgumentError):
                await first(1, client.watch(wrong))
        assert fake.calls["Watch"] == 1


async def test_patience_ends(connect):
    async with scripted(connect, [told(), UNAVAILABLE]) as (fake, client):
        watching = client.watch("a", patience=0.5)
        async with aclosing(watching):
            await anext(watching)
            fake.failures = [Failure("Watch", UNAVAILABLE, times=1_000_000)]
            begin = time.monotonic()
            with pytest.raises(UnavailableError):
                await anext(watching)
        assert fake.calls["Watch"] > 2
        assert time.monotonic() - begin < SECONDS


async def test_a_change_of_authority_goes_unnoticed(connect, postgres_database):
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        await stack.client.commit([Write.set(f"notes/{i}", {"n": i}) for i in range(3)])
        async with (
            connect(stack.sidecar.address) as client,
            aclosing(client.watch("notes")) as told_,
        ):
            moment = await anext(told_)
            assert {snapshot.fields["n"] for snapshot in moment.changed} == {0, 1, 2}
            for number, stage in enumerate(("live", "shadow")):
                await stack.stage(stage)
                await stack.client.update("notes/1", {"n": 10 + number})
                await stack.client.delete(f"notes/{number * 2}")
                changed: set[int] = set()
                removed: set[str] = set()
                async with asyncio.timeout(SECONDS):
                    while (10 + number not in changed) or not removed:
                        moment = await anext(told_)
                        changed |= {snapshot.fields["n"] for snapshot in moment.changed}
                        removed |= set(moment.removed)
                # No other document seemed to come or go.
                assert changed == {10 + number}
                assert removed == {f"notes/{number * 2}"}


async def test_a_sidecar_that_restarts_goes_unnoticed(connect):
    fake = FakeSidecar(watches=[[told("ab")], [told("b")]])
    target = await fake.start()
    async with connect(target) as client, aclosing(client.watch("a")) as told_:
        assert spelled([await anext(told_)]) == [("ab", "")]
        await fake.stop()
        assert await fake.start(target) == target
        assert spelled([await asyncio.wait_for(anext(told_), SECONDS)]) == [("", "a")]
    await fake.stop()


async def test_closing_the_client_ends_it():
    fake = FakeSidecar(watches=[[told("a")], [told("a")]])
    with Crossfade(await fake.start()) as client:
        watching = client.watch("a")
        assert spelled([await asyncio.to_thread(next, watching)]) == [("a", "")]
        waiting = asyncio.ensure_future(asyncio.to_thread(next, watching))
        await asyncio.sleep(0.05)
        client.close()
        with pytest.raises(CallCancelledError):
            await asyncio.wait_for(waiting, SECONDS)
    assert fake.calls["Watch"] == 1
    await fake.stop()
