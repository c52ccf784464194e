"""Random commits and queries: PostgreSQL against the in-memory store, which has its judge.

Unmapped, and mapped so that about half of the values do not fit their columns.
`CROSSFADE_POSTGRES_CASES` sets the number of cases (200), `CROSSFADE_SEED` another beginning.
"""

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy import ARRAY, BigInteger, Column, Double, Index, MetaData
from sqlalchemy.dialects.postgresql import JSONB

from crossfade import wire
from crossfade.document import identical
from crossfade.errors import CrossfadeError
from crossfade.mapping import (
    CollectionMapping,
    Mappings,
    document_table,
    nested_table,
    reference_column,
    text_column,
    unique_column,
    word_column,
)
from crossfade.query import Query
from crossfade.store import DocumentStore
from crossfade.stores.memory import MemoryStore
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.write import Write
from crossfade_api.v1 import crossfade_pb2
from tests import strategies as some
from tests.postgres_fixture import DATABASE, MakeDatabase

CASES = int(os.environ.get("CROSSFADE_POSTGRES_CASES", "200"))
SEED = int(os.environ.get("CROSSFADE_SEED", "0"))
SECONDS = 30.0


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


async def query(store: DocumentStore, asked: Query) -> Answer:
    try:
        frames = b"".join([page.frames async for page in store.query(asked, timeout=SECONDS)])
    except CrossfadeError as error:
        return Answer(type(error).__name__)
    reply = crossfade_pb2.QueryReply.FromString(frames)
    documents = [wire.decode_document(message, DATABASE) for message in reply.documents]
    return Answer(values=[[document.path, document.fields] for document in documents])


metadata = MetaData(schema="differential")


def _mapped() -> Mappings:
    """The collections of tests/strategies.py: every one mapped, most fields constrained."""
    d = document_table(
        "d", metadata, unique_column("a"), Column("b", BigInteger), Column("c", JSONB)
    )
    c = document_table(
        "c",
        metadata,
        word_column("a", "a", "b", "ä"),
        reference_column("b", d),
        Column("c", Double),
        Column("zero", ARRAY(BigInteger), info={"field": "0"}),
        Index("c_a", "a"),
    )
    inner = nested_table("sub", metadata, c, text_column("a"), Column("b", BigInteger))
    root = CollectionMapping("c", c)
    return Mappings([CollectionMapping("d", d), root, CollectionMapping("sub", inner, parent=root)])


MAPPED = _mapped()


@pytest_asyncio.fixture(scope="session", params=["mapped", "unmapped"])
async def store(
    request: pytest.FixtureRequest, postgres_database: MakeDatabase
) -> AsyncIterator[PostgresStore]:
    mappings = MAPPED if request.param == "mapped" else Mappings()
    lanes = await Lanes.open(await postgres_database(), size=2)
    await create_schema(lanes, mappings)
    yield PostgresStore(lanes, mappings, DATABASE)
    await lanes.close()


@pytest.mark.timeout(240 + CASES)
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
    store: PostgresStore, commits: list[list[Write]], queries: list[Query]
) -> None:
    memory = MemoryStore(DATABASE)
    everything = Query(all_descendants=True)
    before = await query(store, everything)
    if before.values:  # of a case that failed
        await store.commit([Write(path, None) for path, _ in before.values], timeout=10)
    for writes in commits:
        ours, theirs = await commit(store, writes), await commit(memory, writes)
        assert ours.same(theirs), f"{writes}\n  postgresql {ours}\n  memory     {theirs}"
    for asked in [everything, *queries]:
        ours = await query(store, asked)
        theirs = await query(memory, asked)
        assert ours.same(theirs), f"{asked}\n  postgresql {ours}\n  memory     {theirs}"
