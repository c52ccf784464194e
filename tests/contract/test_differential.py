"""Random requests to the embedded Firestore and to its judge, the official emulator.

One case is one random database: documents, and a handful of requests that read and change
them, as the same bytes to both servers. Every answer must be the same, to the last
document, field, order and status (`protocol.Session` says what is left out and why).
The in-memory store scans where the embedded server uses its indexes, so each query is
answered three times.

`CROSSFADE_CASES` sets the number of cases, `CROSSFADE_SEED` another beginning; `make
differential` has 50,000. What differs is shrunk and printed. What may differ is in
emulator.py, and has a test in test_known_differences.py.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, note, seed, settings

from crossfade import query as queries
from crossfade.document import Database
from crossfade.rpc import firestore_v1
from crossfade.stores.memory import MemoryStore, index
from tests.contract.emulator import explained, same
from tests.contract.protocol import RunQuery, Server, Session
from tests.contract.requests import Story, stories
from tests.firestore_fixture import fresh_database

CASES = int(os.environ.get("CROSSFADE_CASES", "2000"))
SEED = int(os.environ.get("CROSSFADE_SEED", "0"))
CASES_PER_TEST = 500
"""Hypothesis remembers all cases of a test, and each test is a line of progress."""


class Stores(dict[Database, MemoryStore]):
    """The in-memory stores, which can be forgotten again."""

    def __missing__(self, database: Database) -> MemoryStore:
        store = self[database] = MemoryStore(database)
        return store


@dataclass
class Pair:
    ours: Server
    theirs: Server
    stores: Stores


@pytest.fixture(scope="module")
def indexes_always() -> Iterator[None]:
    """Few documents are looked through, unless told otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "SMALL", 0)
        yield


@pytest_asyncio.fixture(scope="module")
async def pair(official_emulator: str, indexes_always: None) -> AsyncIterator[Pair]:
    stores = Stores()
    server = await firestore_v1.serve(stores.__getitem__, "127.0.0.1", 0)
    both = Pair(Server("embedded", server.address), Server("official", official_emulator), stores)
    yield both
    await both.ours.close()
    await both.theirs.close()
    await server.stop(0)


async def compare(pair: Pair, story: Story) -> None:
    database = fresh_database()
    ours, theirs = Session(pair.ours, database), Session(pair.theirs, database)
    try:
        for request in story.requests:
            mine, other = await asyncio.gather(ours.ask(request), theirs.ask(request))
            if "UNAVAILABLE" in {mine.error, other.error}:
                pytest.fail(f"a server is gone: {mine.message or other.message}")
            if not same(mine, other) and not await explained(request, mine, other, ours):
                note(f"differs: {request}\n  embedded {mine}\n  official {other}")
                pytest.fail("the embedded Firestore and the official emulator differ")
            if isinstance(request, RunQuery) and not mine.error:
                store = pair.stores[database]
                scanned = queries.run(request.query, store.dump())
                assert [d.path for d in scanned] == [path for path, *_ in mine.values], request
    finally:
        pair.stores.pop(database, None)


def _cases(number: int, size: int) -> Any:
    @pytest.mark.official
    @pytest.mark.timeout(120 + size)
    @seed(1_000_003 * SEED + number)
    @settings(
        max_examples=size,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(story=stories())
    async def test(pair: Pair, story: Story) -> None:
        await compare(pair, story)

    return test


for _start in range(0, CASES, CASES_PER_TEST):
    _size = min(CASES_PER_TEST, CASES - _start)
    globals()[f"test_cases_{_start}_to_{_start + _size}"] = _cases(_start, _size)
