"""Mappings that were: what is still in their tables, and how it gets to where it is looked for.

Whenever the schema is made, what a mapped table's rows mean is noted in `crossfade.applied`,
beside the fingerprints of its triggers. So documents of a collection that has no mapping any
more, and values of a column that its mapping no longer has, can be read as what they are
without the code that wrote them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
from sqlalchemy import Column, MetaData, Table, Text

from crossfade.document import Database
from crossfade.mapping import (
    ODD,
    BoolCodec,
    BytesCodec,
    Codec,
    CollectionMapping,
    DerivedMapping,
    DoubleCodec,
    FieldColumn,
    FromColumns,
    FromElements,
    Int8Codec,
    IntArrayCodec,
    JsonCodec,
    Mappings,
    TextCodec,
    TimeCodec,
    document_columns,
    from_json,
    to_json,
)
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.naming import name_of, quoted
from crossfade.stores.postgres.rows import DocumentTable

BATCH = 500
_PREFIX = "mapping of "
_NOTES = f"select name, fingerprint from crossfade.applied where name like '{_PREFIX}%'"
_TABLES = f"""select name from crossfade.applied
where name <> '' and name not like '{_PREFIX}%' order by 1"""
_NOTE = """insert into crossfade.applied (name, fingerprint) values ($1, $2)
on conflict (name) do update set fingerprint = excluded.fingerprint"""
_ATTRIBUTES = """select attname from pg_attribute
where attrelid = to_regclass($1::text) and attnum > 0 and not attisdropped"""
_FORGET = "delete from crossfade.applied where name = any($1::text[])"
_NEWER = " where (t.epoch, t.update_time) < (excluded.epoch, excluded.update_time)"
_REFERENCES = """select conrelid::regclass::text as child, conname as name from pg_constraint
where contype = 'f' and confrelid = to_regclass($1)
    and conrelid in (select to_regclass(name) from unnest($2::text[]) name)"""
_TRIGGERS = """select t.tgname as name, t.tgfoid::regprocedure::text as function from pg_trigger t
where t.tgrelid = to_regclass($1) and not t.tgisinternal and t.tgname like 'crossfade\\_%'"""
_CODECS: dict[str, Codec] = {
    codec.sql: codec
    for codec in (
        *(TextCodec(), Int8Codec(), DoubleCodec(), BoolCodec(), BytesCodec(), TimeCodec()),
        *(JsonCodec(), IntArrayCodec()),
    )
}
Note: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Former:
    """A table as its rows were written. `columns`: those that its mapping no longer has; None
    where there is no mapping of the table any more."""

    name: str
    mapping: CollectionMapping
    columns: tuple[FieldColumn, ...] | None

    @property
    def held(self) -> str:
        """The condition on rows that hold something of it."""
        if self.columns is None:
            return "true"
        return " or ".join(f"{quoted(entry.column)} is not null" for entry in self.columns)

    @property
    def what(self) -> str:
        if self.columns is None:
            return f"documents of {self.mapping.pattern} are in {self.name}"
        fields = ", ".join(entry.field for entry in self.columns)
        return f"documents of {self.mapping.pattern} have {fields} in columns of {self.name}"


# --- notes ---------------------------------------------------------------------------------------


async def remember(connection: Connection, mappings: Mappings) -> None:
    """Notes the mappings. Columns that were noted before stay noted until they are empty."""
    notes = await _notes(connection)
    for mapping in mappings:
        name = name_of(mapping.table)
        note = _note(mapping)
        before = notes.get(name, note)
        there = {column for _, column, _ in note["columns"]}
        note["columns"] += [entry for entry in before["columns"] if entry[1] not in there]
        if notes.get(name) != note:
            await _write(connection, name, note)


async def former(connection: Connection, mappings: Mappings) -> list[Former]:
    """What is noted and no longer in the mappings, derived collections before their owners."""
    if await connection.fetchval("select to_regclass('crossfade.applied')") is None:
        return []
    notes = await _notes(connection)
    current = {name_of(mapping.table): mapping for mapping in mappings}
    found = []
    for name in sorted(notes, key=lambda name: (notes[name]["owner"] is None, name)):
        there = {row[0] for row in await connection.fetch(_ATTRIBUTES, name)}
        if not there:
            continue
        note = notes[name]
        note["columns"] = [entry for entry in note["columns"] if entry[1] in there]
        mapping = _mapping(notes, name)
        if name not in current:
            found.append(Former(name, mapping, None))
        elif not isinstance(mapping, DerivedMapping):
            kept = {entry.column for entry in current[name].columns}
            gone = tuple(entry for entry in mapping.columns if entry.column not in kept)
            if gone:
                found.append(Former(name, mapping, gone))
    return found


async def remains(connection: Connection, mappings: Mappings) -> list[tuple[Former, int]]:
    """Those that still hold something, and how many documents it is of."""
    counted = []
    for one in await former(connection, mappings):
        count = await connection.fetchval(f"select count(*) from {one.name} where {one.held}")
        if count:
            counted.append((one, count))
    return counted


async def unknown(connection: Connection, mappings: Mappings) -> list[str]:
    """Tables without a mapping of which nothing is noted: they had one in a former version."""
    if await connection.fetchval("select to_regclass('crossfade.applied')") is None:
        return []
    current = {name_of(mapping.table) for mapping in mappings}
    notes = await _notes(connection)
    names = [row[0] for row in await connection.fetch(_TABLES)]
    return [
        name
        for name in names
        if name not in current
        and name not in notes
        and await connection.fetchval("select to_regclass($1::text)", name) is not None
        and await connection.fetchval(f"select exists (select from {name})")
    ]


async def forget(lanes: Lanes, mappings: Mappings, *, timeout: float) -> None:
    """Of tables that are empty and columns that hold nothing: the notes; the triggers of the
    tables, and what mapped ones refer to them by. The tables themselves stay."""
    async with lanes.transaction(timeout) as connection:
        notes = await _notes(connection)
        kept = {name_of(mapping.table): _note(mapping) for mapping in mappings}
        for name in notes.keys() - kept.keys():
            there = await connection.fetchval("select to_regclass($1::text)", name)
            if there is not None:
                if await connection.fetchval(f"select exists (select from {name})"):
                    continue
                await _detach(connection, name, sorted(kept))
            await connection.execute(_FORGET, [name, _PREFIX + name])
        held = {one.name for one, _ in await remains(connection, mappings)}
        for name, note in kept.items():
            if name not in held and notes.get(name) != note:
                await _write(connection, name, note)


async def _detach(connection: Connection, name: str, mapped: Sequence[str]) -> None:
    for row in await connection.fetch(_REFERENCES, name, mapped):
        await connection.execute(
            f"alter table {row['child']} drop constraint {quoted(row['name'])}"
        )
    for row in await connection.fetch(_TRIGGERS, name):
        await connection.execute(f"drop trigger {quoted(row['name'])} on {name}")
        await connection.execute(f"drop function if exists {row['function']}")


async def _notes(connection: Connection) -> dict[str, Note]:
    rows = await connection.fetch(_NOTES)
    return {row[0].removeprefix(_PREFIX): orjson.loads(row[1]) for row in rows}


async def _write(connection: Connection, name: str, note: Note) -> None:
    await connection.execute(_NOTE, _PREFIX + name, orjson.dumps(note).decode())


def _note(mapping: CollectionMapping) -> Note:
    """What a mapping's rows are read by. Fields of a derived one are columns of its owner."""
    derived = isinstance(mapping, DerivedMapping)
    note: Note = {
        "collection": mapping.collection_id,
        "schema": mapping.table.schema,
        "table": str(mapping.table.name),
        "parent": None if mapping.parent is None else name_of(mapping.parent.table),
        "columns": []
        if derived
        else [[entry.field, entry.column, entry.codec.sql] for entry in mapping.columns],
        "uniques": [entry.column for entry in mapping.uniques],
        "owner": None,
        "rule": None,
    }
    if isinstance(mapping, DerivedMapping):
        rule = mapping.rule
        note["owner"] = name_of(mapping.owner.table)
        note["rule"] = (
            {"key": rule.key, "fields": dict(rule.fields)}
            if isinstance(rule, FromColumns)
            else {"column": rule.column, "member": rule.member}
        )
    return note


def _mapping(notes: dict[str, Note], name: str) -> CollectionMapping:
    """A mapping that reads what the noted one wrote. It has no constraints."""
    note = notes[name]
    columns = [FieldColumn(field, column, _CODECS[sql]) for field, column, sql in note["columns"]]
    table = Table(
        note["table"],
        MetaData(schema=note["schema"]),
        *document_columns(),
        *(Column(entry.column, Text, unique=entry.column in note["uniques"]) for entry in columns),
    )
    if note["owner"] is not None:
        rule = note["rule"]
        return DerivedMapping(
            note["collection"],
            table,
            _mapping(notes, note["owner"]),
            FromColumns(**rule) if "key" in rule else FromElements(**rule),
        )
    parent = None if note["parent"] is None else _mapping(notes, note["parent"])
    return CollectionMapping(note["collection"], table, columns, parent=parent)


# --- giving back ---------------------------------------------------------------------------------


class GivingBack:
    """Moves documents of former mappings to the generic table, and values of former columns
    to the remainder. In batches, each a transaction of its own; may be repeated."""

    def __init__(self, lanes: Lanes, mappings: Mappings, database: Database) -> None:
        self._lanes = lanes
        self._mappings = mappings
        self._database = database
        self._generic = DocumentTable(None, database)

    async def run(self, *, timeout: float) -> int:
        """Returns how many documents there were."""
        async with self._lanes.transaction(timeout) as connection:
            found = await former(connection, self._mappings)
        moved = 0
        for one in found:
            table = DocumentTable(one.mapping, self._database)
            while count := await self._some(one, table, timeout):
                moved += count
        return moved

    async def _some(self, one: Former, table: DocumentTable, timeout: float) -> int:
        async with self._lanes.transaction(timeout) as connection:
            # The owners of derived documents need no locks: they give them their content back
            # before they change.
            locked = await connection.fetch(
                f"select id from {one.name} where {one.held} order by id limit {BATCH} for update"
            )
            keys = [row[0] for row in locked]
            rows = await connection.fetch(
                f"select {table.select}, m.misfits from {table.source} t "
                f"join {one.name} m on m.id = t.id where t.id = any($1::text[])",
                keys,
            )
            if one.columns is None:
                await self._documents(connection, table, rows)
            else:
                await self._values(connection, one, one.columns, table, rows)
        return len(keys)

    async def _documents(
        self, connection: Connection, table: DocumentTable, rows: Sequence[Any]
    ) -> None:
        values = []
        for row in rows:
            document = table.document(row)
            values.append(
                [
                    *self._generic.values(document.path, document.fields),
                    document.create_time,
                    document.update_time,
                    row[table.epoch_index],
                ]
            )
        await connection.executemany(self._generic.upsert + _NEWER, values)
        # One by one: a statement cannot delete a row that it has just taken a reference from.
        await connection.executemany(
            f"delete from {table.name} where id = $1", [[row[0]] for row in rows]
        )

    async def _values(
        self,
        connection: Connection,
        one: Former,
        columns: Sequence[FieldColumn],
        table: DocumentTable,
        rows: Sequence[Any],
    ) -> None:
        empty = ", ".join(f"{quoted(entry.column)} = null" for entry in columns)
        gone = {entry.field for entry in columns}
        changes = []
        for row in rows:
            rest: Any = from_json(row[table.rest_index] or {})
            fields = table.fields(row)
            remainder = to_json(rest | {name: fields[name] for name in gone & fields.keys()})
            misfits = list(_misfits(row["misfits"], remainder))
            changes.append([row[0], remainder, misfits or None])
        await connection.executemany(
            f"update {one.name} set remainder = $2::jsonb, misfits = $3::text[], {empty} "
            "where id = $1",
            changes,
        )


def _misfits(before: Sequence[str] | None, remainder: Any) -> Iterator[str]:
    yield from before or ()
    if ODD in remainder and ODD not in (before or ()):
        yield ODD
