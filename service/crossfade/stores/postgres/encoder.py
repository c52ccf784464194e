"""Document messages to rows, in one pass: what a page of the copy is made of.

The plain way is two: `wire.decode_fields` makes values of a message, and
`CollectionMapping.to_row` puts them into columns and tagged JSON. Half of its work is
objects that nobody keeps (a datetime for {"$t": microseconds}, a Reference for its name),
and the plain way is this one's reference in tests.
"""

import base64
from collections.abc import Callable, Mapping
from math import isfinite
from operator import attrgetter
from typing import Any, TypeAlias

from crossfade.document import GeoPoint, Reference, from_micros
from crossfade.errors import InvalidArgument
from crossfade.mapping import (
    ODD,
    BoolCodec,
    BytesCodec,
    Codec,
    CollectionMapping,
    DerivedMapping,
    DoubleCodec,
    Int8Codec,
    IntArrayCodec,
    JsonCodec,
    Row,
    TextCodec,
    TimeCodec,
    is_odd,
    to_json,
)
from crossfade.wire import decode_time

Encoder: TypeAlias = Callable[[Any], Row]
"""Of the `map<string, Value>` field of a Document message."""

_Take: TypeAlias = Callable[[Any], Any]
"""Of a Value message, what a column is given; _REFUSED: the column does not hold it."""
_Slot: TypeAlias = tuple[int, Mapping[str, _Take], Callable[[str], bool] | None, bool]
"""The column's number, what takes a value of a kind, whether a text of some length fits it
(None: any without NUL does), and whether it takes texts at all."""

_REFUSED = object()


def make_encoder(mapping: CollectionMapping) -> Encoder:
    """The encoder of a mapping's table."""
    if isinstance(mapping, DerivedMapping):
        return _derived(mapping)
    width = len(mapping.columns)
    slots = {entry.field: _slot(index, entry.codec) for index, entry in enumerate(mapping.columns)}

    def encode(fields: Any) -> Row:
        values: list[Any] = [None] * width
        rest: dict[str, Any] = {}
        misfits: list[str] = []
        find, takers = slots.get, _TAGGED
        for name in fields:
            message = fields[name]
            slot = find(name)
            text = message.string_value  # most are, so that is tried first
            if text:
                if slot is not None:
                    if slot[3] and "\0" not in text and (slot[2] is None or slot[2](text)):
                        values[slot[0]] = text
                        continue
                    misfits.append(name)
                rest[name] = text if "\0" not in text else to_json(text)
                continue
            kind = message.WhichOneof("value_type")
            if slot is not None:
                take = slot[1].get(kind)
                value = _REFUSED if take is None else take(message)
                if value is not _REFUSED:
                    values[slot[0]] = value
                    continue
                misfits.append(name)
            rest[name] = takers[kind](message)
        remainder = _checked(rest) if rest else None
        if remainder is not None and ODD in remainder:
            misfits.append(ODD)
        return Row(tuple(values), remainder, misfits or None)

    return encode


def _derived(mapping: DerivedMapping) -> Encoder:
    """All of it in the remainder."""
    names = [entry.field for entry in mapping.columns]
    nothing: tuple[Any, ...] = (None,) * len(names)

    def encode(fields: Any) -> Row:
        misfits = [name for name in names if name in fields]
        remainder = tagged_fields(fields) if len(fields) else None
        if remainder is not None and ODD in remainder:
            misfits.append(ODD)
        return Row(nothing, remainder, misfits or None)

    return encode


# --- columns -----------------------------------------------------------------------------------


def _slot(index: int, codec: Codec) -> _Slot:
    if isinstance(codec, TextCodec):
        plain = codec.limit is None and codec.words is None
        empty = {"string_value": _only_if(codec, attrgetter("string_value"))}
        return index, empty, None if plain else codec.fits, True
    for kind, takes in _TAKES.items():
        if isinstance(codec, kind):
            return index, takes(codec), None, False
    raise TypeError(f"no encoder for {codec!r}")


def _only_if(codec: Codec, read: _Take) -> _Take:
    """Reads a value, and lets it through if it fits."""
    fits = codec.fits

    def take(message: Any) -> Any:
        value = read(message)
        return value if fits(value) else _REFUSED

    return take


def _integers(message: Any) -> Any:
    items = message.array_value.values
    if any(item.WhichOneof("value_type") != "integer_value" for item in items):
        return _REFUSED
    return [item.integer_value for item in items]


def _moment(message: Any) -> Any:
    return from_micros(decode_time(message.timestamp_value))


_TAKES: dict[type, Callable[[Codec], dict[str, _Take]]] = {
    Int8Codec: lambda _: {"integer_value": attrgetter("integer_value")},
    BoolCodec: lambda _: {"boolean_value": attrgetter("boolean_value")},
    DoubleCodec: lambda codec: {"double_value": _only_if(codec, attrgetter("double_value"))},
    BytesCodec: lambda codec: {"bytes_value": _only_if(codec, attrgetter("bytes_value"))},
    TimeCodec: lambda codec: {"timestamp_value": _only_if(codec, _moment)},
    IntArrayCodec: lambda _: {"array_value": _integers},
    JsonCodec: lambda _: {"map_value": _tagged_map, "array_value": _tagged_array},
}


# --- tagged JSON -------------------------------------------------------------------------------


def tagged_fields(fields: Any) -> Any:
    """The tagged JSON (see mapping/tagged.py) of a `map<string, Value>` field."""
    takers = _TAGGED
    found: dict[str, Any] = {}
    for name in fields:
        message = fields[name]
        text = message.string_value
        if text:
            found[name] = text if "\0" not in text else to_json(text)
        else:
            found[name] = takers[message.WhichOneof("value_type")](message)
    return _checked(found)


def _checked(found: dict[str, Any]) -> Any:
    """A map whose values are tagged already; as pairs, where one of its names is odd."""
    names = "\1".join(found)  # looked at together: odd ones are rare
    if ("$" in names or "\0" in names) and any(map(is_odd, found)):
        return {ODD: [[to_json(name), value] for name, value in found.items()]}
    return found


def _tagged_map(message: Any) -> Any:
    return tagged_fields(message.map_value.fields)


def _tagged_array(message: Any) -> Any:
    takers = _TAGGED
    return [takers[item.WhichOneof("value_type")](item) for item in message.array_value.values]


def _tagged_text(message: Any) -> Any:
    text = message.string_value
    return text if "\0" not in text else to_json(text)


def _tagged_double(message: Any) -> Any:
    value = message.double_value
    # What is neither plain nor zero has a name of its own.
    return {"$d": value} if value and isfinite(value) else to_json(value)


def _tagged_point(message: Any) -> Any:
    point = message.geo_point_value
    return to_json(GeoPoint(point.latitude, point.longitude))


class _Tagged(dict[str | None, _Take]):
    def __missing__(self, _: str | None) -> _Take:
        raise InvalidArgument(
            "Cannot convert firestore.v1.Value with type unset, or with one that may not be stored"
        )


_TAGGED = _Tagged(
    {
        "null_value": lambda _: None,
        "boolean_value": attrgetter("boolean_value"),
        "integer_value": attrgetter("integer_value"),
        "double_value": _tagged_double,
        "timestamp_value": lambda message: {"$t": decode_time(message.timestamp_value)},
        "string_value": _tagged_text,
        "bytes_value": lambda message: {"$b": base64.b64encode(message.bytes_value).decode()},
        "reference_value": lambda message: to_json(Reference(message.reference_value)),
        "geo_point_value": _tagged_point,
        "array_value": _tagged_array,
        "map_value": _tagged_map,
    },
)
