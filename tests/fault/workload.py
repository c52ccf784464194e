"""Clients that write and read a few documents through several sidecars, and remember it all.

Few documents, so that they collide. What a sidecar did not answer is asked of another one,
with the same request_id; without one, its outcome stays unknown. The same seed asks for the
same things in the same order, client by client.
"""

import asyncio
import pickle
from collections import Counter
from random import Random
from tempfile import NamedTemporaryFile
from typing import Any, Self

import grpc

from crossfade_client import (
    AbortedError,
    AlreadyExistsError,
    CrossfadeError,
    FailedPreconditionError,
    Increment,
    InvalidArgumentError,
    NotFoundError,
    Snapshot,
    Write,
)
from tests.fault.history import (
    COUNTER,
    Act,
    Effect,
    Fields,
    History,
    Operation,
    Outcome,
    State,
    Verdict,
    as_fields,
)
from tests.fault.world import Sidecar, World

COLLECTIONS = ("tasks", "notes")
"""One with a mapping, one without."""
DOCUMENTS = tuple(f"{collection}/{name}" for collection in COLLECTIONS for name in "abc")
COUNTERS = tuple(f"{collection}/sum" for collection in COLLECTIONS)
"""Nothing but increments, and reads: their sums are exact."""
DEFINITE = (AbortedError, FailedPreconditionError, InvalidArgumentError, NotFoundError)
NOT_SENT = "connections to all backends failing"
"""What gRPC says of a call that found nobody to go to."""
ATTEMPTS = 8
TIMEOUT = 2.5
MIX = {
    "get": 20,
    "batch": 10,
    "query": 10,
    "set": 14,
    "merge": 12,
    "delete": 8,
    "create": 8,
    "count": 12,
    "several": 10,
}


class Workload:
    """`async with` runs the clients. `pause()` ends what is under way, `resume()` goes on."""

    def __init__(
        self, world: World, seed: int, *, clients: int = 6, pause: float = 0.02, writes: bool = True
    ) -> None:
        self._world = world
        self._pause = pause
        self._mix = MIX if writes else {kind: MIX[kind] for kind in ("get", "batch", "query")}
        self._go, self._idle = asyncio.Event(), [asyncio.Event() for _ in range(clients)]
        self._clients = [_Client(self, number, seed) for number in range(clients)]
        self._tasks: list[asyncio.Task[None]] = []
        self.history = History()
        self.done: Counter[str] = Counter()
        """Operations by kind and outcome, for the test to see that something happened."""
        self.errors: Counter[str] = Counter()
        self.late = False
        """A write was given up by its client that a sidecar may still have before it: one that
        stood still reads it when it goes on, and has all of TIMEOUT for it then."""

    async def __aenter__(self) -> Self:
        self._go.set()
        self._tasks = [asyncio.create_task(client.run()) for client in self._clients]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def pause(self) -> None:
        self._go.clear()
        await asyncio.gather(*(idle.wait() for idle in self._idle))
        for task in self._tasks:
            assert not task.done() or task.exception() is None, task.exception()

    def resume(self, seed: int | None = None) -> None:
        """`seed`: what the clients do from here on."""
        for client in self._clients if seed is not None else ():
            client.reseed(seed or 0)
        self._go.set()

    async def judged(self) -> Verdict:
        """Pauses, waits for rest, and judges what was done since the last time: the stores
        are equal, and an order explains every answer and what both hold."""
        await self.pause()
        if self.late:
            await asyncio.sleep(TIMEOUT)
            self.late = False
        await self._world.equal()
        firestore = await self._world.contents(self._world.direct)
        postgres = await self._world.contents(self._world.mirror)
        self.history.finish(as_state(firestore), as_state(postgres))
        verdict = await asyncio.to_thread(self.history.check)
        if not verdict.ok:
            with NamedTemporaryFile(
                prefix="crossfade-history-", suffix=".pickle", delete=False
            ) as file:
                pickle.dump((self.history.operations, self.history.initial), file)
            raise AssertionError(f"{verdict}\nthe history is in {file.name}")
        self.history = History(as_state(firestore))
        return verdict


def as_state(documents: dict[str, dict[str, Any]]) -> State:
    return {path: as_fields(fields) for path, fields in documents.items()}


class _Client:
    def __init__(self, load: Workload, number: int, seed: int) -> None:
        self._load = load
        self._number = number
        self._name = f"client {number}"
        self._count = 0
        self._random: Random
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        self._random = Random(f"{seed}-{self._number}")

    async def run(self) -> None:
        idle = self._load._idle[self._number]
        while True:
            if not self._load._go.is_set():
                idle.set()
                await self._load._go.wait()
                idle.clear()
            mix = self._load._mix
            kind = self._random.choices(list(mix), list(mix.values()))[0]
            self._count += 1
            if kind in {"get", "batch", "query"}:
                operation = await self._read(kind)
            else:
                operation = await self._write(kind)
            self._load.done[f"{kind} {operation.outcome}"] += 1
            await asyncio.sleep(self._random.expovariate(1 / self._load._pause))

    def _sidecar(self, attempt: int) -> Sidecar:
        """Each client has a favourite; every fourth call, and every repeated one, goes
        elsewhere, and few go to a dead one."""
        sidecars = self._load._world.sidecars
        shift = attempt or self._random.choice((0, 0, 0, 1))
        chosen = sidecars[(self._number + shift) % len(sidecars)]
        if chosen.process.running or self._random.random() < 0.1:
            return chosen
        return next((each for each in sidecars if each.process.running), chosen)

    # --- reads ----------------------------------------------------------------------------------

    async def _read(self, kind: str) -> Operation:
        history = self._load.history
        client = self._sidecar(0).client
        collection = self._random.choice(COLLECTIONS)
        paths = self._random.sample((*DOCUMENTS, *COUNTERS), 1 if kind == "get" else 3)
        operation = history.begin(self._name)
        try:
            if kind == "query":
                found = {s.path: s async for s in client.query(collection, timeout=TIMEOUT)}
                operation.collection = collection
                operation.seen = {path: _seen(snapshot) for path, snapshot in found.items()}
            elif kind == "get":
                operation.seen = {paths[0]: _seen(await client.find(paths[0], timeout=TIMEOUT))}
            else:
                snapshots = await client.get_all(paths, timeout=TIMEOUT)
                operation.seen = dict(zip(paths, map(_seen, snapshots), strict=True))
        except CrossfadeError as error:
            operation.collection, operation.seen = None, {}
            self._load.errors[f"read {error.code.name}"] += 1
            history.end(operation, Outcome.UNKNOWN)
        else:
            history.end(operation, Outcome.OK)
        return operation

    # --- writes ---------------------------------------------------------------------------------

    async def _write(self, kind: str) -> Operation:
        effects = self._effects(kind)
        writes = [_message(effect) for effect in effects]
        named = self._random.random() < 0.7
        request_id = f"{self._name} {self._count} {self._random.random()}" if named else None
        history = self._load.history
        operation = history.begin(self._name, effects=tuple(effects))
        sent = late = False
        for attempt in range(ATTEMPTS if named else 1):
            try:
                result = await self._sidecar(attempt).client.commit(
                    writes, request_id=request_id, timeout=TIMEOUT
                )
            except AlreadyExistsError:
                if not sent:
                    # A read, in truth: it says that there was a document.
                    operation.effects, operation.existed = (), effects[0].path
                    history.end(operation, Outcome.OK)
                    return operation
                break
            except DEFINITE as error:
                self._load.errors[f"write {error.code.name}"] += 1
                if not sent:
                    history.end(operation, Outcome.REFUSED)
                    return operation
            except CrossfadeError as error:
                self._load.errors[f"write {error.code.name}"] += 1
                sent = sent or NOT_SENT not in error.details
                late = late or error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            else:
                operation.hint = result.commit_time.timestamp()
                history.end(operation, Outcome.OK)
                return operation
            await asyncio.sleep(0.05 * (attempt + 1))
        if not sent:
            history.end(operation, Outcome.REFUSED)
        # Else, until nothing is on its way any more, it may still happen.
        self._load.late |= late
        return operation

    def _effects(self, kind: str) -> list[Effect]:
        value = self._number * 1_000_000 + self._count
        first, second, third = self._random.sample(DOCUMENTS, 3)
        whole = as_fields({"v": value})
        match kind:
            case "set":
                return [Effect(Act.SET, first, whole)]
            case "create":
                return [Effect(Act.CREATE, first, whole)]
            case "merge":
                return [Effect(Act.MERGE, first, as_fields({"m": value}))]
            case "delete":
                return [Effect(Act.DELETE, first)]
            case "count":
                path = self._random.choice((*COUNTERS, first))
                return [Effect(Act.ADD, path, amount=1 + self._count % 3)]
            case _:
                effects = [Effect(Act.SET, first, whole), Effect(Act.SET, second, whole)]
                if self._random.random() < 0.5:
                    effects.append(Effect(Act.DELETE, third))
                if self._random.random() < 0.5:
                    effects.append(Effect(Act.ADD, self._random.choice(COUNTERS), amount=1))
                return effects


def _message(effect: Effect) -> Write:
    match effect.act:
        case Act.SET:
            return Write.set(effect.path, dict(effect.fields))
        case Act.CREATE:
            return Write.create(effect.path, dict(effect.fields))
        case Act.MERGE:
            return Write.merge(effect.path, dict(effect.fields))
        case Act.ADD:
            return Write.merge(effect.path, {COUNTER: Increment(effect.amount)})
        case Act.DELETE:
            return Write.delete(effect.path)


def _seen(snapshot: Snapshot | None) -> Fields | None:
    return None if snapshot is None else as_fields(snapshot.fields)
