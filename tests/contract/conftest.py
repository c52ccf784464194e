"""The stores that the contract suite runs over, and what its tests speak to them with."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from crossfade import wire
from crossfade.document import Database, Document, Fields
from crossfade.query import FieldFilter, Filter, Op, Query
from crossfade.store import CommitOutcome, DocumentStore, Reading, Stored
from crossfade.stores.firestore import connect
from crossfade.stores.memory import MemoryStore
from crossfade.write import Transform, Write
from crossfade_api.v1 import crossfade_pb2
from tests.firestore_fixture import fresh_database

SECONDS = 30.0
FIRESTORES = ["memory", "embedded", pytest.param("official", marks=pytest.mark.official)]
STORES = [
    *FIRESTORES,
    "postgresql",  # the generic table
    "postgresql-mapped",  # the tables of violet
]


@dataclass
class Bench:
    """An empty store. `kind` is the collection that tests use, `field` the field: in the
    mapped store they are a table and a typed column, so that most values are misfits."""

    store: DocumentStore
    database: Database
    kind: str = "things"
    field: str = "v"

    def path(self, name: str) -> str:
        return f"{self.kind}/{name}"

    async def commit(self, *writes: Write) -> CommitOutcome:
        return await self.store.commit(writes, timeout=SECONDS)

    async def put(self, **documents: Any) -> CommitOutcome:
        """Sets documents by id to one field each."""
        return await self.commit(
            *(Write(self.path(name), {self.field: value}) for name, value in documents.items())
        )

    async def transform(self, name: str, *transforms: Transform) -> CommitOutcome:
        return await self.commit(Write(self.path(name), {}, (), transforms))

    async def get(self, *paths: str) -> Reading:
        return await self.store.get(paths, timeout=SECONDS)

    async def stored(self, path: str) -> Stored:
        return (await self.get(path)).documents[0]

    async def document(self, path: str) -> Document:
        data = (await self.stored(path)).data
        assert data is not None, f"{path} is missing"
        return wire.parse_document(data, self.database)

    async def fields(self, path: str) -> Fields | None:
        data = (await self.stored(path)).data
        return None if data is None else wire.parse_document(data, self.database).fields

    async def value(self, name: str) -> Any:
        """The one field of a document of the test's collection."""
        return (await self.document(self.path(name))).fields[self.field]

    async def run(self, query: Query) -> list[Document]:
        pages = [page async for page in self.store.query(query, timeout=SECONDS)]
        assert pages, "a query answers at least one page"
        reply = crossfade_pb2.QueryReply.FromString(b"".join(page.frames for page in pages))
        return [wire.decode_document(message, self.database) for message in reply.documents]

    async def ids(self, where: Filter | None = None, **query: Any) -> list[str]:
        """The ids that a query of the test's collection finds."""
        query = {"collection": self.kind} | query
        return [d.path.rpartition("/")[2] for d in await self.run(Query(where=where, **query))]

    async def matching(self, op: Op, operand: Any = None) -> set[str]:
        return set(await self.ids(FieldFilter((self.field,), op, operand)))


_NEEDS = {
    "embedded": "embedded_firestore",
    "official": "official_emulator",
    "postgresql": "generic_store",
    "postgresql-mapped": "mapped_store",
}


@pytest.fixture(params=STORES)
def source(request: pytest.FixtureRequest) -> Any:
    """None for memory, an address for the Firestores, a bench for PostgreSQL."""
    fixture = _NEEDS.get(request.param)
    return None if fixture is None else request.getfixturevalue(fixture)


@pytest_asyncio.fixture
async def bench(source: Any) -> AsyncIterator[Bench]:
    """Every store in turn, empty."""
    database = fresh_database()
    if source is None:
        yield Bench(MemoryStore(database), database)
    elif isinstance(source, str):
        store = connect(database, source)
        yield Bench(store, database)
        await store.close()
    else:
        yield source
        await _clear(source)


@pytest_asyncio.fixture(scope="session")
async def generic_store(postgres_store_factory: Any) -> Bench:
    from tests.postgres_fixture import DATABASE

    return Bench(await postgres_store_factory(False), DATABASE)


@pytest_asyncio.fixture(scope="session")
async def mapped_store(postgres_store_factory: Any) -> Bench:
    from tests.postgres_fixture import DATABASE

    return Bench(await postgres_store_factory(True), DATABASE, "tasks", "status")


async def _clear(bench: Bench) -> None:
    """Deletes every document, as a client would."""
    documents: Sequence[Document] = await bench.run(Query(all_descendants=True))
    if documents:
        await bench.commit(*(Write(document.path, None) for document in documents))
