"""The values that have no twin among Python's own types, and what calls answer with.

    null None · boolean bool · integer int · double float · string str · bytes bytes
    timestamp datetime (aware, UTC, microseconds) · reference Reference
    geo point GeoPoint · array list · map dict

`int` and `float` stay apart both ways: 1 is stored as an integer, 1.0 as a double.
A vector is the map {"__type__": "__vector__", "value": [...]}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, TypeAlias


@dataclass(frozen=True, slots=True)
class Reference:
    """A pointer to a document. Stored values hold the full name (`Snapshot.reference`
    has it); as an operand for `__name__` the path ("tasks/1") does."""

    name: str

    @property
    def path(self) -> str:
        """Relative to the database: "tasks/1"."""
        return relative(self.name)


@dataclass(frozen=True, slots=True)
class GeoPoint:
    """Degrees; latitude -90..90, longitude -180..180."""

    latitude: float
    longitude: float


Value: TypeAlias = (
    "bool | int | float | datetime | str | bytes | Reference | GeoPoint"
    " | list[Value] | dict[str, Value] | None"
)
Fields: TypeAlias = Mapping[str, Any]
"""What is written: values, and transforms in place of values."""

FieldPath: TypeAlias = str | tuple[str, ...]
"""Firestore's notation ("a.b.`odd name`") or the names themselves ("a", "b", "odd name")."""

Changes: TypeAlias = Mapping[str, Any] | Mapping[tuple[str, ...], Any] | Mapping[FieldPath, Any]
"""What an update writes, by field path."""


# --- transforms: stand in a written document where the value would -------------------------------


class Sentinel(Enum):
    """`SERVER_TIMESTAMP`: the time of the commit. `DELETE_FIELD`: take the field away
    (in merge and update)."""

    SERVER_TIMESTAMP = "SERVER_TIMESTAMP"
    DELETE_FIELD = "DELETE_FIELD"


SERVER_TIMESTAMP: Final = Sentinel.SERVER_TIMESTAMP
DELETE_FIELD: Final = Sentinel.DELETE_FIELD


@dataclass(frozen=True, slots=True)
class Increment:
    """Adds to the stored number; sets it where there is none."""

    amount: int | float


@dataclass(frozen=True, slots=True)
class Maximum:
    """Keeps the larger of the stored number and this one."""

    value: int | float


@dataclass(frozen=True, slots=True)
class Minimum:
    """Keeps the smaller of the stored number and this one."""

    value: int | float


@dataclass(frozen=True, slots=True)
class ArrayUnion:
    """Appends those of the values that the stored array lacks."""

    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class ArrayRemove:
    """Removes every element equal to one of the values."""

    values: Sequence[Any]


# --- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A document as it was read. `name` is the full name, `path` relative to the database."""

    name: str
    fields: dict[str, Any]
    create_time: datetime
    update_time: datetime

    @property
    def path(self) -> str:
        return relative(self.name)

    @property
    def id(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def reference(self) -> Reference:
        """What a field of another document holds to point here."""
        return Reference(self.name)


@dataclass(frozen=True, slots=True)
class WriteResult:
    """`update_time` is None after a delete. One value per transform, in the order of the fields."""

    update_time: datetime | None
    transform_results: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitResult:
    """One result per write. `replayed`: this request_id had been committed before, so
    nothing was done now and `transform_results` are empty."""

    commit_time: datetime
    writes: tuple[WriteResult, ...]
    replayed: bool = False

    @property
    def update_time(self) -> datetime | None:
        """Of the first write, which is the only one of `set`, `update` and their kin."""
        return self.writes[0].update_time


def relative(name: str) -> str:
    """The path of a full document name; a path is returned as it is."""
    if not name.startswith("projects/"):
        return name
    return name.partition("/documents/")[2]
