"""A commit that is cancelled, at every await that it comes to: nothing is half done.

The coroutine is driven by hand up to its n-th suspension, where it is cancelled, for every n
until it ends before. The caller's own is what a call that is given up cancels; the protocol's,
which nobody cancels, stands for a process that ends in the middle.
"""

import asyncio
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from crossfade import pending
from crossfade.call import Call
from crossfade.errors import CrossfadeError, Unavailable
from crossfade.forward import Forward
from crossfade.migrator import Migrator
from crossfade.outbox import Outbox
from crossfade.plan import Stage, StoreName
from crossfade.store import CommitOutcome
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from crossfade.write import Transform, TransformKind, Write
from tests.sidecar import DATABASE, Running, running

MOST = 90
"""More suspensions than any commit has."""


class Cancelling:
    """Drives a coroutine, and cancels it where it suspends for the n-th time."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.suspensions = 0

    @property
    def happened(self) -> bool:
        return self.suspensions >= self._at

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = partial(coroutine.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._at:
                if awaited is not None:  # as a task does with what it waits for
                    awaited._asyncio_future_blocking = False
                    awaited.cancel()
                step = partial(coroutine.throw, asyncio.CancelledError())
                continue
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's
                step = partial(coroutine.throw, error)
            else:
                step = partial(coroutine.send, None)


async def driven(coroutine: Coroutine[Any, Any, Any], cancelling: Cancelling) -> Any:
    return await cancelling.drive(coroutine)


class Bench:
    """A heart of its own on a running sidecar's parts, whose commits can be cancelled."""

    def __init__(self, stack: Running) -> None:
        member = stack.sidecar.members["default"]
        self.stack = stack
        self.outbox: Outbox | None = None
        """Whose gate every commit has to close, and wait for."""
        self.telemetry = stack.telemetry
        self.heart = Migrator(
            member.control,
            member.stores,
            member.forward,
            member.pending,
            stack.sidecar.shadow,
            stack.telemetry,
            DATABASE,
        )
        self.cancelling = Cancelling(0)
        """What drives the part that is cancelled now; at 0, it never is."""

    def commit(self, number: int) -> Coroutine[Any, Any, CommitOutcome]:
        """A count and a document beside it, under a request_id: one or the other is no commit."""
        count = Transform(("n",), TransformKind.INCREMENT, 1)
        writes = [
            Write(f"notes/{number}", {}, (), (count,)),
            Write(f"tasks/{number}", {"n": number}),
        ]
        call = Call(self.telemetry, time.monotonic() + 5)
        return self.heart.commit(writes, call, request_id=f"request {number}")

    def put(self, number: int) -> Coroutine[Any, Any, CommitOutcome]:
        """The same without a request_id, and without a partial write."""
        writes = [Write(f"notes/put{number}", {"n": 1}), Write(f"tasks/put{number}", {"n": 1})]
        return self.heart.commit(writes, Call(self.telemetry, time.monotonic() + 5))

    async def ended(self, commit: Awaitable[Any]) -> None:
        """Whatever became of it; a call that never ends is none of the outcomes."""
        with suppress(CrossfadeError, asyncio.CancelledError):
            await asyncio.wait_for(commit, 10)

    async def held(self, store: StoreName, paths: list[str]) -> list[Any]:
        reading = await self.stack.sidecar.stores[store].get(paths, timeout=5)
        datas = [stored.data for stored in reading.documents]
        return [None if data is None else parse_document(data, DATABASE).fields for data in datas]


@pytest.fixture(params=["rows", "outbox", "postgresql"])
async def bench(request, postgres_database, monkeypatch):
    """By which way its commits go."""
    monkeypatch.setattr(pending, "LEASE_SECONDS", 0.3)
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        if request.param == "postgresql":
            await stack.stage("live")
        if request.param == "outbox":

            async def away(*_args: Any, **_options: Any) -> None:
                raise Unavailable("PostgreSQL is away")

            monkeypatch.setattr(stack.sidecar.members["default"].mirror, "open_intent", away)
        bench = Bench(stack)
        if request.param == "outbox":
            bench.outbox = stack.sidecar.members["default"].outbox
        yield bench


Run = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]


async def cancelled_everywhere(bench: Bench, run: Run, first: int) -> list[int]:
    """Commits that `run` has cancelled, each at the next await, until one ends before; what they
    were numbered, from `first` on."""
    numbers: list[int] = []
    for make in (bench.put, bench.commit):
        numbers = []
        for at in range(1, MOST):
            if bench.outbox is not None:  # as at the beginning of an outage
                bench.outbox._waited = -1
                await bench.outbox.close()
            bench.cancelling = Cancelling(at)
            await bench.ended(run(make(first + at)))
            if not bench.cancelling.happened:
                break
            numbers.append(first + at)
        assert 0 < len(numbers) < MOST - 1
    bench.cancelling = Cancelling(0)
    return numbers


async def test_cancelled_at_any_await_a_commit_is_done_once_and_whole(bench, monkeypatch):
    detach, store_commit = Forward._detach, PostgresStore.commit

    def _detach(self: Any, work: Any) -> Any:
        return detach(self, driven(work, bench.cancelling))

    async def _commit(self: Any, *args: Any, **options: Any) -> Any:
        return await driven(store_commit(self, *args, **options), bench.cancelling)

    async def plain(commit: Coroutine[Any, Any, Any]) -> Any:
        return await commit

    # The caller's: it waits at one place only. Then the protocol's, behind the shield.
    numbers = await cancelled_everywhere(bench, lambda it: driven(it, bench.cancelling), 0)
    with monkeypatch.context() as patch:
        patch.setattr(Forward, "_detach", _detach)
        patch.setattr(PostgresStore, "commit", _commit)
        inner = await cancelled_everywhere(bench, plain, MOST)
    assert len(inner) > len(numbers)
    await bench.stack.settled(20)
    for prefix in ("", "put"):
        paths = [f"{name}/{prefix}{n}" for n in range(2 * MOST) for name in ("notes", "tasks")]
        firestore = await bench.held(StoreName.FIRESTORE, paths)
        assert await bench.held(StoreName.POSTGRESQL, paths) == firestore
        for note, task in zip(firestore[::2], firestore[1::2], strict=True):
            assert (note is None) == (task is None)
            assert note in (None, {"n": 1})
    # Whoever asks again is told of the first time, or it is done now: once, in any case.
    numbers += inner
    for number in numbers:
        await bench.commit(number)
    await bench.stack.settled(20)
    notes = [f"notes/{number}" for number in numbers]
    for store in StoreName:
        assert await bench.held(store, notes) == [{"n": 1}] * len(notes)
