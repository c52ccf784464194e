"""Python values to protobuf values and back. No I/O.

Errors name the field and never quote its value: they end up in logs.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from crossfade_api.v1 import document_pb2 as pb
from crossfade_client.errors import InternalError, InvalidArgumentError
from crossfade_client.values import (
    ArrayRemove,
    ArrayUnion,
    GeoPoint,
    Increment,
    Maximum,
    Minimum,
    Reference,
    Sentinel,
    Snapshot,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64 = range(-(2**63), 2**63)
TRANSFORMS = (Sentinel, Increment, Maximum, Minimum, ArrayUnion, ArrayRemove)


class _Illegal(Exception):
    """A value that cannot be encoded; the path grows on the way out. Never leaves this module."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def inside(self, segment: str) -> "_Illegal":
        joint = "" if not self.path or self.path.startswith("[") else "."
        self.path = segment + joint + self.path
        return self


# --- encoding -----------------------------------------------------------------------------------


def encode_value(value: Any, into: pb.Value, field: str) -> None:
    """Fills an empty Value message. Raises InvalidArgumentError naming `field`."""
    try:
        _encode(value, into)
    except _Illegal as error:
        where = error.inside(field).path
        raise InvalidArgumentError(f"field {where}: {error.reason}") from None


def encode_fields(fields: Mapping[str, Any], into: Any) -> None:
    """Fills the map<string, Value> of a document. Raises InvalidArgumentError."""
    try:
        _fill(fields, into)
    except _Illegal as error:
        raise InvalidArgumentError(f"field {error.path}: {error.reason}") from None


def _encode(value: Any, into: pb.Value) -> None:
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        encoder, value = _subclass(value)
    encoder(value, into)


def _subclass(value: Any) -> tuple[Callable[[Any, Any], None], Any]:
    """The encoder of a value whose exact type is not in the table."""
    if isinstance(value, TRANSFORMS):
        raise _Illegal(f"{type(value).__name__} may stand in a map of the document only")
    if isinstance(value, Enum):
        value = value.value
    for kind, encoder in _ENCODERS.items():
        if isinstance(value, kind):
            return encoder, value
    if isinstance(value, Mapping):
        return _encode_map, value
    raise _Illegal(f"a value of type {type(value).__name__} cannot be stored")


def _encode_int(value: int, into: pb.Value) -> None:
    if value not in _INT64:
        raise _Illegal("the integer does not fit 64 bits")
    into.integer_value = value


def _encode_text(value: str, into: pb.Value) -> None:
    try:
        into.string_value = value
    except UnicodeEncodeError:
        raise _Illegal("the text is not valid Unicode") from None


def _encode_time(value: datetime, into: pb.Value) -> None:
    if value.utcoffset() is None:
        raise _Illegal(
            "the datetime has no time zone; use datetime.now(UTC), or replace(tzinfo=UTC) "
            "for one that is in UTC"
        )
    set_time(value, into.timestamp_value)


def _encode_list(value: list[Any], into: pb.Value) -> None:
    into.array_value.SetInParent()
    add = into.array_value.values.add
    for index, item in enumerate(value):
        try:
            _encode(item, add())
        except _Illegal as error:
            raise error.inside(f"[{index}]") from None


def _encode_map(value: Mapping[str, Any], into: pb.Value) -> None:
    into.map_value.SetInParent()
    _fill(value, into.map_value.fields)


def _fill(value: Mapping[str, Any], fields: Any) -> None:
    for name, item in value.items():
        try:
            _encode(item, fields[_checked(name)])
        except _Illegal as error:
            raise error.inside(ascii(name)[1:-1] if isinstance(name, str) else "?") from None


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise _Illegal(f"a field name of type {type(name).__name__}, not a text")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _Illegal("a field name is not valid Unicode") from None
    return name


def _encode_geo_point(value: GeoPoint, into: pb.Value) -> None:
    into.geo_point_value.SetInParent()
    into.geo_point_value.latitude = value.latitude
    into.geo_point_value.longitude = value.longitude


def _setter(name: str) -> Callable[[Any, Any], None]:
    def encode(value: Any, into: Any) -> None:
        setattr(into, name, value)

    return encode


# bool before int and datetime before its subclasses' turn: `_subclass` walks in this order.
_ENCODERS: dict[type, Callable[[Any, Any], None]] = {
    type(None): lambda _, into: setattr(into, "null_value", 0),
    bool: _setter("boolean_value"),
    int: _encode_int,
    float: _setter("double_value"),
    str: _encode_text,
    bytes: _setter("bytes_value"),
    datetime: _encode_time,
    Reference: lambda value, into: setattr(into, "reference_value", value.name),
    GeoPoint: _encode_geo_point,
    list: _encode_list,
    tuple: _encode_list,
    dict: _encode_map,
}


def set_time(value: datetime, into: Timestamp) -> None:
    """Fills a Timestamp; the very epoch is present too."""
    delta = value - _EPOCH
    into.seconds = delta.days * 86_400 + delta.seconds
    into.nanos = delta.microseconds * 1_000
    into.SetInParent()


# --- decoding -----------------------------------------------------------------------------------


def decode_value(message: pb.Value) -> Any:
    """Raises InternalError for a value without a type: data is never guessed."""
    which = message.WhichOneof("value_type")
    if which == "string_value":  # the most frequent one, without a call
        return message.string_value
    decoder = _DECODERS.get(which or "")
    if decoder is None:
        raise InternalError("the reply holds a value of a type that this client does not know")
    return decoder(message)


def decode_fields(fields: Mapping[str, pb.Value]) -> dict[str, Any]:
    return {name: decode_value(fields[name]) for name in fields}


def decode_time(message: Timestamp) -> datetime:
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1_000)


_DECODERS: dict[str, Callable[[pb.Value], Any]] = {
    "null_value": lambda _: None,
    "boolean_value": lambda message: message.boolean_value,
    "integer_value": lambda message: message.integer_value,
    "double_value": lambda message: message.double_value,
    "string_value": lambda message: message.string_value,
    "bytes_value": lambda message: message.bytes_value,
    "timestamp_value": lambda message: decode_time(message.timestamp_value),
    "reference_value": lambda message: Reference(message.reference_value),
    "geo_point_value": lambda message: GeoPoint(
        message.geo_point_value.latitude, message.geo_point_value.longitude
    ),
    "array_value": lambda message: [decode_value(item) for item in message.array_value.values],
    "map_value": lambda message: decode_fields(message.map_value.fields),
}


def decode_document(message: pb.Document) -> Snapshot:
    return Snapshot(
        message.name,
        decode_fields(message.fields),
        decode_time(message.create_time),
        decode_time(message.update_time),
    )
