"""Derived collections: documents that another collection's documents hold already. Pure.

In Firestore such a collection is an index or a copy that the application keeps by
hand, in documents with times, deletes and mistakes of their own. Here its table
has one row per document with what only it knows (its id and its times); the
content is read from the owner. Where the owner is not there or says otherwise the
content is in the remainder, as it is: `owner` is null then. PostgreSQL itself moves
it, whichever of the two is written (stores/postgres/placement.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from crossfade.document import Fields
from crossfade.mapping.codecs import BytesCodec, DoubleCodec, JsonCodec
from crossfade.mapping.collection import Cause, CollectionMapping, FieldColumn, Row
from crossfade.mapping.tagged import ODD, is_odd, to_json


@dataclass(frozen=True, slots=True)
class FromColumns:
    """The document's id is the owner's unique column `key`; its fields are columns of the
    owner: {"role": "role", "created_at": "api_key_created_at"}."""

    key: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FromElements:
    """The document is an element of the owner's jsonb array `column`. Its id is the owner's
    id, "_", and the element's `member`, which no other element has."""

    column: str
    member: str


class DerivedMapping(CollectionMapping):
    """A root collection that is held in another one's table.

    `columns` are those of the owner, as they are read; a row is written without them.
    """

    def __init__(
        self,
        collection_id: str,
        table: Table,
        owner: CollectionMapping,
        rule: FromColumns | FromElements,
        *,
        secret_ids: bool = False,
    ) -> None:
        super().__init__(collection_id, table, _columns(owner, rule), secret_ids=secret_ids)
        self.owner = owner
        self.rule = rule

    def to_row(self, fields: Fields) -> Row:
        """All of it in the remainder: only PostgreSQL knows what the owner holds."""
        misfits = [entry.field for entry in self.columns if entry.field in fields]
        if any(map(is_odd, fields)):
            misfits.append(ODD)
        nothing: tuple[Any, ...] = (None,) * len(self.columns)
        return Row(nothing, to_json(fields) if fields else None, misfits or None)

    def cause(self, field: str, value: Any) -> Cause:  # noqa: ARG002 - the owner is asked alone
        derived = field in self.by_field or isinstance(self.rule, FromElements)
        return Cause.OWNER if derived else Cause.NO_COLUMN


def _columns(owner: CollectionMapping, rule: FromColumns | FromElements) -> list[FieldColumn]:
    by_column = {entry.column: entry for entry in owner.columns}
    if isinstance(rule, FromElements):
        if not isinstance(by_column[rule.column].codec, JsonCodec):
            raise TypeError(f"column {rule.column}: documents are elements of a jsonb array")
        return []
    if rule.key not in {entry.column for entry in owner.uniques}:
        raise TypeError(f"column {rule.key}: a derived document's id is a unique column")
    found = []
    for field, column in rule.fields.items():
        if is_odd(field):
            raise TypeError(f"field {field}: a derived field cannot have this name")
        codec = by_column[column].codec
        if isinstance(codec, DoubleCodec | BytesCodec):
            raise TypeError(f"column {column}: a derived field cannot be a double or bytes")
        found.append(FieldColumn(field, f"of_{field}", codec))
    return found
