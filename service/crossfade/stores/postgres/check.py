"""What alembic does not compare: enums, the kinds and conditions of indexes, triggers and their
functions, documents out of place."""

import re
from collections.abc import Iterator

from sqlalchemy import Index
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.schema import CreateIndex

from crossfade.errors import FailedPrecondition
from crossfade.mapping import CollectionMapping, DerivedMapping, Mappings, TextCodec
from crossfade.stores.postgres.former import former, remains, unknown
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.naming import name_of
from crossfade.stores.postgres.placement import FUNCTIONS, placements

_CHECKS = """select a.attname as column, pg_get_constraintdef(c.oid) as definition
from pg_constraint c join pg_attribute a on a.attrelid = c.conrelid and c.conkey = array[a.attnum]
where c.conrelid = to_regclass($1::text) and c.contype = 'c'"""
_TRIGGERS = """select t.tgname as name, t.tgenabled <> 'D' as enabled, p.prosrc as body
from pg_trigger t join pg_proc p on p.oid = t.tgfoid
where t.tgrelid = to_regclass($1::text) and not t.tgisinternal and t.tgname like 'crossfade\\_%'"""
_INDEXES = "select indexrelid::regclass::text from pg_index where indrelid = to_regclass($1::text)"
_KINDS = """select c.relname as name, m.amname as method,
    pg_get_expr(i.indpred, i.indrelid) as condition
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam
where i.indrelid = to_regclass($1::text)"""
_FUNCTIONS = "select proname, prosrc from pg_proc where pronamespace = to_regnamespace('crossfade')"
_STRAYS = "select count(*), min(path) from crossfade.documents where {where}"
_UPGRADE = "crossfade schema upgrade moves them"
_WORDS = re.compile(r"\w+ in \(.*\)", re.IGNORECASE)
_WORD = re.compile(r"'((?:[^']|'')*)'")


async def differences(lanes: Lanes, mappings: Mappings, *, timeout: float) -> list[str]:
    """One line each; none where the database is as the mapping wants it."""
    found: list[str] = []
    async with lanes.transaction(timeout, "repeatable read, read only") as connection:
        found += await _functions(connection)
        for mapping in mappings:
            found += await _words(connection, mapping)
            found += await _indexes(connection, mapping)
        for table, placement in placements(mappings).items():
            name = name_of(table)
            if await connection.fetchval("select to_regclass($1::text)", name) is None:
                continue
            there = {row["name"]: row for row in await connection.fetch(_TRIGGERS, name)}
            for trigger in placement.triggers:
                row = there.pop(trigger.name, None)
                if row is None or not row["enabled"]:
                    found.append(f"missing: trigger {trigger.name} on {name}")
                elif row["body"] != trigger.body:
                    found.append(f"trigger {trigger.name} on {name}: it does something else")
            found += [f"not in the mapping: trigger {left} on {name}" for left in there]
            indexes = {row[0].rpartition(".")[2] for row in await connection.fetch(_INDEXES, name)}
            found += [
                f"missing: index {index} on {name}"
                for index in placement.indexes
                if index not in {text.strip('"') for text in indexes}
            ]
        for mapping in mappings:
            found += await _strays(connection, mapping)
        for one, count in await remains(connection, mappings):
            found.append(f"{count} {one.what}, where they are not looked for; {_UPGRADE}")
        found += [
            f"documents are in {name}, which has no mapping: give it back for one "
            "crossfade schema upgrade, so that they can be read"
            for name in await unknown(connection, mappings)
        ]
    return found


async def _functions(connection: Connection) -> list[str]:
    there = {row["proname"]: row["prosrc"] for row in await connection.fetch(_FUNCTIONS)}
    found = []
    for name, body in _bodies():
        if name not in there:
            found.append(f"missing: function crossfade.{name}")
        elif there[name] != body:
            found.append(f"function crossfade.{name}: it does something else")
    return found


def _bodies() -> Iterator[tuple[str, str]]:
    for statement in FUNCTIONS:
        name = statement.partition("crossfade.")[2].partition("(")[0]
        yield name, statement.split("$$")[1]


async def _words(connection: Connection, mapping: CollectionMapping) -> list[str]:
    """The words of enums, where the table is there."""
    if isinstance(mapping, DerivedMapping):
        return []
    name = name_of(mapping.table)
    expected = {
        entry.column: entry.codec.words
        for entry in mapping.columns
        if isinstance(entry.codec, TextCodec) and entry.codec.words is not None
    }
    if not expected or await connection.fetchval("select to_regclass($1::text)", name) is None:
        return []
    there = {
        row["column"]: {word.replace("''", "'") for word in _WORD.findall(row["definition"])}
        for row in await connection.fetch(_CHECKS, name)
    }
    found = []
    for column, words in expected.items():
        if column not in there:
            found.append(f"missing: check of the words of {name}.{column}")
            continue
        found += [
            f"column {name}.{column}: the check does not know the word {word!r}"
            for word in sorted(words - there[column])
        ]
        found += [
            f"column {name}.{column}: the check lets in {word!r}, which the mapping does not"
            for word in sorted(there[column] - words)
        ]
    return found


async def _indexes(connection: Connection, mapping: CollectionMapping) -> list[str]:
    """How the indexes that are there are made, and for which rows. Conditions are told apart
    by whether there is one, and by their words: PostgreSQL writes the rest its own way."""
    name = name_of(mapping.table)
    there = {row["name"]: row for row in await connection.fetch(_KINDS, name)}
    found = []
    for index in sorted(mapping.table.indexes, key=lambda index: str(index.name)):
        row = there.get(str(index.name))
        if row is None:
            continue
        method = index.dialect_options["postgresql"]["using"] or "btree"
        if row["method"] != method:
            found.append(f"index {index.name} on {name}: it is {row['method']}, not {method}")
        wanted, is_now = _condition(index), row["condition"] or ""
        if bool(wanted) != bool(is_now) or (
            _WORDS.fullmatch(wanted) and set(_WORD.findall(wanted)) != set(_WORD.findall(is_now))
        ):
            found.append(
                f"index {index.name} on {name}: it has {_rows(is_now)}, not {_rows(wanted)}"
            )
    return found


def _condition(index: Index) -> str:
    compiled = dialect()  # type: ignore[no-untyped-call]
    return str(CreateIndex(index).compile(dialect=compiled)).partition(" WHERE ")[2]


def _rows(condition: str) -> str:
    return f"the rows with {condition}" if condition else "all rows"


async def refuse_strays(lanes: Lanes, mappings: Mappings, *, timeout: float) -> None:
    """Raises FailedPrecondition where documents are in another table than the mapping says, or
    values in a column that it does not have: they would be taken for missing."""
    for mapping in mappings:
        found = await lanes.fetchval(
            f"select exists (select from crossfade.documents where {stray_condition(mapping)})",
            *stray_arguments(mapping),
            timeout=timeout,
        )
        if found:
            raise FailedPrecondition(
                f"documents of {mapping.pattern} are still in the generic table, from before it "
                f"was mapped; run crossfade schema upgrade"
            )
    async with lanes.transaction(timeout, "repeatable read, read only") as connection:
        for one in await former(connection, mappings):
            if await connection.fetchval(
                f"select exists (select from {one.name} where {one.held})"
            ):
                raise FailedPrecondition(
                    f"{one.what}, from before the mapping changed; run crossfade schema upgrade"
                )


def stray_condition(mapping: CollectionMapping) -> str:
    """Finds the documents of a mapped collection in the generic table. $1: the collection id,
    $2: the root collection's."""
    if mapping.parent is None:
        return "collection_path = $1 and $2::text is not null"
    return """collection_id = $1 and collection_path like replace($2, '_', '\\_') || '/%'
        and array_length(string_to_array(collection_path, '/'), 1) = 3"""


def stray_arguments(mapping: CollectionMapping) -> tuple[str, str]:
    parent = mapping.parent or mapping
    return mapping.collection_id, parent.collection_id


async def _strays(connection: Connection, mapping: CollectionMapping) -> list[str]:
    if await connection.fetchval("select to_regclass('crossfade.documents')") is None:
        return []
    where = stray_condition(mapping)
    row = await connection.fetchrow(_STRAYS.format(where=where), *stray_arguments(mapping))
    if row is None or not row[0]:
        return []
    found = f"{row[0]} documents of {mapping.pattern} are in the generic table"
    return [f"{found}, where they are not looked for; {_UPGRADE}"]
