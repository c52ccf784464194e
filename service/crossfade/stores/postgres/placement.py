"""Where values live while constraints stand: the triggers that let a strict schema refuse nothing.

A reference whose parent is not there and a unique value that another document holds are
moved to the remainder as the row is inserted; what they waited for moves them to their
column. Derived documents are moved between their remainder and their owner alike. It
happens inside the statement that writes, whichever it is: a put stays one round trip, a
table without constraints has no triggers, and a row without such values calls none but that
of parents that arrive, which is called once for all rows of a statement.

Moves never miss one another, because both sides lock before they look:

- A child that finds no parent locks the parent's name (shared) and looks again; a parent
  that was inserted locks its name (exclusively) and then looks for children that wait.
- Who places a unique value locks it and then looks for a holder; who let it go locks it
  and then looks for one who waits.
- A derived document reads its owner FOR SHARE, so the owner's content stays as it was
  compared; an owner that changes first gives its derived documents their old content.
  One that found no owner locks its name and looks again, as a child does.

In a trigger of READ COMMITTED every query sees what was committed while it waited.
Names are transaction-level advisory locks in a space of their own, taken after all locks of
paths and version rows (docs/adr/0010-placement-by-triggers.md).
"""

from dataclasses import dataclass

from sqlalchemy import Table

from crossfade.mapping import (
    INDEXED_TEXT_BYTES,
    ODD,
    CollectionMapping,
    DerivedMapping,
    FieldColumn,
    Mappings,
)
from crossfade.stores.postgres.derivation import place_derived
from crossfade.stores.postgres.events import EVENTS, FRESH, Event, On
from crossfade.stores.postgres.naming import literal, lock, lock_all, name_of, quoted, share

_PLACING = 0x706C6163696E67
ALONE_ROWS = 400
"""A transaction that writes more mapped rows goes alone: a lock for each of their names could
fill the server's lock table, and a legal commit would be refused."""
ALONE = f"""select set_config('crossfade.alone', 'on', true), pg_advisory_xact_lock({_PLACING})"""

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
    # What a row has in its remainder of the fields that have columns: what is indexed.
    f"""create or replace function crossfade.beside(remainder jsonb, misfits text[]) returns jsonb
language sql immutable parallel safe as $$
    select jsonb_object_agg(field, remainder -> field) from unnest(misfits) field
    where field <> {literal(ODD)} and remainder ? field
$$""",
    # The one element with this value of a member; none, where several have it.
    """create or replace function crossfade.element(list jsonb, member text, wanted text)
returns jsonb language sql immutable parallel safe as $$
    select case when count(*) = 1 then jsonb_agg(item) -> 0 end from jsonb_array_elements(
        case when jsonb_typeof(list) = 'array' then list else '[]'::jsonb end) item
    where item ->> member = wanted
$$""",
    # Names are locked in a key space of their own, in which nobody locks paths. A transaction
    # that is alone holds the lock that all others share, and needs none of theirs.
    *(
        f"""create or replace function crossfade.{function}(kind text, name text) returns void
language plpgsql as $$
begin
    if coalesce(current_setting('crossfade.alone', true), '') <> 'on' then
        perform pg_advisory_xact_lock_shared({_PLACING});
        perform {lock}(hashtextextended(kind || ':' || name, 11));
    end if;
end
$$"""
        for function, lock in (
            ("lock_name", "pg_advisory_xact_lock"),
            ("share_name", "pg_advisory_xact_lock_shared"),
        )
    ),
    f"""create or replace function crossfade.lock_names(kind text, names text[]) returns void
language plpgsql as $$
begin
    if coalesce(current_setting('crossfade.alone', true), '') <> 'on' then
        perform pg_advisory_xact_lock_shared({_PLACING});
        perform pg_advisory_xact_lock(hashtextextended(kind || ':' || name, 11))
            from unnest(names) name;
    end if;
end
$$""",
)


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger, its function, and what the function does; both statements may be repeated."""

    name: str
    function: str
    body: str
    create_function: str
    create: str


@dataclass(frozen=True, slots=True)
class Placement:
    """What a mapped table needs in PostgreSQL besides its definition. `indexes` by name."""

    indexes: dict[str, str]
    triggers: tuple[Trigger, ...]


def placements(mappings: Mappings) -> dict[Table, Placement]:
    """By mapped table. Those of its triggers that serve other tables are with it, too."""
    events: dict[Table, dict[str, Event]] = {mapping.table: {} for mapping in mappings}

    def on(table: Table, event: str) -> Event:
        return events[table].setdefault(event, Event())

    indexes: dict[Table, dict[str, str]] = {}
    for mapping in mappings:
        waiting = indexes.setdefault(mapping.table, {})
        if isinstance(mapping, DerivedMapping):
            place_derived(mapping, on)
            continue
        waiting.update(_beside_index(mapping.table))
        if mapping.parent is not None:
            _nested(mapping.table, mapping.parent.table, on)
        for reference in mapping.references:
            waiting.update(_waiting_index(mapping.table, reference.entry))
            _reference(mapping, reference.entry, reference.target, on)
        for entry in mapping.uniques:
            waiting.update(_waiting_index(mapping.table, entry))
            _unique(mapping, entry, on)
    return {
        table: Placement(
            indexes[table],
            tuple(_trigger(table, name, made[name]) for name in EVENTS if name in made),
        )
        for table, made in events.items()
    }


def _trigger(table: Table, name: str, event: Event) -> Trigger:
    when, what, result = EVENTS[name]
    schema = f"{quoted(table.schema)}." if table.schema else ""
    function = f"{schema}{quoted(f'{table.name}_{name}')}"
    actions = "\n".join(event.actions)
    if event.names:
        locks = "\n".join(f"perform {lock_all(*name, FRESH)};" for name in event.names)
        actions = f"if exists (select from {FRESH}) then\n{locks}\n{actions}\nend if;"
        each = f"referencing new table as {FRESH} for each statement"
    else:
        conditions = " or ".join(f"({text})" for text in dict.fromkeys(event.conditions))
        each = f"for each row when ({conditions})"
    body = f"\ndeclare\nfound_id text;\nbegin\n{actions}\nreturn {result};\nend\n"
    return Trigger(
        f"crossfade_{name}",
        function,
        body,
        f"create or replace function {function}() returns trigger "
        f"language plpgsql as $body${body}$body$",
        f"create or replace trigger crossfade_{name} {when} {what} on {name_of(table)} "
        f"{each} execute function {function}()",
    )


def _beside_index(table: Table) -> dict[str, str]:
    """Finds a value among the misfits: a field may be one in very many documents. Of all else
    that is in remainders, nothing is in it."""
    name = f"{table.name}_beside"
    return {
        name: f"create index if not exists {quoted(name)} on {name_of(table)} "
        "using gin (crossfade.beside(remainder, misfits) jsonb_path_ops) where misfits is not null"
    }


def _waiting_index(table: Table, entry: FieldColumn) -> dict[str, str]:
    """Finds the rows that hold a value back, by the value."""
    name = f"{table.name}_{entry.column}_waiting"
    return {
        name: f"create index if not exists {quoted(name)} "
        f"on {name_of(table)} (crossfade.waiting(remainder, {literal(entry.field)})) "
        f"where misfits @> array[{literal(entry.field)}]"
    }


# --- references and uniques ----------------------------------------------------------------------


def _reference(mapping: CollectionMapping, entry: FieldColumn, target: Table, on: On) -> None:
    child, parent, column = name_of(mapping.table), name_of(target), quoted(entry.column)
    own = mapping.table is target
    present = f"new.{column} is not null" + (f" and new.{column} <> new.id" if own else "")
    look = f"perform 1 from {parent} p where p.id = new.{column} for key share;"
    on(mapping.table, "place").add(
        present,
        f"""{look}
if not found then
    perform {share(parent, f"new.{column}")};
    {look}
    if not found then
        {_hold_back(entry)}
    end if;
end if;""",
    )
    on(target, "arrive").add_for_all(
        parent,
        "id",
        f"update {child} t set {_promote(entry)} from {FRESH} n where {_waits(entry, 'n.id')};",
    )
    others = " and t.id <> old.id" if own else ""
    on(target, "part").add(
        "true", f"update {child} t set {_demote(entry)} where t.{column} = old.id{others};"
    )


def _nested(table: Table, target: Table, on: On) -> None:
    """The parent of a subcollection's document is part of its id; the column only says
    whether it is there."""
    child, parent, key = name_of(table), name_of(target), "split_part(new.id, '/', 1)"
    look = f"select p.id into found_id from {parent} p where p.id = {key} for key share;"
    on(table, "place").add(
        "true",
        f"""{look}
if not found then
    perform {share(parent, key)};
    {look}
end if;
new.parent := found_id;""",
    )
    on(target, "arrive").add_for_all(
        parent,
        "id",
        f"""update {child} t set parent = n.id from {FRESH} n
where t.id >= n.id || '/' and t.id < n.id || '0' and t.parent is null;""",
    )
    on(target, "part").add("true", f"update {child} t set parent = null where t.parent = old.id;")


def _unique(mapping: CollectionMapping, entry: FieldColumn, on: On) -> None:
    table, column = name_of(mapping.table), quoted(entry.column)
    held = f"{table}.{column}"
    on(mapping.table, "place").add(
        f"new.{column} is not null",
        f"""perform {lock(held, f"new.{column}")};
perform 1 from {table} t where t.{column} = new.{column} and t.id <> new.id;
if found then
    {_hold_back(entry)}
end if;""",
    )
    waits = _waits(entry, f"old.{column}")
    # Who waits may be about to change: then the next one is asked.
    promote = f"""perform {lock(held, f"old.{column}")};
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
    name = literal(entry.field)
    return f"t.misfits @> array[{name}] and crossfade.waiting(t.remainder, {name}) = {value}"


def _promote(entry: FieldColumn) -> str:
    name = literal(entry.field)
    return (
        f"{quoted(entry.column)} = crossfade.waiting(t.remainder, {name}), "
        f"remainder = crossfade.without_field(t.remainder, {name}), "
        f"misfits = crossfade.without_misfit(t.misfits, {name})"
    )


def _demote(entry: FieldColumn) -> str:
    name, column = literal(entry.field), quoted(entry.column)
    return (
        f"remainder = crossfade.with_field(t.remainder, {name}, to_jsonb(t.{column})), "
        f"misfits = crossfade.with_misfit(t.misfits, {name}), {column} = null"
    )


def _hold_back(entry: FieldColumn) -> str:
    name, column = literal(entry.field), f"new.{quoted(entry.column)}"
    return (
        f"new.remainder := crossfade.with_field(new.remainder, {name}, to_jsonb({column})); "
        f"new.misfits := crossfade.with_misfit(new.misfits, {name}); {column} := null;"
    )
