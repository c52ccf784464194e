"""Random requests to PostgreSQL, and the same to the in-memory store, which has its judge.

The stories are those that the embedded Firestore and the official emulator are compared
by (test_differential.py), less the methods that a store does not have. Every answer must
be that of the in-memory store, to the last bit, and for a part of the cases that of the
official emulator as well. Documents lie in the generic table, in tables with a column for
every field, and in these with about half of the values in remainders.

`CROSSFADE_POSTGRES_CASES` sets the number of cases, `CROSSFADE_SEED` another beginning;
CI has 1,000 and `make differential` 20,000.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, seed, settings

from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import MAX_VALUE_BYTES, collection_path
from crossfade.mapping import CollectionMapping, Mappings, pattern_of
from crossfade.query import FieldFilter, Op, Order, Query
from crossfade.stores.memory import MemoryStore
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.write import Transform, TransformKind, Write
from tests.contract.direct import Direct, backends
from tests.contract.emulator import explained, same
from tests.contract.mapped import FITTING, MAPPED, fitting_stories
from tests.contract.protocol import Aggregate, Commit, Get, Request, RunQuery, Server, Session
from tests.contract.requests import EVERYTHING, Story, stories
from tests.contract.test_documents import HOSTILE
from tests.firestore_fixture import fresh_database
from tests.postgres_fixture import DATABASE, MakeDatabase

CASES = int(os.environ.get("CROSSFADE_POSTGRES_CASES", "200"))
SEED = int(os.environ.get("CROSSFADE_SEED", "0"))
CASES_PER_TEST = 500
"""Hypothesis remembers all cases of a test, and each test is a line of progress."""
OFFICIAL = 20
"""One of so many cases is put to the official emulator, too."""
KINDS: dict[str, Any] = {
    "unmapped": stories(listing=False),
    "mapped": fitting_stories(0.9),
    "misfits": fitting_stories(0.35),
}


@dataclass
class Postgres:
    store: PostgresStore
    server: Direct
    clean: bool = True

    async def clear(self) -> None:
        """Deletes what a case left behind. Tombstones stay: they are part of the next."""
        session = Session(self.server, DATABASE)
        found = await session.ask(EVERYTHING)
        assert not found.error, found
        await self.delete([path for path, *_ in found.values])
        self.clean = True

    async def delete(self, paths: list[str]) -> None:
        if paths:
            await self.store.commit([Write(path, None) for path in paths], timeout=30)


@dataclass
class Stores:
    """The same documents, with a mapping and without."""

    mapped: Postgres
    unmapped: Postgres

    def of(self, kind: str) -> Postgres:
        return self.unmapped if kind == "unmapped" else self.mapped


@pytest_asyncio.fixture(scope="module")
async def postgres(postgres_database: MakeDatabase) -> AsyncIterator[Stores]:
    opened: list[Lanes] = []

    async def make(mappings: Mappings) -> Postgres:
        lanes = await Lanes.open(await postgres_database(), size=2)
        opened.append(lanes)
        await create_schema(lanes, mappings)
        store = PostgresStore(lanes, mappings, DATABASE)
        return Postgres(store, Direct("postgresql", backends(store)))

    yield Stores(await make(MAPPED), await make(Mappings()))
    for lanes in opened:
        await lanes.close()


async def compare(postgres: Postgres, story: Story) -> None:
    memory = MemoryStore(DATABASE)
    ours = Session(postgres.server, DATABASE)
    theirs = Session(Direct("memory", lambda _: memory), DATABASE)
    if not postgres.clean:
        await postgres.clear()
    postgres.clean = False
    for request in story.requests:
        mine, other = await ours.ask(request), await theirs.ask(request)
        if not same(mine, other):
            pytest.fail(f"{request}\n  postgresql {mine}\n  memory     {other}")
    await postgres.delete([document.path for document in memory.dump()])
    postgres.clean = True


async def compare_with_official(postgres: Postgres, official: Server, story: Story) -> None:
    ours, theirs = Session(postgres.server, DATABASE), Session(official, fresh_database())
    await postgres.clear()
    postgres.clean = False
    for request in story.requests:
        mine, other = await asyncio.gather(ours.ask(request), theirs.ask(request))
        if not same(mine, other) and not await explained(request, mine, other, ours):
            pytest.fail(f"{request}\n  postgresql {mine}\n  official   {other}")


def _given(kind: str, number: int, size: int) -> Callable[[Callable[..., Any]], Any]:
    """Tests a function of a story with so many."""

    def decorate(test: Callable[..., Any]) -> Any:
        case = given(story=KINDS[kind])(test)
        some = settings(
            max_examples=size,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        limit = pytest.mark.timeout(180 + size)
        return limit(seed(1_000_003 * SEED + number)(some(case)))

    return decorate


def _cases(kind: str, number: int, size: int) -> Any:
    async def test(postgres: Stores, story: Story) -> None:
        await compare(postgres.of(kind), story)

    return _given(kind, number, size)(test)


def _official_cases(kind: str, size: int) -> Any:
    async def test(postgres: Stores, official: Server, story: Story) -> None:
        await compare_with_official(postgres.of(kind), official, story)

    return pytest.mark.official(_given(kind, -1, size)(test))


@pytest_asyncio.fixture(scope="module")
async def official(official_emulator: str) -> AsyncIterator[Server]:
    server = Server("official", official_emulator)
    yield server
    await server.close()


for _index, _kind in enumerate(KINDS):
    _first, _end = (CASES * (_index + n) // len(KINDS) for n in (0, 1))
    for _start in range(_first, _end, CASES_PER_TEST):
        _stop = min(_end, _start + CASES_PER_TEST)
        _name = f"test_cases_{_start}_to_{_stop}_{_kind}"
        globals()[_name] = _cases(_kind, _start, _stop - _start)
    if _official := (_end - _first) // OFFICIAL:
        globals()[f"test_{_official}_cases_beside_the_official_emulator_{_kind}"] = _official_cases(
            _kind, _official
        )


LARGE = {
    "a text of nearly one mebibyte": "ä" * (MAX_VALUE_BYTES // 2 - 100),
    "bytes of nearly one mebibyte": b"\x00" * (MAX_VALUE_BYTES - 200),
}


@pytest.mark.parametrize("kind", ["unmapped", "mapped"])
@pytest.mark.parametrize("collection", FITTING)
async def test_hostile_values_in_every_column(postgres: Stores, kind: str, collection: str) -> None:
    """Each is stored, read, asked for, counted, changed and replaced by one that fits."""
    path = f"{collection}/a".replace("*", "b")
    names = FITTING[collection]
    fitting = {name: pool[0] for name, pool in names.items()}
    within = Query(
        parent=path.rpartition("/")[0].rpartition("/")[0], collection=path.split("/")[-2]
    )
    for value in (HOSTILE | LARGE).values():
        fields = dict.fromkeys(names, value) if _small(value) else {"a": value}
        asked = [
            replace(within, where=FieldFilter((name,), op, value))
            for name in fields
            for op in (Op.EQUAL, Op.LESS_THAN)
            if _small(value) and value is not None and value == value
        ]
        count = Transform(("b",), TransformKind.INCREMENT, 1)
        requests: list[Request] = [
            Commit([Write(path, fields), Write("d/B", {"a": "B", "b": 1})]),
            Get(path),
            *map(RunQuery, asked),
            RunQuery(replace(within, order_by=(Order(("a",)),))),
            Aggregate(within, [Aggregation(AggregationKind.SUM, "sum", ("b",))]),
            Commit([Write(path, {}, (), (count,))]),
            Get(path),
            Commit([Write(path, fitting)]),
            Commit([Write(path, {"a": value}, (("a",),))]),
            EVERYTHING,
        ]
        await compare(postgres.of(kind), Story(requests))


def _small(value: Any) -> bool:
    return not isinstance(value, str | bytes) or len(value) < 1_000


def test_half_of_the_values_are_misfits() -> None:
    """What KINDS promise, by the types of values; dangling and double ones come on top."""
    # How many fit by chance depends on what Hypothesis finds in the modules that are loaded.
    assert 0.4 < _misfits("misfits") < 0.6
    assert _misfits("mapped") < 0.25


def _misfits(kind: str) -> float:
    """The share of the values of a kind's sets that no column takes."""
    counts: Counter[bool] = Counter()
    mappings: dict[str, CollectionMapping] = {mapping.pattern: mapping for mapping in MAPPED}
    mappings.pop("sub")  # derived: its columns are the owner's

    @seed(1)
    @settings(max_examples=300, database=None, suppress_health_check=list(HealthCheck))
    @given(story=KINDS[kind])
    def count(story: Story) -> None:
        for write in (w for r in story.requests if isinstance(r, Commit) for w in r.writes):
            mapping = mappings.get(pattern_of(collection_path(write.path)))
            if mapping is not None and write.fields:
                row = mapping.to_row(write.fields)
                kept = sum(value is not None for value in row.values)
                counts[True] += len(write.fields) - kept
                counts[False] += kept

    count()
    return counts[True] / counts.total()
