"""The schema from one version of the models to the next, by alembic.

There are two lines of migrations: Crossfade's own, and the mapping's (the directory
`migrations` of its package, if it has one). Every migration may be repeated: a sidecar
creates what is missing at its start, so a table may be there before the migration that
makes it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from crossfade.document import Database
from crossfade.mapping import Mappings
from crossfade.stores.postgres import tables
from crossfade.stores.postgres.former import GivingBack, forget
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import SCHEMA_LOCK, create_schema
from crossfade.stores.postgres.settling import Settling

HERE = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"

T = TypeVar("T")


class Evolution:
    """The migrations of Crossfade and of a mapping's package, on one database."""

    def __init__(self, dsn: str, mappings: Mappings, package: str) -> None:
        self._dsn = dsn
        self._metadata = metadata_of(mappings)
        self._config = Config()
        self._config.set_main_option("script_location", str(HERE))
        self._config.set_main_option("path_separator", "newline")
        folders = [HERE / "versions", *_folders(package)]
        self._config.set_main_option("version_locations", "\n".join(map(str, folders)))

    def heads(self) -> set[str]:
        """The newest revisions that there are."""
        return set(ScriptDirectory.from_config(self._config).get_heads())

    async def current(self) -> set[str]:
        """The revisions that the database is at; none for an empty one."""
        return await self._run(_revisions)

    async def upgrade(self) -> list[str]:
        """Runs what is missing, in one transaction; returns the revisions that were reached."""

        def work(connection: Connection) -> list[str]:
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
            connection.execute(text(f"create schema if not exists {tables.SCHEMA}"))
            before = _revisions(connection)
            self._attach(connection)
            command.upgrade(self._config, "heads")
            return sorted(_revisions(connection) - before)

        return await self._run(work)

    async def differences(self) -> list[str]:
        """What the database has otherwise than the models: tables, columns, types, nulls,
        references, uniques and indexes; one line each."""

        def work(connection: Connection) -> list[str]:
            options = {
                "include_schemas": True,
                "include_name": self._include_name,
                "include_object": _include_object,
                "version_table_schema": tables.SCHEMA,
            }
            context = MigrationContext.configure(connection, opts=options)
            found = compare_metadata(context, self._metadata)
            return [line for difference in found for line in _lines(difference)]

        return await self._run(work)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: asyncpg.connect(self._dsn),
            poolclass=NullPool,
        )
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    def _attach(self, connection: Connection) -> None:
        """What migrations/env.py works with."""
        self._config.attributes.update(
            connection=connection,
            metadata=self._metadata,
            include_name=self._include_name,
            include_object=_include_object,
        )

    def _include_name(self, name: str | None, kind: str, parents: Any) -> bool:
        """Only our own tables: a schema may be shared with others."""
        if kind == "schema":
            return name in {table.schema for table in self._metadata.tables.values()}
        if kind == "table":
            return f"{parents['schema_name']}.{name}" in self._metadata.tables
        return True


@dataclass(frozen=True, slots=True)
class Progress:
    """What `bring_on` did: revisions reached; documents given back by tables and columns that
    the mapping no longer has, moved to their tables, with values moved to columns."""

    reached: list[str]
    given_back: int
    moved: int
    promoted: int


async def bring_on(
    dsn: str, mappings: Mappings, package: str, database: Database, *, timeout: float
) -> Progress:
    """A database of any former version, or an empty one, to the models and the mapping."""
    lanes = await Lanes.open(dsn, size=1)
    try:
        # First of all: a migration may drop what the mapping no longer has.
        given_back = await GivingBack(lanes, mappings, database).run(timeout=timeout)
        reached = await Evolution(dsn, mappings, package).upgrade()
        # A mapping without migrations of its own, and the triggers of every mapping.
        await create_schema(lanes, mappings, timeout=timeout)
        await forget(lanes, mappings, timeout=timeout)
        settling = Settling(lanes, mappings, database)
        moved = await settling.move(timeout=timeout)
        promoted = await settling.promote(timeout=timeout)
        return Progress(reached, given_back, moved, promoted)
    finally:
        await lanes.close()


def metadata_of(mappings: Mappings) -> MetaData:
    """All tables that there should be."""
    everything = MetaData()
    mapped = [mapping.table for mapping in mappings]
    for metadata in (tables.metadata, *{table.metadata: None for table in mapped}):
        for table in metadata.sorted_tables:
            if metadata is tables.metadata or table in mapped:
                table.to_metadata(everything)
    return everything


def _folders(package: str) -> list[Path]:
    found = importlib.import_module(package)
    return [
        folder
        for path in getattr(found, "__path__", ())
        if (folder := Path(path) / "migrations").is_dir()
    ]


def _revisions(connection: Connection) -> set[str]:
    options = {"version_table_schema": tables.SCHEMA}
    return set(MigrationContext.configure(connection, opts=options).get_current_heads())


def _include_object(_: Any, name: str | None, kind: str, reflected: bool, compared: Any) -> bool:
    """Without the indexes that placement.py makes: they need its functions."""
    return not (kind == "index" and reflected and compared is None and _waits(name))


def _waits(name: str | None) -> bool:
    return name is not None and name.endswith(("_waiting", "_beside"))


def _lines(difference: Any) -> list[str]:
    """A difference of alembic's in words."""
    if isinstance(difference, list):
        return [line for part in difference for line in _lines(part)]
    what, *details = difference
    if what in {"add_table", "remove_table"}:
        table: Table = details[0]
        return [f"{_verb(what)} table {table.fullname}"]
    if what in {"add_column", "remove_column"}:
        schema, table_name, column = details
        return [f"{_verb(what)} column {schema}.{table_name}.{column.name} {column.type}"]
    if what.startswith("modify_"):
        schema, table_name, column, _, is_now, should_be = details
        aspect = what.removeprefix("modify_")
        return [f"column {schema}.{table_name}.{column}: {aspect} is {is_now}, not {should_be}"]
    item = details[0]
    kind = {"fk": "reference", "constraint": "unique"}.get(what.partition("_")[2], "index")
    columns = ", ".join(str(column.name) for column in item.columns)
    return [f"{_verb(what)} {kind} {item.name or ''} on {item.table.fullname} ({columns})"]


def _verb(what: str) -> str:
    return "missing:" if what.startswith("add_") else "not in the models:"
