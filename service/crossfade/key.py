"""Byte keys: bytes that sort as Firestore sorts what they stand for. Pure.

`value_key(a) < value_key(b)` exactly when `order_key(a) < order_key(b)`, and equal keys
mean equal values; likewise `name_key` and `path_key`. A key is no prefix of another
one, so keys may be joined, and sort as the tuples of what was joined. Indexes hold
them, in memory and in PostgreSQL's `bytea`.

A string ends with 00 01, and a zero byte in it is written 00 FF: what goes on sorts
after what ends, whatever it goes on with. What holds others ends with 00, and what it
holds begins with more.
"""

import struct
from datetime import datetime
from typing import Any

from crossfade.document import (
    GeoPoint,
    Kind,
    kind,
    numeric_id,
    to_micros,
)

_END = b"\x00"
_MORE = b"\x01"
_NUMERIC, _PLAIN = b"\x01", b"\x02"
_TAGS = {which: bytes([which + 1]) for which in Kind}
_FLOAT = struct.Struct(">d")
_BITS = struct.Struct(">Q")
_NUMBER = struct.Struct(">QH")
_SIGN = 1 << 63
_ALL = (1 << 64) - 1


def text_key(text: str) -> bytes:
    """Sorts as the text's UTF-8 bytes."""
    return bytes_key(text.encode())


def bytes_key(data: bytes) -> bytes:
    return data.replace(b"\x00", b"\x00\xff") + b"\x00\x01"


def value_key(value: Any) -> bytes:
    """The key of a value: its kind, then what orders it among its kind."""
    which = kind(value)
    key: bytes = _TAGS[which] + _KEYS[which](value)
    return key


def prefix_of(which: Kind) -> bytes:
    """What the keys of all values of a kind, and no others, begin with."""
    return _TAGS[which]


def _ordered_bits(number: float) -> int:
    """64 bits that sort, unsigned, as doubles do; -0.0 before 0.0."""
    bits: int = _BITS.unpack(_FLOAT.pack(number))[0]
    return bits ^ _ALL if bits & _SIGN else bits | _SIGN


def _number_key(number: float) -> bytes:
    """The largest double that is not larger, and how far above it the number lies.

    An integer of 64 bits is at most 1,023 above such a double, a double 0. NaN is the
    lowest, where no number's bits are.
    """
    if number != number:
        return _NUMBER.pack(0, 0)
    below = float(number)
    if below > number:
        below = _previous(below)
    above = 0 if isinstance(number, float) else number - int(below)
    return _NUMBER.pack(_ordered_bits(below + 0.0), above)  # -0.0 + 0.0 is 0.0


def _previous(number: float) -> float:
    """The next lower double; `number` is an integer and not 0."""
    bits: int = _BITS.unpack(_FLOAT.pack(number))[0]
    result: float = _FLOAT.unpack(_BITS.pack(bits - 1 if number > 0 else bits + 1))[0]
    return result


def _time_key(moment: datetime) -> bytes:
    return _BITS.pack(to_micros(moment) + _SIGN)


def _geo_point_key(point: GeoPoint) -> bytes:
    """Unlike among numbers, -0.0 comes before 0.0."""
    return _BITS.pack(_ordered_bits(point.latitude)) + _BITS.pack(_ordered_bits(point.longitude))


def _array_key(items: list[Any]) -> bytes:
    return b"".join(map(value_key, items)) + _END


def _map_key(fields: dict[str, Any]) -> bytes:
    parts = (_MORE + text_key(name) + value_key(fields[name]) for name in sorted(fields))
    return b"".join(parts) + _END


def _vector_key(vector: dict[str, Any]) -> bytes:
    """The dimension, then the items."""
    items = vector["value"]
    return len(items).to_bytes(4) + b"".join(map(value_key, items))


_KEYS: dict[Kind, Any] = {
    Kind.NULL: lambda _: b"",
    Kind.BOOLEAN: lambda value: b"\x01" if value else b"\x00",
    Kind.NUMBER: _number_key,
    Kind.TIMESTAMP: _time_key,
    Kind.STRING: text_key,
    Kind.BYTES: bytes_key,
    Kind.REFERENCE: lambda value: name_key(value.name),
    Kind.GEO_POINT: _geo_point_key,
    Kind.ARRAY: _array_key,
    Kind.VECTOR: _vector_key,
    Kind.MAP: _map_key,
}


# --- names -------------------------------------------------------------------------------------


def name_key(path: str) -> bytes:
    """The key of a document's path: numeric ids first, by number, then by UTF-8 bytes."""
    return below_key(path) + _END


def below_key(path: str) -> bytes:
    """What the keys of everything below `path`, and of `path` itself, begin with.

    `path` may be a collection's, or "" for everything.
    """
    if "__id" not in path and "\x00" not in path:
        if not path:
            return b""
        return _PLAIN + path.encode().replace(b"/", b"\x00\x01\x02") + b"\x00\x01"
    return b"".join(map(_segment_key, path.split("/")))


def _segment_key(segment: str) -> bytes:
    number = numeric_id(segment)
    return _PLAIN + text_key(segment) if number is None else _NUMERIC + _BITS.pack(number + _SIGN)


def path_of(key: bytes) -> str:
    """The inverse of `name_key`, and of `below_key`."""
    segments = []
    position, end = 0, len(key)
    while position < end and key[position]:
        if key[position] == _NUMERIC[0]:
            segments.append(f"__id{_BITS.unpack_from(key, position + 1)[0] - _SIGN}__")
            position += 9
            continue
        stop = key.index(b"\x00\x01", position)
        segments.append(key[position + 1 : stop].replace(b"\x00\xff", b"\x00").decode())
        position = stop + 2
    return "/".join(segments)


def after(prefix: bytes) -> bytes:
    """The lowest bytes that sort after all that begin with `prefix`, which is not all FF."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])
