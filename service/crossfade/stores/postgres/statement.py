"""One query over one table as SQL: a superset of its documents, cut off where that is safe.

The statement is a union of two parts. *Plain* rows pass the filter's condition and,
where the condition is exact and PostgreSQL sorts as Firestore does, are ordered and
limited. *Odd* rows are those the condition cannot be trusted for (a field that was
asked lies in the remainder) or the order cannot (numeric ids come first, by number). Of
them come all that may match, by what is in the remainder, and the pure evaluator decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crossfade.document import Reference, collection_path
from crossfade.groups import DEFAULT
from crossfade.mapping import ODD, escape_path
from crossfade.query import Cursor, Order, Query
from crossfade.stores.postgres.naming import literal
from crossfade.stores.postgres.predicates import ALL, NONE, Arguments, Compiler, Predicate, all_of
from crossfade.stores.postgres.rows import NOW, DocumentTable


@dataclass(frozen=True, slots=True)
class Statement:
    """Rows are a table's own columns, `odd`, then the state: epoch, generation, pending, now.

    One row comes even without documents; its key is null. `exact`: rows that are not
    odd match, and in name order, offset and limit are all that is left to do.
    """

    sql: str
    values: Sequence[Any]
    exact: bool


def compile_query(
    query: Query, orders: tuple[Order, ...], table: DocumentTable, group: str
) -> Statement:
    """The statement that finds the query's documents in one table."""
    arguments = Arguments()
    state = _state(query, group, arguments)
    scope = _scope(query, table, arguments)
    spread = query.collection_path is None
    compiler = Compiler(table, arguments)
    condition = all_of([compiler.filter(query.where), compiler.present(orders)])
    name_order = _name_order(table, spread=spread)
    by_name = len(orders) == 1
    within = _within(query, orders, table, arguments, spread=spread) if by_name else None
    bounded = within is not None or not (query.start or query.end)
    sorting = compiler.sortable(orders, name_order)
    limited = query.limit is not None and condition.exact and bounded and sorting is not None
    odd, candidates = _odd(table, compiler.used), _candidates(table, compiler.used, condition)
    if limited or within:
        numeric = _numeric(query, table, arguments, spread=spread)
        odd.append(numeric)
        candidates.append(numeric)
    plain = [*scope, condition.sql, *(within or [])]
    if odd:
        plain.append(f"({' or '.join(odd)}) is not true")
    body = f"(select {table.select}, false as odd from {table.source} t where {_and(plain)}"
    if limited and query.limit is not None:
        body += f" order by {sorting} limit {arguments.add(query.offset + query.limit, 'int8')}"
    body += ")"
    if odd:
        found = [f"({' or '.join(candidates)})", _anywhere(table, compiler.used, condition)]
        body += f""" union all (select {table.select}, true from {table.source} t
            where {_and([*scope, *found])})"""
    sql = f"with s as materialized ({state}) select d.*, s.* from s left join ({body}) d on true"
    exact = condition.exact and bounded and by_name and not spread
    return Statement(sql, arguments.values, exact)


def _and(terms: Sequence[str]) -> str:
    return " and ".join(term for term in terms if term != "true") or "true"


def _state(query: Query, group: str, arguments: Arguments) -> str:
    """The control row, and whether anything of the query's collections is pending.

    In the same statement as the documents: checked before or after, it would miss
    what is committed in between.
    """
    control = arguments.add(group, "text")
    if query.collection is None:
        pending = "exists (select from crossfade.pending)"
    else:
        name = escape_path(query.collection)
        path = query.collection_path
        wildcards = arguments.add([name] if group != DEFAULT else [name, ""], "text[]")
        where = (
            f"collection_id = {arguments.add(name, 'text')}"
            if path is None
            else f"collection_path = {arguments.add(escape_path(path), 'text')}"
        )
        pending = f"""exists (select from crossfade.pending where {where})
            or exists (select from crossfade.pending where path = any({wildcards}))"""
    return f"""select c.epoch as state_epoch, c.generation, {pending} as pending, {NOW} as now
        from (select) one left join crossfade.control c on c.grp = {control}"""


def _scope(query: Query, table: DocumentTable, arguments: Arguments) -> list[str]:
    """Which rows of the table the query may reach. A mapped table is one root collection, or
    the subcollections of one."""
    path = query.collection_path
    if table.mapping is not None:
        if not table.nested:
            return []
        if path is None and not query.parent:
            # Not all descendants, and no collection named: the root's alone.
            return [] if query.all_descendants else ["false"]
        parent = escape_path(query.parent).partition("/")[2]
        return [_between("t.id", f"{parent}/", f"{parent}0", arguments)]
    if path is not None:
        return [f"t.collection_path = {arguments.add(escape_path(path), 'text')}"]
    if query.collection is not None:
        return [f"t.collection_id = {arguments.add(escape_path(query.collection), 'text')}"]
    if query.parent:
        below = escape_path(query.parent) + "/"
        return [_between("t.path", below, below[:-1] + "0", arguments)]
    return [] if query.all_descendants else ["t.collection_path = t.collection_id"]


def _odd(table: DocumentTable, used: set[str]) -> list[str]:
    """Rows that have a field that was used elsewhere."""
    if not used:
        return []
    if table.mapping is None:
        return [_unplain(table)]
    # Literals: as parameters they would be planned for as if they could be anything, and
    # PostgreSQL would plan every execution anew.
    return [f"t.misfits && {_names(*sorted(used))}"]


def _candidates(table: DocumentTable, used: set[str], condition: Predicate) -> list[str]:
    """Those of them that may match, each by something that an index finds. A field that is a
    misfit in half of the documents is no reason to read them all."""
    if not used or table.mapping is None:
        return _odd(table, used)
    names = sorted(used - {ODD})
    kept = {name: condition.kept.get(name, ALL.sql) for name in names}
    found = [
        _both(f"t.misfits @> {_names(name)}", kept[name])
        for name in names
        if kept[name] != NONE.sql
    ]
    if ODD in used:
        found.append(_unplain(table))
    elif set(kept.values()) != {ALL.sql}:
        found.append(f"({_unplain(table)} and t.misfits && {_names(*names)})")
    return found


def _anywhere(table: DocumentTable, used: set[str], condition: Predicate) -> str:
    """That a row may match wherever its fields are, unless its keys are not plain."""
    kept = condition.kept
    # With each of the fields asked by its own candidates, it would find few that they do not,
    # and be planned for with every query.
    if condition.elsewhere == ALL.sql or (used == kept.keys() and ALL.sql not in kept.values()):
        return ALL.sql
    return f"({_unplain(table)} or {condition.elsewhere})"


def _unplain(table: DocumentTable) -> str:
    """Rows whose rest has no plain keys."""
    return f"t.fields ? '{ODD}'" if table.mapping is None else f"t.misfits @> {_names(ODD)}"


def _names(*names: str) -> str:
    return f"array[{', '.join(map(literal, names))}]"


def _both(one: str, other: str) -> str:
    return one if other == ALL.sql else f"({one} and {other})"


def _numeric(query: Query, table: DocumentTable, arguments: Arguments, *, spread: bool) -> str:
    """Rows with a numeric id, which PostgreSQL would sort among the others."""
    if table.nested:
        return "position('/__id' in '/' || t.id) > 0"
    if table.mapping is not None:
        return "(t.id >= '__id' and t.id < '__ie')"
    if spread:
        return "position('/__id' in t.path) > 0"
    below = escape_path(query.collection_path or "")
    return _between("t.path", f"{below}/__id", f"{below}/__ie", arguments)


def _between(column: str, low: str, high: str, arguments: Arguments) -> str:
    low, high = arguments.add(low, "text"), arguments.add(high, "text")
    return f"({column} >= {low} and {column} < {high})"


def _name_order(table: DocumentTable, *, spread: bool) -> str:
    """Names sort by segment: over several collections a path's bytes do not ("/" sorts
    behind "-")."""
    if spread and (table.mapping is None or table.nested):
        return table.segments
    return f"t.{table.key}"


# --- cursors -----------------------------------------------------------------------------------


def _within(
    query: Query,
    orders: tuple[Order, ...],
    table: DocumentTable,
    arguments: Arguments,
    *,
    spread: bool,
) -> list[str] | None:
    """The cursors of a query ordered by name as conditions; None where they are none."""
    conditions = []
    mark = len(arguments.values)
    for cursor, starts in ((query.start, True), (query.end, False)):
        if cursor is None or not cursor.values:
            continue
        after = starts is not orders[0].descending
        condition = _side(
            query, cursor, table, arguments, after=after, starts=starts, spread=spread
        )
        if condition is None:
            del arguments.values[mark:]
            return None
        conditions.append(condition)
    return conditions


def _side(
    query: Query,
    cursor: Cursor,
    table: DocumentTable,
    arguments: Arguments,
    *,
    after: bool,
    starts: bool,
    spread: bool,
) -> str | None:
    """That a document lies `after` (else before) the cursor's, or is it where that is allowed."""
    name = cursor.values[0]
    if not isinstance(name, Reference) or "/__id" in name.name or "/" not in name.name:
        return None
    path = escape_path(name.name)
    # Included: start_at and end_at, that is before = starts.
    equal = cursor.before is starts
    if table.collection is None or table.nested:
        if spread:
            left, right = table.segments, f"string_to_array({arguments.add(path, 'text')}, '/')"
        elif collection_path(name.name) == query.collection_path:
            left, right = f"t.{table.key}", arguments.add(table.key_of(name.name), "text")
        else:
            return None
        return f"{left} {_symbol(after, equal)} {right}"
    collection, key, *deeper = path.split("/")
    if collection != escape_path(table.collection):
        return "true" if (escape_path(table.collection) > collection) is after else "false"
    # A document below this one comes after it, so the one itself lies before.
    equal = not after if deeper else equal
    return f"t.id {_symbol(after, equal)} {arguments.add(key, 'text')}"


def _symbol(after: bool, equal: bool) -> str:
    return (">" if after else "<") + ("=" if equal else "")
