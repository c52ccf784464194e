"""Derived collections in SQL: how they are read, and what moves their content between their
own remainder and their owner's row (see placement.py)."""

from collections.abc import Iterable

from crossfade.mapping import (
    Codec,
    DerivedMapping,
    FromColumns,
    FromElements,
    TimeCodec,
)
from crossfade.stores.postgres.events import FRESH, On
from crossfade.stores.postgres.naming import literal, lock, name_of, quoted, share


def place_derived(mapping: DerivedMapping, on: On) -> None:
    if isinstance(mapping.rule, FromColumns):
        _from_columns(mapping, mapping.rule, on)
    else:
        _from_elements(mapping, mapping.rule, on)


def _from_columns(mapping: DerivedMapping, rule: FromColumns, on: On) -> None:
    table, owner, key = name_of(mapping.table), name_of(mapping.owner.table), quoted(rule.key)
    parts = [
        (literal(entry.field), entry.codec, quoted(rule.fields[entry.field]))
        for entry in mapping.columns
    ]

    def agrees(row: str, remainder: str) -> str:
        terms = [
            f"crossfade.held({remainder}, {name}) = {_tagged(codec, f'{row}.{column}')}"
            for name, codec, column in parts
        ]
        return " and ".join(terms) or "true"

    def given(row: str) -> str:
        """The content as the owner's row has it, into the remainder."""
        remainder, misfits = "d.remainder", "d.misfits"
        for name, codec, column in parts:
            value = _tagged(codec, f"{row}.{column}")
            remainder = f"crossfade.with_field({remainder}, {name}, {value})"
            misfits = f"crossfade.with_misfit({misfits}, {name})"
        return f"remainder = {remainder}, misfits = {misfits}, owner = null"

    look = f"""select o.id into found_id from {owner} o
where o.{key} = new.id and {agrees("o", "new.remainder")} for share;"""
    remainder, misfits = "{0}.remainder", "{0}.misfits"
    for name, _, _ in parts:
        remainder = f"crossfade.without_field({remainder}, {name})"
        misfits = f"crossfade.without_misfit({misfits}, {name})"

    on(mapping.table, "place").add(
        "true",
        f"""new.owner := null;
{look}
if not found then
    perform {share(table, "new.id")};
    {look}
end if;
if found then
    new.owner := found_id;
    new.remainder := {remainder.format("new")};
    new.misfits := {misfits.format("new")};
end if;""",
    )
    columns = dict.fromkeys([key, *(column for _, _, column in parts)])
    changed = _distinct(columns)
    # Locked before the row of the derived document, as whoever writes that one does.
    give = f"""perform {lock(table, f"old.{key}")};
update {table} d set {given("old")} where d.owner = old.id;"""
    on(mapping.owner.table, "keep").add(f"old.{key} is not null and ({changed})", give)
    on(mapping.owner.table, "part").add(f"old.{key} is not null", give)

    def take(row: str, source: str = "") -> str:
        return f"""update {table} d set owner = {row}.id, remainder = {remainder.format("d")},
    misfits = {misfits.format("d")} {source}
where d.id = {row}.{key} and d.owner is null and {agrees(row, "d.remainder")};"""

    on(mapping.owner.table, "arrive").add_for_all(table, key, take("n", f"from {FRESH} n"))
    on(mapping.owner.table, "change").add(
        f"new.{key} is not null and ({changed})",
        f"perform {lock(table, f'new.{key}')};\n{take('new')}",
    )


def _from_elements(mapping: DerivedMapping, rule: FromElements, on: On) -> None:
    table, owner = name_of(mapping.table), name_of(mapping.owner.table)
    column, member = quoted(rule.column), literal(rule.member)

    def element(row: str, key: str) -> str:
        return f"crossfade.element({row}.{column}, {member}, {_suffix(key)})"

    prefix = "regexp_replace(new.id, '_[^_]*$', '')"
    look = f"""select o.id into found_id from {owner} o
where o.id = {prefix} and {element("o", "new.id")} = new.remainder for share;"""
    on(mapping.table, "place").add(
        "true",
        f"""new.owner := null;
{look}
if not found then
    perform {share(table, prefix)};
    {look}
end if;
if found then
    new.owner := found_id;
    new.remainder := null;
end if;""",
    )
    changed = _distinct([column])
    give = f"""perform {lock(table, "old.id")};
update {table} d set remainder = {element("old", "d.id")}, owner = null where d.owner = old.id"""
    on(mapping.owner.table, "keep").add(
        f"old.{column} is not null and ({changed})",
        f"{give}\n    and {element('new', 'd.id')} is distinct from {element('old', 'd.id')};",
    )
    on(mapping.owner.table, "part").add(f"old.{column} is not null", f"{give};")

    def take(row: str, source: str = "") -> str:
        return f"""update {table} d set owner = {row}.id, remainder = null
from {source} jsonb_array_elements(
    case when jsonb_typeof({row}.{column}) = 'array' then {row}.{column} else '[]' end) item
where d.id = {row}.id || '_' || (item ->> {member}) and d.owner is null
    and d.remainder = {element(row, "d.id")};"""

    on(mapping.owner.table, "arrive").add_for_all(table, "id", take("n", f"{FRESH} n,"))
    on(mapping.owner.table, "change").add(
        f"new.{column} is not null and ({changed})",
        f"perform {lock(table, 'new.id')};\n{take('new')}",
    )


def derived_source(mapping: DerivedMapping, key: str | None = None) -> str:
    """What is read of a derived collection, as a table with the layout of all others; with a
    `key` (SQL), only the document that has it: a union of joins is not looked through for
    one by the planner."""
    table, owner, rule = name_of(mapping.table), name_of(mapping.owner.table), mapping.rule
    times = "d.misfits, d.create_time, d.update_time, d.epoch"
    only = "true" if key is None else f"d.id = {key}"
    if isinstance(rule, FromColumns):
        columns = ", ".join(
            f"o.{quoted(rule.fields[entry.field])} as {quoted(entry.column)}"
            for entry in mapping.columns
        )
        return (
            f"(select d.id, {columns}, d.remainder, {times} "
            f"from {table} d left join {owner} o on o.id = d.owner where {only})"
        )
    element = (
        f"crossfade.element(o.{quoted(rule.column)}, {literal(rule.member)}, {_suffix('d.id')})"
    )
    # In two halves, so that a condition on the remainder is an index lookup in the first.
    return (
        f"(select d.id, d.remainder, {times} from {table} d where d.owner is null and {only} "
        f"union all select d.id, {element}, {times} "
        f"from {table} d join {owner} o on o.id = d.owner where {only})"
    )


def _suffix(key: str) -> str:
    return f"substring({key} from '_([^_]*)$')"


def _distinct(columns: Iterable[str]) -> str:
    return " or ".join(f"old.{column} is distinct from new.{column}" for column in columns)


def _tagged(codec: Codec, column: str) -> str:
    """A column's value in the tagged encoding."""
    if isinstance(codec, TimeCodec):
        return f"jsonb_build_object('$t', (extract(epoch from {column}) * 1000000)::int8)"
    return f"to_jsonb({column})"
