"""How one type of value lives in a column."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from crossfade.document import INT64_MAX, INT64_MIN, Value
from crossfade.mapping.tagged import from_json, to_json


class Codec(Protocol):
    """How one type of value lives in a column. `sql` is the column's type in PostgreSQL,
    `takes` the types of the values that may be in it."""

    @property
    def sql(self) -> str: ...

    @property
    def takes(self) -> tuple[type, ...]: ...

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
    """`limit` (bytes) for an indexed column: a B-tree refuses entries above 2,704 bytes.
    `words`: the only ones that the column's check constraint lets in."""

    sql: ClassVar[str] = "text"
    takes: ClassVar[tuple[type, ...]] = (str,)
    limit: int | None = None
    words: frozenset[str] | None = None

    def fits(self, value: Value) -> bool:
        if type(value) is not str:
            return False
        if self.words is not None:
            return value in self.words
        if "\0" in value:
            return False
        limit = self.limit
        return limit is None or len(value) * 4 <= limit or len(value.encode()) <= limit


@dataclass(frozen=True, slots=True)
class BytesCodec(_Plain):
    """`limit` as for texts."""

    sql: ClassVar[str] = "bytea"
    takes: ClassVar[tuple[type, ...]] = (bytes,)
    limit: int | None = None

    def fits(self, value: Value) -> bool:
        return type(value) is bytes and (self.limit is None or len(value) <= self.limit)


@dataclass(frozen=True, slots=True)
class Int8Codec(_Plain):
    sql: ClassVar[str] = "int8"
    takes: ClassVar[tuple[type, ...]] = (int,)

    def fits(self, value: Value) -> bool:
        return type(value) is int


@dataclass(frozen=True, slots=True)
class DoubleCodec(_Plain):
    """NaN stays out: PostgreSQL sorts it last, Firestore first."""

    sql: ClassVar[str] = "float8"
    takes: ClassVar[tuple[type, ...]] = (float,)

    def fits(self, value: Value) -> bool:
        return type(value) is float and value == value


@dataclass(frozen=True, slots=True)
class BoolCodec(_Plain):
    sql: ClassVar[str] = "bool"
    takes: ClassVar[tuple[type, ...]] = (bool,)

    def fits(self, value: Value) -> bool:
        return type(value) is bool


# The driver writes its two extreme times as -infinity and infinity.
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TimeCodec(_Plain):
    sql: ClassVar[str] = "timestamptz"
    takes: ClassVar[tuple[type, ...]] = (datetime,)

    def fits(self, value: Value) -> bool:
        return type(value) is datetime and _FIRST < value < _LAST


@dataclass(frozen=True, slots=True)
class JsonCodec:
    """Maps and arrays, in the tagged encoding."""

    sql: ClassVar[str] = "jsonb"
    takes: ClassVar[tuple[type, ...]] = (dict, list)

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
    takes: ClassVar[tuple[type, ...]] = (list,)

    def fits(self, value: Value) -> bool:
        return type(value) is list and all(
            type(item) is int and INT64_MIN <= item <= INT64_MAX for item in value
        )
