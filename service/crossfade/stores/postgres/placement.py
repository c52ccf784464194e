"""Where values live while constraints stand: the triggers that let a strict schema refuse nothing.

A reference whose parent is not there and a unique value that another document holds are
moved to the remainder as the row is inserted; what they waited for moves them to their
column. Derived documents are moved between their remainder and their owner alike. It
happens inside the statement that writes, whichever it is: a put stays one round trip, a
table without constraints has no triggers, and a row without such values calls none.

Moves never miss one another, because both sides lock before they look:

- A child that finds no parent locks the parent's name (shared) and looks again; a parent
  that was inserted locks its name (exclusively) and then looks for children that wait.
- Who places a unique value locks it and then looks for a holder; who let it go locks it
  and then looks for one who waits.
- A derived document reads its owner FOR SHARE, so the owner's content stays as it was
  compared; an owner that changes first gives its derived documents their old content.
  One that found no owner locks its name and looks again, as a child does.

In a row trigger of READ COMMITTED every query sees what was committed while it waited.
Names that are locked are transaction-level advisory locks of a space of their own, taken
after all locks of paths and version rows (docs/adr/0006-placement-by-triggers.md).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import dialect

from crossfade.mapping import (
    INDEXED_TEXT_BYTES,
    Codec,
    CollectionMapping,
    DerivedMapping,
    FieldColumn,
    FromColumns,
    FromElements,
    Mappings,
    TimeCodec,
)

_preparer = dialect().identifier_preparer  # type: ignore[no-untyped-call]

# Remainders in the tagged encoding of mapping/tagged.py: plain maps, or lists of pairs
# under "$m" where one of the names is odd.
FUNCTIONS = (
    """create or replace function crossfade.held(remainder jsonb, field text) returns jsonb
language sql immutable parallel safe as $$
    select case when remainder ? '$m' then (
        select pair -> 1 from jsonb_array_elements(remainder -> '$m') pair
        where pair -> 0 = to_jsonb(field) limit 1)
    else remainder -> field end
$$""",
    f"""create or replace function crossfade.waiting(remainder jsonb, field text) returns text
language sql immutable parallel safe as $$
    select case when jsonb_typeof(value) = 'string' and octet_length(value #>> '{{}}')
        <= {INDEXED_TEXT_BYTES} then value #>> '{{}}' end
    from (select crossfade.held(remainder, field) as value) as held
$$""",
    """create or replace function crossfade.with_field(remainder jsonb, field text, value jsonb)
returns jsonb language sql immutable parallel safe as $$
    select case when remainder is null then jsonb_build_object(field, value)
        when remainder ? '$m' then jsonb_build_object('$m',
            (remainder -> '$m') || jsonb_build_array(jsonb_build_array(field, value)))
        else remainder || jsonb_build_object(field, value) end
$$""",
    """create or replace function crossfade.without_field(remainder jsonb, field text)
returns jsonb language sql immutable parallel safe as $$
    select case when remainder ? '$m' then jsonb_build_object('$m', (
        select jsonb_agg(pair) from jsonb_array_elements(remainder -> '$m') pair
        where pair -> 0 <> to_jsonb(field)))
    else nullif(remainder - field, '{}'::jsonb) end
$$""",
    """create or replace function crossfade.with_misfit(misfits text[], field text)
returns text[] language sql immutable parallel safe as $$
    select case when field = any(misfits) then misfits else array_append(misfits, field) end
$$""",
    """create or replace function crossfade.without_misfit(misfits text[], field text)
returns text[] language sql immutable parallel safe as $$
    select nullif(array_remove(misfits, field), '{}'::text[])
$$""",
    # The one element with this value of a member; none, where several have it.
    """create or replace function crossfade.element(list jsonb, member text, wanted text)
returns jsonb language sql immutable parallel safe as $$
    select case when count(*) = 1 then jsonb_agg(item) -> 0 end from jsonb_array_elements(
        case when jsonb_typeof(list) = 'array' then list else '[]'::jsonb end) item
    where item ->> member = wanted
$$""",
    # A name of the second key space that commits never lock paths in.
    """create or replace function crossfade.name_lock(kind text, name text) returns bigint
language sql immutable parallel safe as $$
    select hashtextextended(kind || ':' || name, 11)
$$""",
)


@dataclass
class _Event:
    """One trigger of a table: when it fires, and what it does then."""

    conditions: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)

    def add(self, condition: str, action: str) -> None:
        self.conditions.append(condition)
        self.actions.append(f"if {condition} then\n{action}\nend if;")


_On: TypeAlias = Callable[[Table, str], _Event]

_EVENTS = {
    "place": ("before", "insert", "new"),
    "keep": ("before", "update", "new"),
    "part": ("before", "delete", "old"),
    "arrive": ("after", "insert", "new"),
    "change": ("after", "update", "new"),
    "leave": ("after", "delete", "old"),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """What a mapped table needs in PostgreSQL besides its definition. `triggers` are the
    statements that make them, functions first; every statement may be repeated."""

    indexes: tuple[str, ...]
    triggers: tuple[str, ...]


def placements(mappings: Mappings) -> dict[Table, Placement]:
    """By mapped table. Those of its triggers that serve other tables are with it, too."""
    events: dict[Table, dict[str, _Event]] = {mapping.table: {} for mapping in mappings}

    def on(table: Table, event: str) -> _Event:
        return events[table].setdefault(event, _Event())

    indexes: dict[Table, list[str]] = {}
    for mapping in mappings:
        made = indexes.setdefault(mapping.table, [])
        if isinstance(mapping, DerivedMapping):
            _derived(mapping, on)
            continue
        if mapping.parent is not None:
            _nested(mapping.table, mapping.parent.table, on)
        for reference in mapping.references:
            made.append(_waiting_index(mapping.table, reference.entry))
            _reference(mapping, reference.entry, reference.target, on)
        for entry in mapping.uniques:
            made.append(_waiting_index(mapping.table, entry))
            _unique(mapping, entry, on)
    return {
        table: Placement(
            tuple(indexes[table]),
            tuple(text for name in made for text in _trigger(table, name, made[name])),
        )
        for table, made in events.items()
    }


def _trigger(table: Table, name: str, event: _Event) -> Iterator[str]:
    when, what, result = _EVENTS[name]
    function = f"{_schema(table)}{_quoted(f'{table.name}_{name}')}"
    actions = "\n".join(event.actions)
    yield (
        f"create or replace function {function}() returns trigger language plpgsql as $body$\n"
        f"declare\nfound_id text;\nbegin\n{actions}\nreturn {result};\nend\n$body$"
    )
    yield (
        f"create or replace trigger {_quoted(f'crossfade_{name}')} {when} {what} "
        f"on {name_of(table)} for each row\n"
        f"when ({' or '.join(f'({text})' for text in dict.fromkeys(event.conditions))}) "
        f"execute function {function}()"
    )


def _waiting_index(table: Table, entry: FieldColumn) -> str:
    """Finds the rows that hold a value back, by the value."""
    return (
        f"create index if not exists {_quoted(f'{table.name}_{entry.column}_waiting')} "
        f"on {name_of(table)} (crossfade.waiting(remainder, {_literal(entry.field)})) "
        f"where misfits @> array[{_literal(entry.field)}]"
    )


# --- references and uniques ----------------------------------------------------------------------


def _reference(mapping: CollectionMapping, entry: FieldColumn, target: Table, on: _On) -> None:
    child, parent, column = name_of(mapping.table), name_of(target), _quoted(entry.column)
    own = mapping.table is target
    present = f"new.{column} is not null" + (f" and new.{column} <> new.id" if own else "")
    look = f"perform 1 from {parent} p where p.id = new.{column} for key share;"
    on(mapping.table, "place").add(
        present,
        f"""{look}
if not found then
    perform pg_advisory_xact_lock_shared({_lock(parent, f"new.{column}")});
    {look}
    if not found then
        {_hold_back(entry)}
    end if;
end if;""",
    )
    on(target, "arrive").add(
        "true",
        f"""perform pg_advisory_xact_lock({_lock(parent, "new.id")});
update {child} t set {_promote(entry)} where {_waits(entry, "new.id")};""",
    )
    others = " and t.id <> old.id" if own else ""
    on(target, "part").add(
        "true", f"update {child} t set {_demote(entry)} where t.{column} = old.id{others};"
    )


def _nested(table: Table, target: Table, on: _On) -> None:
    """The parent of a subcollection's document is part of its id; the column only says
    whether it is there."""
    child, parent, key = name_of(table), name_of(target), "split_part(new.id, '/', 1)"
    look = f"select p.id into found_id from {parent} p where p.id = {key} for key share;"
    on(table, "place").add(
        "true",
        f"""{look}
if not found then
    perform pg_advisory_xact_lock_shared({_lock(parent, key)});
    {look}
end if;
new.parent := found_id;""",
    )
    on(target, "arrive").add(
        "true",
        f"""perform pg_advisory_xact_lock({_lock(parent, "new.id")});
update {child} t set parent = new.id
where t.id >= new.id || '/' and t.id < new.id || '0' and t.parent is null;""",
    )
    on(target, "part").add("true", f"update {child} t set parent = null where t.parent = old.id;")


def _unique(mapping: CollectionMapping, entry: FieldColumn, on: _On) -> None:
    table, column = name_of(mapping.table), _quoted(entry.column)
    lock = f"{table}.{column}"
    on(mapping.table, "place").add(
        f"new.{column} is not null",
        f"""perform pg_advisory_xact_lock({_lock(lock, f"new.{column}")});
perform 1 from {table} t where t.{column} = new.{column} and t.id <> new.id;
if found then
    {_hold_back(entry)}
end if;""",
    )
    waits = _waits(entry, f"old.{column}")
    # Who waits may be about to change: then the next one is asked.
    promote = f"""perform pg_advisory_xact_lock({_lock(lock, f"old.{column}")});
while not exists (select from {table} t where t.{column} = old.{column})
    and exists (select from {table} t where {waits})
loop
    select t.id into found_id from {table} t where {waits} order by t.id limit 1 for update;
    update {table} t set {_promote(entry)} where t.id = found_id and {waits};
end loop;"""
    on(mapping.table, "change").add(
        f"old.{column} is not null and old.{column} is distinct from new.{column}", promote
    )
    on(mapping.table, "leave").add(f"old.{column} is not null", promote)


def _waits(entry: FieldColumn, value: str) -> str:
    name = _literal(entry.field)
    return f"t.misfits @> array[{name}] and crossfade.waiting(t.remainder, {name}) = {value}"


def _promote(entry: FieldColumn) -> str:
    name = _literal(entry.field)
    return (
        f"{_quoted(entry.column)} = crossfade.waiting(t.remainder, {name}), "
        f"remainder = crossfade.without_field(t.remainder, {name}), "
        f"misfits = crossfade.without_misfit(t.misfits, {name})"
    )


def _demote(entry: FieldColumn) -> str:
    name, column = _literal(entry.field), _quoted(entry.column)
    return (
        f"remainder = crossfade.with_field(t.remainder, {name}, to_jsonb(t.{column})), "
        f"misfits = crossfade.with_misfit(t.misfits, {name}), {column} = null"
    )


def _hold_back(entry: FieldColumn) -> str:
    name, column = _literal(entry.field), f"new.{_quoted(entry.column)}"
    return (
        f"new.remainder := crossfade.with_field(new.remainder, {name}, to_jsonb({column})); "
        f"new.misfits := crossfade.with_misfit(new.misfits, {name}); {column} := null;"
    )


# --- derived collections -------------------------------------------------------------------------


def _derived(mapping: DerivedMapping, on: _On) -> None:
    if isinstance(mapping.rule, FromColumns):
        _from_columns(mapping, mapping.rule, on)
    else:
        _from_elements(mapping, mapping.rule, on)


def _from_columns(mapping: DerivedMapping, rule: FromColumns, on: _On) -> None:
    table, owner, key = name_of(mapping.table), name_of(mapping.owner.table), _quoted(rule.key)
    parts = [
        (_literal(entry.field), entry.codec, _quoted(rule.fields[entry.field]))
        for entry in mapping.columns
    ]

    def agrees(row: str, remainder: str) -> str:
        return " and ".join(
            f"crossfade.held({remainder}, {name}) = {_tagged(codec, f'{row}.{column}')}"
            for name, codec, column in parts
        )

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
    perform pg_advisory_xact_lock_shared({_lock(table, "new.id")});
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
    give = f"""perform pg_advisory_xact_lock({_lock(table, f"old.{key}")});
update {table} d set {given("old")} where d.owner = old.id;"""
    on(mapping.owner.table, "keep").add(f"old.{key} is not null and ({changed})", give)
    on(mapping.owner.table, "part").add(f"old.{key} is not null", give)
    take = f"""perform pg_advisory_xact_lock({_lock(table, f"new.{key}")});
update {table} d set owner = new.id, remainder = {remainder.format("d")},
    misfits = {misfits.format("d")}
where d.id = new.{key} and d.owner is null and {agrees("new", "d.remainder")};"""
    on(mapping.owner.table, "arrive").add(f"new.{key} is not null", take)
    on(mapping.owner.table, "change").add(f"new.{key} is not null and ({changed})", take)


def _from_elements(mapping: DerivedMapping, rule: FromElements, on: _On) -> None:
    table, owner = name_of(mapping.table), name_of(mapping.owner.table)
    column, member = _quoted(rule.column), _literal(rule.member)

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
    perform pg_advisory_xact_lock_shared({_lock(table, prefix)});
    {look}
end if;
if found then
    new.owner := found_id;
    new.remainder := null;
end if;""",
    )
    changed = _distinct([column])
    give = f"""perform pg_advisory_xact_lock({_lock(table, "old.id")});
update {table} d set remainder = {element("old", "d.id")}, owner = null where d.owner = old.id"""
    on(mapping.owner.table, "keep").add(
        f"old.{column} is not null and ({changed})",
        f"{give}\n    and {element('new', 'd.id')} is distinct from {element('old', 'd.id')};",
    )
    on(mapping.owner.table, "part").add(f"old.{column} is not null", f"{give};")
    take = f"""perform pg_advisory_xact_lock({_lock(table, "new.id")});
update {table} d set owner = new.id, remainder = null
where d.owner is null and d.remainder = {element("new", "d.id")} and d.id = any(array(
    select new.id || '_' || (item ->> {member}) from jsonb_array_elements(
        case when jsonb_typeof(new.{column}) = 'array' then new.{column} else '[]' end) item));"""
    on(mapping.owner.table, "arrive").add(f"new.{column} is not null", take)
    on(mapping.owner.table, "change").add(f"new.{column} is not null and ({changed})", take)


def derived_source(mapping: DerivedMapping, key: str | None = None) -> str:
    """What is read of a derived collection, as a table with the layout of all others; with a
    `key` (SQL), only the document that has it: a union of joins is not looked through for
    one by the planner."""
    table, owner, rule = name_of(mapping.table), name_of(mapping.owner.table), mapping.rule
    times = "d.misfits, d.create_time, d.update_time, d.epoch"
    only = "true" if key is None else f"d.id = {key}"
    if isinstance(rule, FromColumns):
        columns = ", ".join(
            f"o.{_quoted(rule.fields[entry.field])} as {_quoted(entry.column)}"
            for entry in mapping.columns
        )
        return (
            f"(select d.id, {columns}, d.remainder, {times} "
            f"from {table} d left join {owner} o on o.id = d.owner where {only})"
        )
    element = (
        f"crossfade.element(o.{_quoted(rule.column)}, {_literal(rule.member)}, {_suffix('d.id')})"
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


# --- names ---------------------------------------------------------------------------------------


def name_of(table: Table) -> str:
    return _preparer.format_table(table)


def _schema(table: Table) -> str:
    return f"{_preparer.quote(table.schema)}." if table.schema else ""


def _quoted(name: str) -> str:
    """Always in quotes: PL/pgSQL reserves words that SQL does not ("by")."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _lock(kind: str, name: str) -> str:
    return f"crossfade.name_lock({_literal(kind)}, {name})"
