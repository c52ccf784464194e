"""Collections as tables: what a mapping is made of. Pure.

A mapping is read off a SQLAlchemy table: one field per column, enums from
`word_column`, references from foreign keys, uniques from unique columns. Nothing
else has to be said, and nothing can disagree with the table.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB

from crossfade.document import Fields, Value
from crossfade.mapping.codecs import (
    BoolCodec,
    BytesCodec,
    Codec,
    DoubleCodec,
    Int8Codec,
    IntArrayCodec,
    JsonCodec,
    TextCodec,
    TimeCodec,
)
from crossfade.mapping.tables import INDEXED_TEXT_BYTES, OWN_COLUMNS
from crossfade.mapping.tagged import ODD, from_json, is_odd, to_json


class Cause(StrEnum):
    """Why a value is in the remainder and not in a column."""

    NO_COLUMN = "no column"
    NULL = "null"
    TYPE = "type"
    RANGE = "range"
    WORD = "word"
    REFERENCE = "reference"
    DUPLICATE = "duplicate"
    OWNER = "owner"
    WAITING = "waiting"


EXPLAINED = {
    Cause.NO_COLUMN: "the table has no column for the field",
    Cause.NULL: "an explicit null: an empty column means that the field is absent",
    Cause.TYPE: "a value of another type than the column's",
    Cause.RANGE: "a value that a column of this type cannot hold: a NUL character, a text too "
    "long for an index, NaN, a time at the end of time",
    Cause.WORD: "a word that the enum does not have",
    Cause.REFERENCE: "a reference to a document that is not there",
    Cause.DUPLICATE: "a unique value that another document holds",
    Cause.OWNER: "the owner of the derived document is not there, or says otherwise",
    Cause.WAITING: "a value that fits by now: the schema has changed since it was written",
}
REFUSED = frozenset(Cause) - {Cause.NO_COLUMN, Cause.NULL, Cause.OWNER, Cause.WAITING}
"""What a column or a constraint refused, as opposed to what has no column to go to."""


@dataclass(frozen=True, slots=True)
class FieldColumn:
    """A top-level field of the documents, the column of the same meaning, and its codec."""

    field: str
    column: str
    codec: Codec


@dataclass(frozen=True, slots=True)
class ForeignField:
    """A field that names a document by its id, and the table of the collection it is in."""

    entry: FieldColumn
    target: Table


@dataclass(frozen=True, slots=True)
class Row:
    """A document's fields as a row: `values` in the order of the mapping's columns."""

    values: tuple[Any, ...]
    remainder: Any
    misfits: list[str] | None


class CollectionMapping:
    """One root collection and its table, or (with a `parent`) one subcollection's, of all
    documents of a root collection together.

    Serves documents of these only: the same collection id elsewhere is another collection,
    and the ids would not be keys. Those live in the generic table.

    A reference or a unique value is in its column while the constraint admits it;
    PostgreSQL itself moves it between column and remainder (stores/postgres/placement.py).

    `secret_ids`: the documents' ids are secrets, or somebody's name: they are told to nobody
    but who asks for the documents.
    """

    def __init__(
        self,
        collection_id: str,
        table: Table,
        columns: Iterable[FieldColumn] | None = None,
        *,
        parent: "CollectionMapping | None" = None,
        secret_ids: bool = False,
    ) -> None:
        self.collection_id = collection_id
        self.table = table
        self.parent = parent
        self.secret_ids = secret_ids
        self.pattern = (
            collection_id if parent is None else f"{parent.collection_id}/*/{collection_id}"
        )
        self.columns = tuple(columns if columns is not None else columns_of(table))
        self.by_field = {entry.field: entry for entry in self.columns}
        self._slots = {
            entry.field: (index, entry.codec.fits, entry.codec.to_column)
            for index, entry in enumerate(self.columns)
        }
        by_column = {entry.column: entry for entry in self.columns}
        self.references = tuple(
            ForeignField(by_column[str(key.parent.name)], key.column.table)
            for key in sorted(table.foreign_keys, key=lambda key: str(key.parent.name))
            if key.parent.name in by_column
        )
        names = unique_columns(table)
        self.uniques = tuple(entry for entry in self.columns if entry.column in names)
        _check_constrained(self)

    def path_of(self, key: str) -> str:
        """The path of the document with this key in the table."""
        if self.parent is None:
            return f"{self.collection_id}/{key}"
        return f"{self.parent.collection_id}/" + key.replace("/", f"/{self.collection_id}/")

    def to_row(self, fields: Fields) -> Row:
        values: list[Any] = [None] * len(self.columns)
        rest: Fields = {}
        misfits: list[str] = []
        for name, value in fields.items():
            slot = self._slots.get(name)
            if slot is None:
                rest[name] = value
            elif slot[1](value):
                values[slot[0]] = slot[2](value)
            else:
                rest[name] = value
                misfits.append(name)
        remainder = to_json(rest) if rest else None
        if remainder is not None and ODD in remainder:
            misfits.append(ODD)
        return Row(tuple(values), remainder, misfits or None)

    def to_fields(self, values: Iterable[Any], remainder: Any) -> Fields:
        """The fields of a row's columns and remainder."""
        fields: Fields = {
            entry.field: entry.codec.from_column(value)
            for entry, value in zip(self.columns, values, strict=True)
            if value is not None
        }
        if remainder is not None:
            fields.update(from_json(remainder))  # type: ignore[arg-type]
        return fields

    def misfit_causes(self, row: Row, fields: Fields) -> Iterator[tuple[str, Cause]]:
        """The fields that `to_row` kept from their columns, and why. What a constraint refuses
        is not among them: only PostgreSQL knows, and it may fit a moment later."""
        for name in row.misfits or ():
            if name in self.by_field:
                yield name, self.cause(name, fields[name])

    def cause(self, field: str, value: Value) -> Cause:
        """Why a value of the field, found in a remainder, is there."""
        entry = self.by_field.get(field)
        if entry is None:
            return Cause.NO_COLUMN
        if value is None:
            return Cause.NULL
        if type(value) not in entry.codec.takes:
            return Cause.TYPE
        if not entry.codec.fits(value):
            words = entry.codec.words if isinstance(entry.codec, TextCodec) else None
            return Cause.RANGE if words is None else Cause.WORD
        return self._held_back(entry)

    def _held_back(self, entry: FieldColumn) -> Cause:
        """Why a value that the column's type admits is not in it."""
        if entry in self.uniques:
            return Cause.DUPLICATE
        if any(reference.entry is entry for reference in self.references):
            return Cause.REFERENCE
        return Cause.WAITING


Watch: TypeAlias = Callable[[str, str, Cause], object]
"""Is told of a value that is written beside its column: collection id, field, cause."""


class Mappings:
    """The mappings of an application, by collection: "tasks", "tasks/*/audio_chunks"."""

    def __init__(
        self, mappings: Iterable[CollectionMapping] = (), *, watch: Watch | None = None
    ) -> None:
        self._by_pattern = {mapping.pattern: mapping for mapping in mappings}
        self.watch = watch

    def watched(self, watch: Watch) -> "Mappings":
        """The same mappings; whoever writes documents by them tells `watch` what did not fit."""
        return Mappings(self, watch=watch)

    def __iter__(self) -> Iterator[CollectionMapping]:
        return iter(self._by_pattern.values())

    def get(self, collection_path: str) -> CollectionMapping | None:
        """The mapping of a collection; None for those of the generic table."""
        return self._by_pattern.get(pattern_of(collection_path))


def pattern_of(collection_path: str) -> str:
    """What a mapping of this collection is found by: its path, with "*" for a parent's id."""
    if "/" not in collection_path:
        return collection_path
    root, _, *rest = collection_path.split("/")
    return "/".join([root, "*", *rest])


def columns_of(table: Table) -> list[FieldColumn]:
    """One field per column of the table, with the codec of the column's type.

    The field has the column's name, or the one in `Column.info["field"]`.
    """
    indexed = {
        column.name
        for index in table.indexes
        if index.dialect_options["postgresql"]["using"] in (False, "btree")
        for column in index.columns
    }
    indexed |= unique_columns(table) | {key.parent.name for key in table.foreign_keys}
    return [
        # Exactly str: SQLAlchemy's names are a subclass, which a JSON writer refuses as a key.
        FieldColumn(
            str(column.info.get("field", column.name)),
            str(column.name),
            _codec(column, indexed=column.name in indexed),
        )
        for column in table.columns
        if column.name not in OWN_COLUMNS and not column.info.get("own")
    ]


def unique_columns(table: Table) -> set[str]:
    """The columns that are unique each by itself."""
    alone = [
        tuple(constraint.columns)
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    ]
    alone += [tuple(index.columns) for index in table.indexes if index.unique]
    if any(len(columns) != 1 for columns in alone):
        raise TypeError(f"table {table.name}: a unique of several columns cannot be mapped")
    return {str(column.name) for (column,) in alone}


def _check_constrained(mapping: CollectionMapping) -> None:
    """References and uniques hold document ids and keys: texts, under plain field names."""
    references = [reference.entry for reference in mapping.references]
    for entry in (*references, *mapping.uniques):
        where = f"table {mapping.table.name}: column {entry.column}"
        if not isinstance(entry.codec, TextCodec) or entry.codec.words is not None:
            raise TypeError(f"{where}: only plain texts can be references or unique")
        if is_odd(entry.field):
            raise TypeError(f'{where}: its field may not begin with "$"')
        if entry in references and entry in mapping.uniques:
            raise TypeError(f"{where}: it cannot be a reference and unique")
    for reference in mapping.references:
        if list(reference.target.primary_key.columns.keys()) != ["id"]:
            raise TypeError(f"table {mapping.table.name}: it refers to a table without an id")


def _codec(column: Column[Any], *, indexed: bool) -> Codec:
    kind = column.type
    limit = INDEXED_TEXT_BYTES if indexed else None
    if isinstance(kind, Text):
        return TextCodec(limit, column.info.get("words"))
    if isinstance(kind, LargeBinary):
        return BytesCodec(limit)
    if isinstance(kind, ARRAY) and isinstance(kind.item_type, BigInteger):
        return IntArrayCodec()
    for sql_type, codec in _CODECS.items():
        if isinstance(kind, sql_type):
            return codec
    raise TypeError(f"column {column.name}: no codec for {kind!r}")


_CODECS: dict[type, Codec] = {
    BigInteger: Int8Codec(),
    Double: DoubleCodec(),
    Boolean: BoolCodec(),
    DateTime: TimeCodec(),
    JSONB: JsonCodec(),
}
