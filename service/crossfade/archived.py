"""Documents as lines of JSON, exactly: what an archive holds. Pure.

The tagged encoding of mapping/tagged.py, and of a NaN its bits where they are not the usual
ones, which PostgreSQL does not keep and an archive does.
"""

import struct
from typing import Any

import orjson

from crossfade.document import Document, Fields, Value, check_document, check_document_path
from crossfade.errors import InvalidArgument
from crossfade.mapping.tagged import ODD, from_json, is_odd, to_json

NAN_BITS = "7ff8000000000000"
_NAN = b'"NaN"'
_ODD_NAN = b'"NaN:'
_KEYS = {"path", "create_time", "update_time", "fields"}


def to_line(document: Document) -> bytes:
    """One line, without its end. Times are microseconds since 1970."""
    line = _line(document, to_json(document.fields))
    # Few documents hold a NaN, and the plain encoder knows only one.
    return _line(document, _exact(document.fields)) if _NAN in line else line


def from_line(line: bytes) -> Document:
    """The inverse. Raises InvalidArgument for a line that is no document."""
    try:
        held = orjson.loads(line)
        if not isinstance(held, dict) or held.keys() != _KEYS:
            raise InvalidArgument("a line of the archive is no document")
        fields: Any = (_restored if _ODD_NAN in line else from_json)(held["fields"])
        document = Document(held["path"], fields, held["create_time"], held["update_time"])
        check_document_path(document.path)
        check_document(document.path, document.fields)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError):
        # The cause would hold values.
        raise InvalidArgument("a line of the archive cannot be read") from None
    return document


def _line(document: Document, fields: Any) -> bytes:
    return orjson.dumps(
        {
            "path": document.path,
            "create_time": document.create_time,
            "update_time": document.update_time,
            "fields": fields,
        }
    )


def _exact(value: Value) -> Any:
    if isinstance(value, float) and value != value:
        bits = struct.pack(">d", value).hex()
        return {"$d": "NaN" if bits == NAN_BITS else f"NaN:{bits}"}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, dict):
        if any(map(is_odd, value)):
            return {ODD: [[to_json(key), _exact(item)] for key, item in value.items()]}
        return {key: _exact(item) for key, item in value.items()}
    return to_json(value)


def _restored(value: Any) -> Value:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return from_json(value)
    if value.keys() == {"$d"} and isinstance(value["$d"], str) and value["$d"].startswith("NaN:"):
        (number,) = struct.unpack(">d", bytes.fromhex(value["$d"][4:]))
        return float(number)
    if value.keys() == {ODD}:
        odd: Fields = {str(from_json(key)): _restored(item) for key, item in value[ODD]}
        return odd
    if any(key.startswith("$") for key in value):
        return from_json(value)
    return {key: _restored(item) for key, item in value.items()}
