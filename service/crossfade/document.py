"""Documents: paths, values, their order and their limits. Pure.

A value is one of Python's own types where Firestore's type has a twin, and a
small frozen class where it has none:

    null None · boolean bool · integer int · double float · string str · bytes bytes
    timestamp datetime (aware, UTC, microseconds) · reference Reference
    geo point GeoPoint · array list · map dict

`bool` is an `int` and `1 == 1.0` in Python, so nothing here compares values
with `==`: `identical` is the comparison of diffs, `compare` and `order_key` are
Firestore's order, in which 1 and 1.0 are equal and NaN equals itself.

A vector is, on the wire and here, a map with the two keys of `VECTOR_KEYS`.
"""

import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, TypeAlias

from crossfade.errors import InvalidArgument, TooLarge

MAX_DOCUMENT_BYTES = 1_048_576
MAX_VALUE_BYTES = 1_048_487
MAX_NAME_BYTES = 1_500
"""Of an id, of a field path, and of a field's name with those of the maps around it."""
MAX_DEPTH = 20
MAX_VECTOR = 2_048
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
VECTOR_KEYS = {"__type__", "value"}
# Collections of Crossfade's own in the user's Firestore: invisible through every front.
OWN_COLLECTION_PREFIX = "_crossfade_"


@dataclass(frozen=True, slots=True)
class Reference:
    """A full document name, as stored: projects/P/databases/D/documents/PATH."""

    name: str


@dataclass(frozen=True, slots=True)
class GeoPoint:
    """Degrees; latitude -90..90, longitude -180..180."""

    latitude: float
    longitude: float


Value: TypeAlias = (
    "bool | int | float | datetime | str | bytes | Reference | GeoPoint"
    " | list[Value] | dict[str, Value] | None"
)
Fields: TypeAlias = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document. `path` is relative to the database; times are microseconds since 1970."""

    path: str
    fields: Fields
    create_time: int
    update_time: int


# --- paths -------------------------------------------------------------------------------------

_RESERVED = re.compile(r"__.*__", re.DOTALL)
_NUMERIC_ID = re.compile(r"__id(-?[1-9][0-9]{0,18})__")
_DATABASE = re.compile(r"projects/([^/]+)/databases/([^/]+)/documents(?:/(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Database:
    """Whose documents these are."""

    project: str
    database: str = "(default)"

    @property
    def name(self) -> str:
        return f"projects/{self.project}/databases/{self.database}"

    @property
    def root(self) -> str:
        return f"{self.name}/documents"

    def full(self, path: str) -> str:
        """The full name of a relative path; of "" the root."""
        return f"{self.root}/{path}" if path else self.root

    def relative(self, name: str, field: str = "name") -> str:
        """The path of a full name in this database; a relative path is returned as it is.

        Raises InvalidArgument for a name in another database.
        """
        if not name.startswith("projects/"):
            return name
        match = _DATABASE.fullmatch(name)
        if match is None:
            raise InvalidArgument(
                f'{field}: "{name[:120]}" is not a document name; expected '
                f'"{self.root}/COLLECTION/ID" or "COLLECTION/ID"'
            )
        if (match[1], match[2]) != (self.project, self.database):
            raise InvalidArgument(
                f'{field}: "{name[:120]}" lies in another database than "{self.name}"'
            )
        return match[3] or ""


def check_id(segment: str, field: str, *, numeric: bool = True) -> None:
    """Raises InvalidArgument unless `segment` is a legal id. `numeric`: __id7__ is one too,
    as it is for documents and not for collections."""
    if not segment:
        raise InvalidArgument(f"{field}: it lacks a resource id: a path segment is empty")
    if segment in {".", ".."}:
        raise InvalidArgument(f'{field}: it contains a resource id "{segment}"')
    if "/" in segment:
        raise InvalidArgument(
            f'{field}: {_id_of(numeric)} "{segment[:120]}" is invalid because it contains "/".'
        )
    if len(utf8(segment, field)) > MAX_NAME_BYTES:
        raise InvalidArgument(
            f"{field}: The key path element name is longer than {MAX_NAME_BYTES} bytes."
        )
    if not _RESERVED.fullmatch(segment):
        return
    if not numeric or numeric_id(segment) is None:
        raise InvalidArgument(
            f'{field}: {_id_of(numeric)} "{segment[:120]}" is invalid because it is reserved.'
        )


def _id_of(document: bool) -> str:
    return "Resource id" if document else "Collection id"


# What nearly every path looks like: legal at a glance, a tenth of the whole check's cost.
_PLAIN_PATH = re.compile(
    r"[a-z0-9][a-z0-9_]{0,99}/[a-z0-9][a-z0-9_-]{0,99}", re.ASCII | re.IGNORECASE
)


def check_document_path(path: str, field: str = "name") -> str:
    """`path` itself, when it names a document. Raises InvalidArgument otherwise."""
    if _PLAIN_PATH.fullmatch(path):
        return path
    segments = path.split("/")
    if len(segments) % 2:
        raise InvalidArgument(
            f'{field}: Document name "{path[:120]}" lacks "/": it names a collection, not a '
            f"document, whose path has an even number of segments"
        )
    for index, segment in enumerate(segments):
        check_id(segment, field, numeric=bool(index % 2))
    return path


def collection_path(path: str) -> str:
    """The collection of a document: "tasks/1/chunks" of "tasks/1/chunks/2"."""
    return path.rpartition("/")[0]


def collection_id(path: str) -> str:
    """The last segment of a document's collection: "chunks" of "tasks/1/chunks/2"."""
    return path.rsplit("/", 2)[-2]


def document_id(path: str) -> str:
    return path.rpartition("/")[2]


def is_own(path: str) -> bool:
    """Whether the path lies in a collection of Crossfade's own."""
    return path.startswith(OWN_COLLECTION_PREFIX)


def numeric_id(segment: str) -> int | None:
    """7 of "__id7__", None of any other id."""
    match = _NUMERIC_ID.fullmatch(segment)
    number = None if match is None else int(match[1])
    return number if number is not None and INT64_MIN <= number <= INT64_MAX else None


def id_key(segment: str) -> tuple[int, int, str]:
    """Sort key of one id: numeric ids first, by number, then by UTF-8 bytes.

    Python orders strings by code point, which is the order of their UTF-8 bytes.
    """
    number = numeric_id(segment)
    return (1, 0, segment) if number is None else (0, number, "")


def path_key(path: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key of a document path (the order of `__name__`)."""
    return tuple(id_key(segment) for segment in path.split("/"))


# --- field paths -------------------------------------------------------------------------------

FieldPath: TypeAlias = tuple[str, ...]
NAME: FieldPath = ("__name__",)
_SIMPLE = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_SEGMENT = re.compile(r"`((?:[^`\\]|\\.)+)`|([A-Za-z_][A-Za-z_0-9]*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse_field_path(text: str, field: str = "field_path") -> FieldPath:
    """The segments of a field path in Firestore's notation: a.b.`odd name`."""
    if len(text) <= MAX_NAME_BYTES and _SIMPLE.fullmatch(text):
        return (text,)
    if len(text) > MAX_NAME_BYTES or len(utf8(text, field)) > MAX_NAME_BYTES:
        raise InvalidArgument(
            f"{field}: property path is longer than {MAX_NAME_BYTES} bytes. It begins with "
            f'"{text[:100]}"'
        )
    if not text:
        raise InvalidArgument(f"{field}: Invalid empty property path string.")
    segments: list[str] = []
    position = 0
    while (match := _SEGMENT.match(text, position)) is not None:
        quoted, plain = match.groups()
        segments.append(_ESCAPE.sub(r"\1", quoted) if plain is None else plain)
        position = match.end()
        if position == len(text):
            return tuple(segments)
        if text[position] != ".":
            break
        position += 1
    raise InvalidArgument(
        f'{field}: Invalid property path "{text[:120]}". Unquoted property paths must match regex '
        f"([a-zA-Z_][a-zA-Z_0-9]*), and quoted property paths must match regex "
        r"(`(?:[^`\\]|(?:\\.))+`)"
    )


def format_field_path(path: FieldPath) -> str:
    """The inverse of `parse_field_path`."""
    return ".".join(
        part
        if _SIMPLE.fullmatch(part)
        else "`" + part.replace("\\", "\\\\").replace("`", "\\`") + "`"
        for part in path
    )


def check_field_path(path: FieldPath, field: str) -> None:
    """Raises InvalidArgument for a path of reserved names; `__name__` itself is none."""
    if path == NAME:
        return
    for part in path:
        if _RESERVED.fullmatch(part):
            raise InvalidArgument(f"{field}: Invalid reserved name in field path {part[:120]}")


def check_reserved_name(name: str, field: str) -> None:
    """Raises InvalidArgument for the name of a field that a result may not have."""
    if len(utf8(name, field)) > MAX_NAME_BYTES:
        raise InvalidArgument(f"{field}: The property.name is longer than {MAX_NAME_BYTES} bytes.")
    if _RESERVED.fullmatch(name):
        raise InvalidArgument(f'{field}: The property.name "{name[:120]}" is reserved.')


ABSENT = object()


def get_field(fields: Mapping[str, Any], path: FieldPath) -> Any:
    """The value at `path`, or ABSENT. A vector has no fields."""
    value: Any = fields
    for part in path:
        if not isinstance(value, dict) or part not in value or is_vector(value):
            return ABSENT
        value = value[part]
    return value


def with_field(fields: Fields, path: FieldPath, value: Any) -> Fields:
    """A copy of `fields` in which `path` holds `value`, or nothing for ABSENT.

    Maps on the way are made where they are missing (and something is to be set).
    """
    return with_fields(fields, ((path, value),))


def with_fields(fields: Fields, changes: Iterable[tuple[FieldPath, Any]]) -> Fields:
    """`with_field` of many, in order. Every map is copied once, however many lie in it."""
    result = dict(fields)
    ours = {id(result)}
    for path, value in changes:
        inner: Any = result
        for part in path[:-1]:
            held = inner.get(part, ABSENT)
            if not isinstance(held, dict) or is_vector(held):
                if value is ABSENT:
                    break
                held = {}
                ours.add(id(held))
            elif id(held) not in ours:
                held = dict(held)
                ours.add(id(held))
            inner[part] = held
            inner = held
        else:
            if value is ABSENT:
                inner.pop(path[-1], None)
            else:
                inner[path[-1]] = value
    return result


# --- order and equality ------------------------------------------------------------------------


class Kind(IntEnum):
    """Firestore's order of types. All numbers are one kind, with NaN before the rest."""

    NULL = 0
    BOOLEAN = 1
    NUMBER = 2
    TIMESTAMP = 3
    STRING = 4
    BYTES = 5
    REFERENCE = 6
    GEO_POINT = 7
    ARRAY = 8
    VECTOR = 9
    MAP = 10


_KINDS: dict[type, Kind] = {
    type(None): Kind.NULL,
    bool: Kind.BOOLEAN,
    int: Kind.NUMBER,
    float: Kind.NUMBER,
    datetime: Kind.TIMESTAMP,
    str: Kind.STRING,
    bytes: Kind.BYTES,
    Reference: Kind.REFERENCE,
    GeoPoint: Kind.GEO_POINT,
    list: Kind.ARRAY,
    dict: Kind.MAP,
}


def is_vector(value: dict[str, Any]) -> bool:
    return (
        value.get("__type__") == "__vector__"
        and value.keys() == VECTOR_KEYS
        and isinstance(value["value"], list)
    )


def kind(value: Any) -> Kind:
    """The kind of a value, for ordering and for 'ranges match only the operand's type'."""
    result = _KINDS[type(value)]
    return Kind.VECTOR if result is Kind.MAP and is_vector(value) else result


def order_key(value: Any) -> tuple[Any, ...]:
    """A tuple that sorts as Firestore sorts the value. Equal keys mean equal values.

    Python compares int and float exactly, whatever their size, and -0.0 == 0.0.
    """
    which = kind(value)
    if which is Kind.NUMBER:
        return (which, 0, 0) if value != value else (which, 1, value)
    if which is Kind.ARRAY:
        return (which, tuple(order_key(item) for item in value))
    if which is Kind.MAP:
        return (which, tuple((key, order_key(value[key])) for key in sorted(value)))
    if which is Kind.VECTOR:
        items = value["value"]
        return (which, len(items), tuple(order_key(item) for item in items))
    if which is Kind.REFERENCE:
        return (which, tuple(id_key(part) for part in value.name.split("/")))
    if which is Kind.GEO_POINT:
        return (which, *_signed(value.latitude), *_signed(value.longitude))
    return (which, value)


def _signed(degrees: float) -> tuple[float, float]:
    """In a geo point, unlike among numbers, -0.0 comes before 0.0 (so does the emulator)."""
    return degrees, math.copysign(1.0, degrees)


def compare(left: Any, right: Any) -> int:
    """-1, 0 or 1 in Firestore's order."""
    a, b = order_key(left), order_key(right)
    return (a > b) - (a < b)


def equal(left: Any, right: Any) -> bool:
    """Equality of queries: 1 equals 1.0, NaN equals NaN."""
    return order_key(left) == order_key(right)


def identical(left: Any, right: Any) -> bool:
    """The same value of the same type to the last bit: 1 is not 1.0, 0.0 is not -0.0."""
    if left is right:
        return True
    which = type(left)
    if which is not type(right):
        return False
    if which is float:
        return struct.pack(">d", left) == struct.pack(">d", right) or (
            left != left and right != right
        )
    if which is dict:
        return len(left) == len(right) and _identical_fields(left, right)
    if which is list:
        return len(left) == len(right) and all(map(identical, left, right))
    if which is GeoPoint:
        return identical(left.latitude, right.latitude) and identical(
            left.longitude, right.longitude
        )
    return bool(left == right)


# Types whose equal values are identical, if they are of one type.
_EXACT = {type(None), bool, int, str, bytes, datetime}


def _identical_fields(left: Fields, right: Fields) -> bool:
    """Of maps with as many names. Every commit compares one with what is stored, so most
    values are told apart without a call."""
    for name, value in left.items():
        other = right.get(name, ABSENT)
        if value is other:
            continue
        if type(value) in _EXACT:
            if type(value) is not type(other) or value != other:
                return False
        elif not identical(value, other):
            return False
    return True


# --- times -------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970. Exact, unlike `timestamp()`."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_micros(micros: int) -> datetime:
    return _EPOCH + timedelta(0, 0, micros)


# --- limits ------------------------------------------------------------------------------------


def utf8(text: str, field: str) -> bytes:
    """The text's bytes. Raises InvalidArgument for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{field}: the text is not valid Unicode") from error


def check_document(path: str, fields: Fields) -> int:
    """The size in bytes by which Firestore counts a document.

    Raises InvalidArgument when Firestore would refuse to store these fields at `path`.
    """
    size = sum(len(part.encode()) + 1 for part in path.split("/")) + 16 + 32
    size += _check_fields(fields, (), 0, 0)
    if size > MAX_DOCUMENT_BYTES:
        raise TooLarge(
            f"Document '{path[:120]}' cannot be written because its size ({size:,} bytes) exceeds "
            f"the maximum allowed size of {MAX_DOCUMENT_BYTES:,} bytes."
        )
    return size


_FIXED_SIZES = {type(None): 1, bool: 1, float: 8, datetime: 8}


def _check_fields(fields: Fields, where: FieldPath, outer: int, depth: int) -> int:
    """The size of the names and values in a map, which lies at `where` and whose own name,
    with those around it, takes `outer` bytes.

    What nearly every field is like is seen here at a glance: every commit passes through.
    """
    size = 0
    value: Any
    for name, value in fields.items():
        if name.isascii() and name and name[0] != "_" and outer + len(name) <= MAX_NAME_BYTES:
            size += len(name) + 1
        else:
            size += _check_name(name, where) + 1
        which = type(value)
        fixed = _FIXED_SIZES.get(which)
        if fixed is not None:
            size += fixed
        elif which is int and INT64_MIN <= value <= INT64_MAX:
            size += 8
        elif which is str and value.isascii() and len(value) <= MAX_VALUE_BYTES:
            size += len(value) + 1
        else:
            size += _check_value(value, (*where, name), depth)
    return size


def _check_name(name: str, parent: FieldPath) -> int:
    """The name's size in bytes. Raises InvalidArgument."""
    if not name:
        raise (
            _nested(parent, "the name of a field is empty")
            if parent
            else InvalidArgument("fields: The property.name is the empty string.")
        )
    own = len(utf8(name, f"field name in {_shown(parent)}" if parent else "field name"))
    size = own + sum(len(p.encode()) + 1 for p in parent)
    if size > MAX_NAME_BYTES:
        why = f"the names around it and its own are longer than {MAX_NAME_BYTES} bytes"
        raise (
            _nested((*parent, name), why)
            if parent
            else InvalidArgument(
                f"field {_shown((name,))}: The property.name is longer than {MAX_NAME_BYTES} bytes."
            )
        )
    if _RESERVED.fullmatch(name):
        raise InvalidArgument(
            f"field {_shown((*parent, name))}: field name '{name[:120]}' is reserved."
        )
    return own


def _check_value(value: Any, where: FieldPath, depth: int) -> int:
    """The size of a legal value in bytes, by Firestore's published rules.

    `depth`: how many maps and arrays the value lies in.
    """
    size = 8
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, str):
        size = len(utf8(value, f"field {_shown(where)}") if not value.isascii() else value)
        _check_size(size, where)
        return size + 1
    if isinstance(value, int):
        if not INT64_MIN <= value <= INT64_MAX:
            raise InvalidArgument(f"field {_shown(where)}: the integer does not fit 64 bits")
    elif isinstance(value, bytes):
        size = len(value)
    elif isinstance(value, Reference):
        size = _check_reference(value, where)
    elif isinstance(value, GeoPoint):
        if not (-90 <= value.latitude <= 90 and -180 <= value.longitude <= 180):
            raise InvalidArgument(
                f"field {_shown(where)}: Geo point latitude outside permitted range -90.0 to "
                f"90.0, or longitude outside -180.0 to 180.0."
            )
        size = 16
    elif isinstance(value, list):
        size = _check_array(value, where, depth)
    elif isinstance(value, dict):
        size = _check_map(value, where, depth)
    _check_size(size, where)
    return size


def _shown(where: FieldPath) -> str:
    return format_field_path(where)[:120]


def _check_size(size: int, where: FieldPath) -> None:
    if size > MAX_VALUE_BYTES:
        raise InvalidArgument(
            f'The value of property "{_shown(where)}" is longer than {MAX_VALUE_BYTES} bytes.'
        )


def _nested(where: FieldPath, why: str) -> InvalidArgument:
    """Firestore names the outermost field only."""
    top = _shown(where[:1])
    return InvalidArgument(
        f"Property {top} contains an invalid nested entity. At {_shown(where)}: {why}"
    )


def _check_depth(where: FieldPath, depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise _nested(where, f"maps and arrays are nested deeper than the limit of {MAX_DEPTH}")


def _check_array(value: list[Any], where: FieldPath, depth: int) -> int:
    _check_depth(where, depth)
    size = 0
    for index, item in enumerate(value):
        if isinstance(item, list):
            raise InvalidArgument(
                f"field {_shown(where)}[{index}]: Cannot convert an array value in an array value."
            )
        if isinstance(item, dict) and is_vector(item):
            raise InvalidArgument(
                f"field {_shown(where)}[{index}]: Cannot convert a vector value in an array value."
            )
        size += _check_value(item, where, depth + 1)
    return size


def _check_map(value: dict[str, Any], where: FieldPath, depth: int) -> int:
    if "__type__" in value:
        return _check_vector(value, where)
    _check_depth(where, depth)
    outer = sum(len(part.encode()) + 1 for part in where)
    return (32 if depth else 0) + _check_fields(value, where, outer, depth + 1)


def _check_vector(value: dict[str, Any], where: FieldPath) -> int:
    """A map with the key `__type__` is a vector or illegal."""
    if value["__type__"] != "__vector__":
        raise _nested((*where, "__type__"), "the name is reserved")
    if (fault := vector_fault(value)) is not None:
        raise InvalidArgument(f"field {_shown(where)}: {fault}")
    items: Any = value["value"]
    return 32 + sum(len(key) + 1 for key in VECTOR_KEYS) + len("__vector__") + 1 + 8 * len(items)


def vector_fault(value: dict[str, Any]) -> str | None:
    """What is wrong with a map that says it is a vector. Firestore's words."""
    if "value" not in value:
        return "Vector map is missing key 'value'."
    if len(value) > len(VECTOR_KEYS):
        return "Vector Value map has extraneous entries."
    items = value["value"]
    if not isinstance(items, list) or not all(isinstance(item, float) for item in items):
        return "Vector must only contain values of type 'double'"
    if not items:
        return "Cannot have a zero length vector."
    if len(items) > MAX_VECTOR:
        return f"Vectors must be at most {MAX_VECTOR} dimensions."
    if any(item != item for item in items):
        return "Vector cannot contain NaN values."
    return None


def _check_reference(value: Reference, where: FieldPath) -> int:
    match = _DATABASE.fullmatch(value.name)
    if match is None or not match[3]:
        raise InvalidArgument(
            f"field {_shown(where)}: a reference is the full name of a document, "
            f"projects/PROJECT/databases/DATABASE/documents/COLLECTION/ID"
        )
    check_document_path(match[3], f"field {_shown(where)}")
    return sum(len(part.encode()) + 1 for part in match[3].split("/")) + 16


def walk(fields: Fields, prefix: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """Every leaf of the fields with its path; an empty map is a leaf."""
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from walk(value, (*prefix, name))
        else:
            yield (*prefix, name), value
