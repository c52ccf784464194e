"""Referential integrity, by the declarations of the mapping: references, uniques, owners.

PostgreSQL keeps what a constraint refuses beside its column, so what is wrong with the
documents is found by an index and without reading those that are in order. It is said of the
documents as PostgreSQL holds them; a validation says whether Firestore holds the same.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from crossfade import redaction
from crossfade.mapping import (
    CollectionMapping,
    DerivedMapping,
    FromColumns,
    Mappings,
    unescape_path,
)
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.naming import literal, name_of, quoted

EXAMPLES = 5


class Breach(StrEnum):
    DANGLING = "dangling reference"
    DUPLICATE = "duplicate of a unique value"
    OWNERLESS = "derived document without an owner"
    DEVIATING = "derived document that differs from its owner"
    UNDERIVED = "owner without its derived document"


@dataclass(frozen=True, slots=True)
class Violation:
    """`examples`: paths of the first documents, in which `field` is at fault ("": they are as
    a whole)."""

    collection: str
    field: str
    breach: Breach
    count: int
    examples: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "breach": self.breach.value, "examples": list(self.examples)}


@dataclass(frozen=True, slots=True)
class _Question:
    """A statement that finds the ids of the documents that are at fault."""

    mapping: CollectionMapping
    field: str
    breach: Breach
    sql: str


async def violations(lanes: Lanes, mappings: Mappings, *, timeout: float) -> list[Violation]:
    """All there are, with their counts. Each is counted in a statement of its own."""
    found = []
    for question in _questions(mappings):
        rows = await lanes.fetch(
            f"select count(*) over () as count, id from ({question.sql}) as at_fault (id) "
            f"order by id limit {EXAMPLES}",
            timeout=timeout,
        )
        if rows:
            paths = [question.mapping.path_of(unescape_path(row["id"])) for row in rows]
            found.append(
                Violation(
                    question.mapping.collection_id,
                    question.field,
                    question.breach,
                    rows[0]["count"],
                    tuple(map(redaction.present().path, paths)),
                )
            )
    return found


def _questions(mappings: Mappings) -> Iterator[_Question]:
    for mapping in mappings:
        if isinstance(mapping, DerivedMapping):
            yield from _of_derived(mapping)
            continue
        table = name_of(mapping.table)
        for reference in mapping.references:
            field = reference.entry.field
            target = name_of(reference.target)
            yield _Question(
                mapping,
                field,
                Breach.DANGLING,
                f"""{_beside(table, field)} and not exists (
                    select from {target} p where p.id = {_waiting(field)})""",
            )
        for entry in mapping.uniques:
            yield _Question(
                mapping,
                entry.field,
                Breach.DUPLICATE,
                f"""{_beside(table, entry.field)} and exists (select from {table} o
                    where o.{quoted(entry.column)} = {_waiting(entry.field)} and o.id <> t.id)""",
            )


def _beside(table: str, field: str) -> str:
    """Documents whose field holds a text that is not in its column."""
    return f"""select t.id from {table} t where t.misfits @> array[{literal(field)}]
        and {_waiting(field)} is not null"""


def _waiting(field: str) -> str:
    return f"crossfade.waiting(t.remainder, {literal(field)})"


def _of_derived(mapping: DerivedMapping) -> Iterator[_Question]:
    table, owner, rule = name_of(mapping.table), name_of(mapping.owner.table), mapping.rule
    if isinstance(rule, FromColumns):
        key = f"o.{quoted(rule.key)}"
        its_owner = f"exists (select from {owner} o where {key} = d.id)"
        owed = f"select {key} as id, o.id as owner from {owner} o where {key} is not null"
        field = rule.key
    else:
        its_owner = f"""exists (select from {owner} o
            where o.id = regexp_replace(d.id, '_[^_]*$', ''))"""
        member = f"item ->> {literal(rule.member)}"
        column = f"o.{quoted(rule.column)}"
        owed = f"""select o.id || '_' || ({member}) as id, o.id as owner from {owner} o,
            jsonb_array_elements(case when jsonb_typeof({column}) = 'array'
                then {column} else '[]' end) item
            where {member} is not null"""
        field = rule.column
    alone = f"select d.id from {table} d where d.owner is null and"
    yield _Question(mapping, "", Breach.OWNERLESS, f"{alone} not {its_owner}")
    yield _Question(mapping, "", Breach.DEVIATING, f"{alone} {its_owner}")
    yield _Question(
        mapping.owner,
        field,
        Breach.UNDERIVED,
        f"""select distinct x.owner from ({owed}) x
            where not exists (select from {table} d where d.id = x.id)""",
    )
