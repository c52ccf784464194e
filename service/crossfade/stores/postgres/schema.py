"""Creates what is missing in PostgreSQL: Crossfade's own tables and the mapped ones."""

from collections.abc import Iterator

from sqlalchemy import MetaData, Table
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.schema import CreateIndex, CreateSchema, CreateTable, ExecutableDDLElement

from crossfade.mapping import Mappings
from crossfade.stores.postgres import tables
from crossfade.stores.postgres.lanes import Lanes

# Sidecars that start together create one after the other.
_LOCK = 0x63726F7373666164


def statements(mappings: Mappings) -> list[str]:
    """The DDL, every statement of it without effect where the thing exists."""
    compiled = dialect()  # type: ignore[no-untyped-call]
    return [str(item.compile(dialect=compiled)) for item in _elements(mappings)]


def _elements(mappings: Mappings) -> Iterator[ExecutableDDLElement]:
    found: list[Table] = list(tables.metadata.sorted_tables)
    for metadata in {mapping.table.metadata: None for mapping in mappings}:
        found += _mapped(metadata, mappings)
    for schema in dict.fromkeys(table.schema for table in found):
        if schema is not None:
            yield CreateSchema(schema, if_not_exists=True)
    for table in found:
        yield CreateTable(table, if_not_exists=True)
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield CreateIndex(index, if_not_exists=True)


def _mapped(metadata: MetaData, mappings: Mappings) -> list[Table]:
    wanted = {mapping.table for mapping in mappings}
    return [table for table in metadata.sorted_tables if table in wanted]


async def create_schema(lanes: Lanes, mappings: Mappings, *, timeout: float = 30.0) -> None:
    """Creates schemas, tables and indexes that are not there. Changes none that is."""
    async with lanes.transaction(timeout) as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
        for statement in statements(mappings):
            await connection.execute(statement)
