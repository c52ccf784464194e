"""Lines of an archive: every legal document comes back, to the last bit."""

import math
import struct
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossfade.archived import from_line, to_line
from crossfade.document import INT64_MAX, INT64_MIN, Document, GeoPoint, Reference
from crossfade.errors import InvalidArgument
from crossfade.wire import document_bytes
from tests import strategies
from tests.sidecar import DATABASE


def same_bytes(left: Document, right: Document) -> bool:
    """Unlike `identical`, this sees the bits of a NaN. Maps have no order on the wire."""
    return sorted_fields(left.fields) == sorted_fields(right.fields) and (
        (left.path, left.create_time, left.update_time)
        == (right.path, right.create_time, right.update_time)
    )


def sorted_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {"map": [(key, sorted_fields(value[key])) for key in sorted(value)]}
    if isinstance(value, list):
        return ["array", *map(sorted_fields, value)]
    if isinstance(value, float):
        return ("double", struct.pack(">d", value))
    if isinstance(value, GeoPoint):
        return ("geo", struct.pack(">dd", value.latitude, value.longitude))
    return (type(value).__name__, value)


@given(strategies.paths(), strategies.fields(), st.integers(0, 2**52))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_every_document_comes_back(path, fields, time):
    document = Document(path, fields, time, time + 1)
    line = to_line(document)
    assert b"\n" not in line
    assert same_bytes(from_line(line), document)


@pytest.mark.parametrize(
    "value",
    [
        *(-0.0, 0.0, math.inf, -math.inf, 5e-324, INT64_MAX, INT64_MIN, 2**53 + 1, 1, 1.0),
        *(True, None, b"\x00\xff", "a\0b", "NaN", "NaN:7ff8000000000001", [], {}, [None]),
        {"$d": "NaN:7ff8000000000001", "a\0": [{"$m": math.nan}]},
        {"__type__": "__vector__", "value": [1.0, -0.0]},
        *(GeoPoint(-0.0, 180.0), Reference("projects/p/databases/d/documents/a/b\0")),
        *(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    ],
)
def test_values_that_are_easily_lost(value):
    document = Document("a/b", {"v": value, "nested": {"odd.name": [value]}}, 1, 2)
    if isinstance(value, list) or (isinstance(value, dict) and "__type__" in value):
        document = Document("a/b", {"v": value}, 1, 2)
    assert same_bytes(from_line(to_line(document)), document)


@pytest.mark.parametrize("bits", [0x7FF8000000000000, 0x7FF8000000000001, 0xFFF8000000000000])
def test_a_nan_keeps_its_bits(bits):
    (nan,) = struct.unpack(">d", struct.pack(">Q", bits))
    document = Document("a/b", {"n": nan, "m": {"$x": [nan, 1.0]}, "s": "NaN"}, 1, 2)
    back = from_line(to_line(document))
    assert same_bytes(back, document)
    assert document_bytes(back, DATABASE) == document_bytes(document, DATABASE)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b'{"path":"a","create_time":1,"update_time":1,"fields":{}}',
        b'{"path":"a/b","create_time":1,"update_time":1,"fields":{"a":{"$x":1}}}',
        b'{"path":"a/b","create_time":1,"update_time":1,"fields":{"a":{"$d":"NaN:zz"}}}',
        b'{"path":"a/b","create_time":1,"update_time":1,"fields":{"a":18446744073709551615}}',
        orjson.dumps({"path": "a/b", "create_time": 1, "update_time": 1, "fields": {"": 1}}),
    ],
)
def test_a_line_that_is_no_document_is_refused(line):
    with pytest.raises(InvalidArgument):
        from_line(line)
