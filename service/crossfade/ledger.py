"""Clients that remember what the sidecar acknowledged, and notice when it is not so.

Every worker owns some documents and knows what each must hold: whatever it reads
through the sidecar, from whichever store, in whichever stage, has to be exactly
that. Counters and contended documents are shared between the workers.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from crossfade_client import (
    AsyncCrossfade,
    CrossfadeError,
    Filter,
    Increment,
    Query,
    Snapshot,
    Write,
)

COLLECTIONS = ("rehearsal", "miner_status")
"""One collection without a mapping and one with."""
COUNTERS = 4
CONTENDED = 4
KEYS = 6
MAX_NOTES = 20


@dataclass(slots=True)
class Findings:
    """What went against a promise. `stale`: an acknowledged write was not seen by a later
    read; `resurrected`: a deleted document was; `lost`: it is not there in the end."""

    stale: int = 0
    resurrected: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)


class Ledger:
    """The workers' common memory."""

    def __init__(self, client: AsyncCrossfade, *, workers: int, seed: int) -> None:
        self._client = client
        self._seed = seed
        # None: not there. A path that is not in it is in doubt: a commit of it failed.
        self._expected: list[dict[str, dict[str, Any] | None]] = [
            {f"{name}/w{worker}-{key}": None for name in COLLECTIONS for key in range(KEYS)}
            for worker in range(workers)
        ]
        self._added: Counter[str] = Counter()
        self._contended: dict[str, set[str]] = {}
        self._go = asyncio.Event()
        self._idle = [asyncio.Event() for _ in range(workers)]
        self._go.set()
        self.findings = Findings()
        self.reads = 0
        self.writes = 0
        self.errors: Counter[str] = Counter()

    async def pause(self) -> None:
        """Returns when no worker has a call under way."""
        self._go.clear()
        await asyncio.gather(*(event.wait() for event in self._idle))

    def resume(self) -> None:
        self._go.set()

    async def run(self) -> None:
        """Runs for ever."""
        async with asyncio.TaskGroup() as group:
            for worker in range(len(self._expected)):
                group.create_task(self._work(worker))

    async def _work(self, worker: int) -> None:
        random = Random(f"{self._seed}-{worker}")  # noqa: S311 - repeatable traffic
        actions = (
            (self._set, 25),
            (self._merge, 10),
            (self._delete, 8),
            (self._get, 30),
            (self._get_all, 7),
            (self._query, 10),
            (self._increment, 5),
            (self._contend, 5),
        )
        weights = [weight for _, weight in actions]
        while True:
            if not self._go.is_set():
                self._idle[worker].set()
                await self._go.wait()
            self._idle[worker].clear()
            action = random.choices(actions, weights)[0][0]
            try:
                await action(worker, random)
            except CrossfadeError as error:
                self.errors[error.code.name] += 1
                self.findings.note(f"{error.code.name}: {error.details}")

    # --- writes -----------------------------------------------------------------------------

    def _key(self, worker: int, random: Random) -> str:
        return f"{random.choice(COLLECTIONS)}/w{worker}-{random.randrange(KEYS)}"

    def _fields(self, worker: int, random: Random) -> dict[str, Any]:
        return {
            "owner": f"w{worker}",
            "sequence": self.writes,
            # int or float, as the application's own writers do it
            "current_load": random.choice([random.randrange(9), random.random()]),
            "is_serving": random.random() < 0.5,
            "task_type_specialization": random.choice(["", "tts", None, {"tts": {"total": 1}}]),
        }

    async def _set(self, worker: int, random: Random) -> None:
        path, fields = self._key(worker, random), self._fields(worker, random)
        await self._write(worker, Write.set(path, fields), path, fields)

    async def _merge(self, worker: int, random: Random) -> None:
        path = self._key(worker, random)
        if path not in self._expected[worker]:
            return  # nobody knows what it would be merged into; a set will tell
        change = {"owner": f"w{worker}", "sequence": self.writes, "merged": True}
        before = self._expected[worker].get(path) or {}
        await self._write(worker, Write.merge(path, change), path, before | change)

    async def _delete(self, worker: int, random: Random) -> None:
        path = self._key(worker, random)
        await self._write(worker, Write.delete(path), path, None)

    async def _write(
        self, worker: int, write: Write, path: str, after: dict[str, Any] | None
    ) -> None:
        expected = self._expected[worker]
        expected.pop(path, None)  # in doubt until it is acknowledged
        await self._client.commit([write])
        expected[path] = after
        self.writes += 1

    async def _increment(self, _: int, random: Random) -> None:
        path = f"rehearsal/counter-{random.randrange(COUNTERS)}"
        await self._client.merge(path, {"total": Increment(1)})
        self._added[path] += 1
        self.writes += 1

    async def _contend(self, worker: int, random: Random) -> None:
        path = f"miner_status/contended-{random.randrange(CONTENDED)}"
        token = f"w{worker}-{self.writes}-{random.random()}"
        tokens = self._contended.setdefault(path, set())
        tokens.add(token)
        await self._client.set(path, {"uid": worker, "hotkey": token})
        self.writes += 1

    # --- reads ------------------------------------------------------------------------------

    async def _get(self, worker: int, random: Random) -> None:
        path = self._key(worker, random)
        found = await self._client.find(path)
        self.reads += 1
        if path in self._expected[worker]:
            self._check(path, self._expected[worker][path], found)

    async def _get_all(self, worker: int, random: Random) -> None:
        paths = sorted({self._key(worker, random) for _ in range(3)})
        found = await self._client.get_all(paths)
        self.reads += 1
        for path, snapshot in zip(paths, found, strict=True):
            if path in self._expected[worker]:
                self._check(path, self._expected[worker][path], snapshot)

    async def _query(self, worker: int, random: Random) -> None:
        collection = random.choice(COLLECTIONS)
        query = Query(collection).where(Filter("owner", "==", f"w{worker}"))
        found = {snapshot.path: snapshot async for snapshot in self._client.query(query)}
        self.reads += 1
        for path, fields in self._expected[worker].items():
            if path.startswith(collection + "/"):
                self._check(path, fields, found.get(path))

    def _check(self, path: str, expected: dict[str, Any] | None, found: Snapshot | None) -> None:
        if expected is None:
            if found is not None:
                self.findings.resurrected += 1
                self.findings.note(f"{path}: deleted, and read again")
        elif found is None or _plain(found) != expected:
            self.findings.stale += 1
            seen = "not found" if found is None else "an older state"
            self.findings.note(f"{path}: sequence {expected.get('sequence')} was written, {seen}")

    # --- the end ----------------------------------------------------------------------------

    async def check_all(self) -> None:
        """Every acknowledged write against what the sidecar answers now; workers are paused."""
        for expected in self._expected:
            for path, fields in expected.items():
                found = await self._client.find(path)
                if fields is None and found is not None:
                    self.findings.resurrected += 1
                    self.findings.note(f"{path}: deleted, and there in the end")
                elif fields is not None and (found is None or _plain(found) != fields):
                    self.findings.lost += 1
                    self.findings.note(f"{path}: the last acknowledged write is not there")
        for path, total in self._added.items():
            found = await self._client.find(path)
            held = _plain(found).get("total") if found is not None else 0
            if held != total:
                self.findings.lost += 1
                self.findings.note(f"{path}: {total} increments acknowledged, {held} counted")
        for path, tokens in self._contended.items():
            found = await self._client.find(path)
            if found is None or _plain(found).get("hotkey") not in tokens:
                self.findings.lost += 1
                self.findings.note(f"{path}: holds what nobody wrote")


def _plain(snapshot: Snapshot) -> dict[str, Any]:
    return dict(snapshot.fields)
