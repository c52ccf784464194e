"""Creates what is missing in PostgreSQL: Crossfade's own tables and the mapped ones."""

import hashlib
from collections.abc import Iterator, Sequence

from sqlalchemy import Index, MetaData, Table
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.schema import CreateIndex, CreateSchema, CreateTable, ExecutableDDLElement

from crossfade.errors import FailedPrecondition
from crossfade.mapping import Mappings
from crossfade.stores.postgres import tables
from crossfade.stores.postgres.former import remember
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.naming import name_of
from crossfade.stores.postgres.placement import FUNCTIONS, placements

# Sidecars that start together create one after the other.
SCHEMA_LOCK = 0x63726F7373666164
_TRIGGERS = """select tgname from pg_trigger
where tgrelid = $1::text::regclass and not tgisinternal and tgname like 'crossfade\\_%'"""
_OCCUPIED = """select exists (select from pg_class where relnamespace = to_regnamespace($1))
or exists (select from pg_proc where pronamespace = to_regnamespace($1))"""
_COLUMNS = """select table_schema || '.' || table_name || '.' || column_name
from information_schema.columns where table_schema not in ('pg_catalog', 'information_schema')"""
_RELATIONS = """select n.nspname || '.' || c.relname
from pg_class c join pg_namespace n on n.oid = c.relnamespace"""
_APPLIED = "select name, fingerprint from crossfade.applied"
_APPLY = """insert into crossfade.applied (name, fingerprint) values ($1, $2)
on conflict (name) do update set fingerprint = excluded.fingerprint"""


def statements(mappings: Mappings) -> list[str]:
    """The DDL of tables and indexes, every statement of it without effect where the thing
    exists."""
    compiled = dialect()  # type: ignore[no-untyped-call]
    return [str(item.compile(dialect=compiled)) for item in _elements(mappings)]


def fingerprint(mappings: Mappings) -> str:
    """Of all tables and indexes: another one for another version of the models or the mapping."""
    return _fingerprint(statements(mappings))


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
    """Creates schemas, tables, indexes and triggers that are not there. Changes no table
    that is."""
    async with lanes.transaction(timeout) as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", SCHEMA_LOCK)
        there = await _relations(connection)
        compiled = dialect()  # type: ignore[no-untyped-call]
        for item in _elements(mappings):
            if _name(item) not in there:
                await connection.execute(str(item.compile(dialect=compiled)))
        await _check_columns(connection, mappings)
        await place(connection, mappings)
        await remember(connection, mappings)


def _name(item: ExecutableDDLElement) -> str:
    """schema.name of the table or index that it creates; "" for a schema."""
    made = getattr(item, "element", None)
    if isinstance(made, Table):
        return f"{made.schema}.{made.name}"
    if isinstance(made, Index) and made.table is not None:
        return f"{made.table.schema}.{made.name}"
    return ""


async def _relations(connection: Connection) -> set[str]:
    """Tables and indexes that are there. Their statements are not even sent: "if not exists"
    waits for the table's lock before it looks, and a sidecar that starts beside others would
    be in a deadlock with their writes."""
    return {row[0] for row in await connection.fetch(_RELATIONS)}


async def _check_columns(connection: Connection, mappings: Mappings) -> None:
    """A table of a former version is not changed here, and not worked with either."""
    expected = {
        f"{table.schema}.{table.name}.{column.name}"
        for table in (*tables.metadata.tables.values(), *(each.table for each in mappings))
        for column in table.columns
        if table.schema
    }
    missing = sorted(expected - {row[0] for row in await connection.fetch(_COLUMNS)})
    if missing:
        raise FailedPrecondition(
            f"the database is of another version: {', '.join(missing[:5])} missing "
            f"({len(missing)} columns); run crossfade schema upgrade"
        )


async def place(connection: Connection, mappings: Mappings) -> None:
    """Makes functions and triggers, where they are others than the ones that were made last."""
    there = await _relations(connection)
    applied = {row[0]: row[1] for row in await connection.fetch(_APPLIED)}
    if applied.get("") != (mark := _fingerprint(FUNCTIONS)):
        for statement in FUNCTIONS:
            await connection.execute(statement)
        await connection.execute(_APPLY, "", mark)
    for table, placement in placements(mappings).items():
        name = name_of(table)
        for index, statement in placement.indexes.items():
            if f"{table.schema}.{index}" not in there:
                await connection.execute(statement)
        texts = [
            text for made in placement.triggers for text in (made.create_function, made.create)
        ]
        if applied.get(name) == (mark := _fingerprint(texts)):
            continue
        for row in await connection.fetch(_TRIGGERS, name):
            await connection.execute(f'drop trigger "{row[0]}" on {name}')
        for statement in texts:
            await connection.execute(statement)
        await connection.execute(_APPLY, name, mark)


def _fingerprint(texts: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


async def drop_schema(lanes: Lanes, mappings: Mappings, *, timeout: float = 30.0) -> None:
    """Drops Crossfade's tables and the mapped ones with all documents in them, and a schema
    that is empty then. Other tables stay."""
    wanted = [mapping.table for mapping in mappings]
    functions = [
        trigger.function
        for placement in placements(mappings).values()
        for trigger in placement.triggers
    ]
    async with lanes.transaction(timeout) as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", SCHEMA_LOCK)
        for table in wanted:
            await connection.execute(f"drop table if exists {name_of(table)} cascade")
        for function in functions:
            await connection.execute(f"drop function if exists {function}()")
        await connection.execute(f"drop schema if exists {tables.SCHEMA} cascade")
        for schema in {table.schema for table in wanted if table.schema}:
            if not await connection.fetchval(_OCCUPIED, schema):
                await connection.execute(f'drop schema if exists "{schema}"')
