"""Values as JSON with tags where JSON has no such type, and paths as PostgreSQL can hold them."""

import base64
from datetime import datetime
from typing import Any

from crossfade.document import Fields, GeoPoint, Reference, Value, from_micros, to_micros

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
    names = "\1".join(value)  # looked at together: odd ones are rare
    if ("$" in names or "\0" in names) and any(map(is_odd, value)):
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
