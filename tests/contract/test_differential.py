"""Random commits and queries: the in-memory store against its judge, the official emulator.

`CROSSFADE_CASES` sets their number (200), `CROSSFADE_SEED` another beginning. What
differs is shrunk and printed. What may differ has a test in test_known_differences.py.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from crossfade import wire
from crossfade.document import Database, identical
from crossfade.errors import CrossfadeError
from crossfade.query import LISTS, Op, Query, leaves
from crossfade.store import DocumentStore
from crossfade.stores.firestore import connect
from crossfade.stores.memory import MemoryStore
from crossfade.write import Write
from crossfade_api.v1 import crossfade_pb2
from tests import strategies as some
from tests.firestore_fixture import fresh_database

CASES = int(os.environ.get("CROSSFADE_CASES", "200"))
SEED = int(os.environ.get("CROSSFADE_SEED", "0"))
SECONDS = 30.0
UNARY = {Op.IS_NULL, Op.IS_NOT_NULL, Op.IS_NAN, Op.IS_NOT_NAN}


@dataclass
class Answer:
    """What a store said: the error's class, or plain values that can be compared."""

    error: str = ""
    values: list[Any] = field(default_factory=list)

    def same(self, other: "Answer") -> bool:
        return self.error == other.error and identical(self.values, other.values)


async def commit(store: DocumentStore, writes: Sequence[Write]) -> Answer:
    try:
        outcome = await store.commit(writes, timeout=SECONDS)
    except CrossfadeError as error:
        return Answer(type(error).__name__)
    return Answer(
        values=[
            # Times differ; whether a write changed something may not.
            [result.update_time is None, result.update_time == outcome.commit_time, *result.results]
            for result in outcome.writes
        ]
    )


async def query(store: DocumentStore, asked: Query, database: Database) -> Answer:
    try:
        frames = b"".join([page.frames async for page in store.query(asked, timeout=SECONDS)])
    except CrossfadeError as error:
        return Answer(type(error).__name__)
    reply = crossfade_pb2.QueryReply.FromString(frames)
    documents = [wire.decode_document(message, database) for message in reply.documents]
    return Answer(values=[[document.path, document.fields] for document in documents])


def emulators_own(writes: Sequence[Write], ours: Answer, theirs: Answer) -> bool:
    """Two writes of one document and a precondition: both refuse, with another status."""
    return len({write.path for write in writes}) < len(writes) and bool(ours.error and theirs.error)


def normalised_first(asked: Query) -> bool:
    """The emulator simplifies before it applies its limits: an operand of null or NaN
    makes a filter that nothing passes, and the same filter twice is one."""
    filters = leaves(asked.where)
    single = [leaf.value for leaf in filters if leaf.op not in LISTS | UNARY]
    empty = any(value is None or value != value for value in single)
    return empty or len({(leaf.path, leaf.op) for leaf in filters}) < len(filters)


@pytest.mark.official
@pytest.mark.timeout(120 + CASES)
@seed(SEED)
@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    commits=st.lists(some.commits(), min_size=2, max_size=6),
    queries=st.lists(some.queries(), min_size=3, max_size=8),
)
async def test_random_commits_and_queries(
    official_emulator: str, commits: list[list[Write]], queries: list[Query]
) -> None:
    database = fresh_database()
    memory = MemoryStore(database)
    official = connect(database, official_emulator)
    try:
        for writes in commits:
            theirs, ours = await commit(official, writes), await commit(memory, writes)
            if not emulators_own(writes, ours, theirs):
                assert ours.same(theirs), f"{writes}\n  memory   {ours}\n  official {theirs}"
        everything = Query(all_descendants=True)
        for asked in [everything, *queries]:
            theirs = await query(official, asked, database)
            ours = await query(memory, asked, database)
            if ours.error and not theirs.error and normalised_first(asked):
                continue
            assert ours.same(theirs), f"{asked}\n  memory   {ours}\n  official {theirs}"
    finally:
        await official.close()
