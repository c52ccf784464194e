"""Documents as rows: the tagged JSON encoding, column codecs, collection mappings. Pure.

The law: `to_document(to_row(d)) == d` for every legal document, to the last bit. A
value that its column cannot hold (another type, explicit null, a NUL character, a
text too long for the column's index) goes to the `remainder` with its type; a field
without a column goes there too; an absent field is a NULL column and nothing else.

`misfits` names the columned fields that a row has in its remainder, and is NULL in
nearly every row. It is what lets a query trust the columns of all other rows.
"""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

from crossfade.document import (
    INT64_MAX,
    INT64_MIN,
    Fields,
    GeoPoint,
    Reference,
    Value,
    from_micros,
    to_micros,
)

# --- tagged JSON -------------------------------------------------------------------------------

ODD = "$m"
"""Tag of a map as a list of pairs: one of its keys begins with "$" or holds a NUL."""


def to_json(value: Value) -> Any:
    """What JSON can hold of a value, with a tag where JSON has no such type.

    null, booleans, strings, integers, arrays and maps are themselves; the others
    are maps with one key: {"$d": 1.5} double, {"$t": microseconds}, {"$b": base64},
    {"$r": name}, {"$g": [latitude, longitude]}, {"$s": parts between NULs},
    {"$m": pairs}.
    """
    return _TO_JSON[type(value)](value)


def from_json(value: Any) -> Value:
    """The inverse of `to_json`, also for numbers that a JSON store wrote its own way."""
    if type(value) is list:
        return [from_json(item) for item in value]
    if type(value) is not dict:
        return value  # type: ignore[no-any-return]
    for key in value:
        if key.startswith("$"):
            decoded: Value = _FROM_TAG[key](value[key])
            return decoded
        break
    return {key: from_json(item) for key, item in value.items()}


def is_odd(key: str) -> bool:
    """Whether a map with this key is written as a list of pairs."""
    return key.startswith("$") or "\0" in key


def _text(value: str) -> Any:
    return {"$s": value.split("\0")} if "\0" in value else value


def _double(value: float) -> Any:
    # JSON has no NaN and no infinity, and jsonb forgets the sign of zero.
    return {"$d": _NAMED_DOUBLES.get(repr(value), value)}


_NAMED_DOUBLES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity", "-0.0": "-0.0"}


def _map(value: Fields) -> Any:
    if any(map(is_odd, value)):
        return {ODD: [[_text(key), to_json(item)] for key, item in value.items()]}
    return {key: _TO_JSON[type(item)](item) for key, item in value.items()}


_TO_JSON: dict[type, Any] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: lambda value: value,
    str: _text,
    float: _double,
    datetime: lambda value: {"$t": to_micros(value)},
    bytes: lambda value: {"$b": base64.b64encode(value).decode()},
    Reference: lambda value: {"$r": _text(value.name)},
    GeoPoint: lambda value: {"$g": [_double(value.latitude), _double(value.longitude)]},
    list: lambda value: [_TO_JSON[type(item)](item) for item in value],
    dict: _map,
}

_FROM_TAG: dict[str, Any] = {
    "$d": float,
    "$t": from_micros,
    "$b": base64.b64decode,
    "$r": lambda value: Reference(from_json(value)),  # type: ignore[arg-type]
    "$g": lambda value: GeoPoint(from_json(value[0]), from_json(value[1])),  # type: ignore[arg-type]
    "$s": "\0".join,
    ODD: lambda value: {from_json(key): from_json(item) for key, item in value},
}


def escape_path(path: str) -> str:
    """A path as PostgreSQL can hold it: without NUL, in the same byte order."""
    if "\0" in path or "\1" in path:
        return path.replace("\1", "\1\2").replace("\0", "\1\1")
    return path


def unescape_path(text: str) -> str:
    if "\1" in text:
        return text.replace("\1\1", "\0").replace("\1\2", "\1")
    return text


# --- codecs ------------------------------------------------------------------------------------


class Codec(Protocol):
    """How one type of value lives in a column. `sql` is the column's type in PostgreSQL."""

    @property
    def sql(self) -> str: ...

    def fits(self, value: Value) -> bool:
        """Whether the column holds the value without loss. Never true for null."""
        ...

    def to_column(self, value: Any) -> Any: ...

    def from_column(self, value: Any) -> Value: ...


class _Plain:
    """A column whose values are the document's own."""

    def to_column(self, value: Any) -> Any:
        return value

    def from_column(self, value: Any) -> Value:
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class TextCodec(_Plain):
    """`limit` (bytes) for an indexed column: a B-tree refuses entries above 2,704 bytes."""

    sql: ClassVar[str] = "text"
    limit: int | None = None

    def fits(self, value: Value) -> bool:
        if type(value) is not str or "\0" in value:
            return False
        limit = self.limit
        return limit is None or len(value) * 4 <= limit or len(value.encode()) <= limit


@dataclass(frozen=True, slots=True)
class Int8Codec(_Plain):
    sql: ClassVar[str] = "int8"

    def fits(self, value: Value) -> bool:
        return type(value) is int


@dataclass(frozen=True, slots=True)
class DoubleCodec(_Plain):
    """NaN stays out: PostgreSQL sorts it last, Firestore first."""

    sql: ClassVar[str] = "float8"

    def fits(self, value: Value) -> bool:
        return type(value) is float and value == value


@dataclass(frozen=True, slots=True)
class BoolCodec(_Plain):
    sql: ClassVar[str] = "bool"

    def fits(self, value: Value) -> bool:
        return type(value) is bool


# The driver writes its two extreme times as -infinity and infinity.
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TimeCodec(_Plain):
    sql: ClassVar[str] = "timestamptz"

    def fits(self, value: Value) -> bool:
        return type(value) is datetime and _FIRST < value < _LAST


@dataclass(frozen=True, slots=True)
class JsonCodec:
    """Maps and arrays, in the tagged encoding."""

    sql: ClassVar[str] = "jsonb"

    def fits(self, value: Value) -> bool:
        return type(value) is dict or type(value) is list

    def to_column(self, value: Any) -> Any:
        return to_json(value)

    def from_column(self, value: Any) -> Value:
        return from_json(value)


@dataclass(frozen=True, slots=True)
class IntArrayCodec(_Plain):
    """Arrays of nothing but integers."""

    sql: ClassVar[str] = "int8[]"

    def fits(self, value: Value) -> bool:
        return type(value) is list and all(
            type(item) is int and INT64_MIN <= item <= INT64_MAX for item in value
        )


# --- mappings ----------------------------------------------------------------------------------

INDEXED_TEXT_BYTES = 600
"""Four such columns fit one index entry."""


def text_column(name: str) -> Column[str]:
    """A text column in byte order, which is Firestore's order of strings."""
    return Column(name, Text(collation="C"))


def document_columns() -> list[Column[Any]]:
    """The columns every mapped table has besides those of its fields."""
    return [
        Column("id", Text(collation="C"), primary_key=True),
        Column("remainder", JSONB),
        Column("misfits", ARRAY(Text)),
        Column("create_time", BigInteger, nullable=False),
        Column("update_time", BigInteger, nullable=False),
        Column("epoch", BigInteger, nullable=False),
    ]


_OWN = {column.name for column in document_columns()}


@dataclass(frozen=True, slots=True)
class FieldColumn:
    """A top-level field of the documents, the column of the same meaning, and its codec."""

    field: str
    column: str
    codec: Codec


@dataclass(frozen=True, slots=True)
class Row:
    """A document's fields as a row: `values` in the order of the mapping's columns."""

    values: tuple[Any, ...]
    remainder: Any
    misfits: list[str] | None


class CollectionMapping:
    """One root collection and its table.

    Serves documents of the root collection only: the same collection id below a
    document belongs to that document, and its id alone would not be a key. Those
    live in the generic table.
    """

    def __init__(
        self, collection_id: str, table: Table, columns: Iterable[FieldColumn] | None = None
    ) -> None:
        self.collection_id = collection_id
        self.table = table
        self.columns = tuple(columns if columns is not None else columns_of(table))
        self.by_field = {entry.field: entry for entry in self.columns}

    def to_row(self, fields: Fields) -> Row:
        rest = dict(fields)
        values: list[Any] = []
        misfits: list[str] = []
        for entry in self.columns:
            name = entry.field
            if name not in rest:
                values.append(None)
            elif entry.codec.fits(rest[name]):
                values.append(entry.codec.to_column(rest.pop(name)))
            else:
                values.append(None)
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


class Mappings:
    """The mappings of an application, by collection id."""

    def __init__(self, mappings: Iterable[CollectionMapping] = ()) -> None:
        self._by_id = {mapping.collection_id: mapping for mapping in mappings}

    def __iter__(self) -> Iterator[CollectionMapping]:
        return iter(self._by_id.values())

    def get(self, collection_path: str) -> CollectionMapping | None:
        """The mapping of a collection; None for the generic table's, as all below documents."""
        return self._by_id.get(collection_path)


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
    return [
        # Exactly str: SQLAlchemy's names are a subclass, which a JSON writer refuses as a key.
        FieldColumn(
            str(column.info.get("field", column.name)),
            str(column.name),
            _codec(column, indexed=column.name in indexed),
        )
        for column in table.columns
        if column.name not in _OWN
    ]


def misfit_index(table: Table) -> Index:
    """What finds the few rows whose columns do not tell everything."""
    return Index(
        f"{table.name}_misfits",
        table.c.misfits,
        postgresql_using="gin",
        postgresql_where=table.c.misfits.is_not(None),
    )


def _codec(column: Column[Any], *, indexed: bool) -> Codec:
    kind = column.type
    if isinstance(kind, Text):
        return TextCodec(INDEXED_TEXT_BYTES if indexed else None)
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
