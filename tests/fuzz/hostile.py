"""Contents that have broken servers before, or should not break this one."""

from functools import cache
from typing import Any

from google.cloud.firestore_v1 import types
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import DoubleValue, Int32Value

from tests.fuzz.legal import DATABASE, ROOT, array, mapping, name, number, text, vector
from tests.fuzz.tree import BYTES, END_GROUP, FIXED32, FIXED64, GROUP, VARINT, Tree, double, parse

MEBIBYTE = 1 << 20

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 77, 1_000, 1_000_000),
    *(2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32, 2**53 + 1),
    *(2**63 - 1, -(2**63), 2**64 - 1, 253_402_300_800, -62_135_596_801),
)
DOUBLES = tuple(
    double(value)
    for value in (
        *(0.0, -0.0, 1.5, -1.0, 5e-324, 1.7976931348623157e308, 90.000001, -180.5),
        *(float("inf"), float("-inf"), float("nan")),
    )
) + (b"\xff" * 8, b"\x01\x00\x00\x00\x00\x00\xf0\x7f")  # NaNs with contents of their own


def _encoded(*items: str | bytes) -> tuple[bytes, ...]:
    return tuple(item if isinstance(item, bytes) else item.encode() for item in items)


_TEXTS = _encoded(
    *("", "\0", "a\0b", " ", "a", "\u202e\U0001f600", "ü" * 800, "a" * 1_501, "\r\nx: y", "%s{}"),
    # What is no UTF-8: a lone surrogate, an overlong NUL, a cut character, beyond Unicode.
    *(b"\xed\xa0\x80", b"\xc0\x80", b"\xe4\xb8", b"\xf5\x80\x80\x80", b"\xff\xfe"),
    *("c", "sub", ".", "..", "/", "//", "a/b", "__x__", "__name__", "__type__", "__id7__"),
    *("__id-9223372036854775808__", "__id99999999999999999999999__", "__id0x1__"),
    *("field_1", "0", "-1", "null", "c/" * 1_000, "_crossfade_intents"),
)
_PATHS = _encoded(
    *("", "n", "m", "m.x", "tags", "v", "s", "v.value", "v.__type__", "n.n.n", "*", "a b", "0"),
    *("`", "``", "`a", "a.", ".a", "a..b", "`a\\`", "`a\\``.b", "a`b", "`a.b`", "`\\``", "ü"),
    *("__name__", "`__name__`", "__name__.a", "__x__", "a.__x__", "\0", b"\xed\xa0\x80"),
    *("a." * 19 + "a", "a." * 99 + "a", "a." * 740 + "a", "a." * 5_000 + "a", "a" * 1_501),
    *(
        "n asc, n desc",
        "n desc,",
        "n,,s",
        "`,` desc",
        "n desc, __name__",
        "__name__, n",
        "n sideways",
    ),
)
_NAMES = _encoded(
    *("", "/", "c/a", "/c/a", "projects/", "projects//databases//documents/c/a", DATABASE, ROOT),
    *(f"{ROOT}/", f"{ROOT}//a", f"{DATABASE}/docs/c", "projects/-/databases/-/documents"),
    *("projects/other/databases/(default)/documents/c/a", "projects/other/databases/(default)"),
    *(
        name("c"),
        name("c/a"),
        name("c/000"),
        name("c/a/b"),
        name("c/a/"),
        name("c/.."),
        name("c/\0"),
    ),
    *(name("c/__x__"), name("c/__id7__"), name("__id7__/a"), name("c/ü"), name("c/a") + "\n"),
    *(name("c/a" + "/b/c" * 49), name("c/a" + "/b/c" * 200), name("c/" + "a" * 1_500)),
    *(name("c/" + "a" * 1_501), name("_crossfade_intents/x"), b"projects/\xff/databases/x"),
    *(name("c/__id" + "9" * 5_000 + "__"), name("c/__id-9223372036854775808__"), "a" * 10_000),
)
_PLACES = {
    "field_path": _PATHS,
    "field_paths": _PATHS,
    "order_by": _PATHS,
    "field_reference_value": _PATHS,
    "database": _NAMES,
    "delete": _NAMES,
    "document": _NAMES,
    "documents": _NAMES,
    "name": _NAMES,
    "parent": _NAMES,
    "reference_value": _NAMES,
}


def texts_for(field: str) -> tuple[bytes, ...]:
    """Texts that get further than others in a field of this name."""
    return _PLACES.get(field, _TEXTS)


LARGE_TEXTS = (
    b"a" * MEBIBYTE,
    b"a." * (MEBIBYTE // 2) + b"a",
    b"`" * MEBIBYTE,
    "ü".encode() * (MEBIBYTE // 2),
    name("c/" + "a" * MEBIBYTE).encode(),
    (ROOT + "/a/b" * (MEBIBYTE // 4)).encode(),
)
BLOBS = (
    *(b"", b"\0", b"\0" * 8, b"\xff" * 8, b"\0" * 16, b"\xff" * 16, b"0", b"\x08\x01"),
    *(b"a" * 100, b"\x80" * 20, b"@" * 12, b"{}", bytes(range(256))),
)
LARGE_BLOBS = (b"\0" * MEBIBYTE, b"\xff" * MEBIBYTE)
UNKNOWN: tuple[tuple[int, int | bytes], ...] = (
    (VARINT, 2**64 - 1),
    (BYTES, b""),
    (BYTES, b"\xff\xfe"),
    (BYTES, b"a" * 1_000),
    (FIXED64, b"\xff" * 8),
    (FIXED32, b"\xff" * 4),
    (GROUP, b""),
    (END_GROUP, b""),
)

_WRONG_VALUES: tuple[dict[str, Any], ...] = (
    {},
    {"null_value": 7},
    {"double_value": float("nan")},
    {"timestamp_value": {"seconds": 253_402_300_800}},
    {"timestamp_value": {"seconds": -(2**63), "nanos": -(2**31)}},
    {"timestamp_value": {"seconds": 0, "nanos": 1_000_000_000}},
    {"geo_point_value": {"latitude": 91.0, "longitude": float("nan")}},
    {"geo_point_value": {"latitude": float("-inf"), "longitude": 181.0}},
    {"reference_value": ""},
    {"reference_value": "c/a"},
    {"reference_value": name("c")},
    {"reference_value": "projects/other/databases/x/documents/c/a"},
    {"reference_value": name("c/" + "b/c" * 300)},
    {"reference_value": name("c/__id" + "9" * 5_000 + "__")},
    array(),
    array({}),
    array(array(number(1))),
    array(*(number(n) for n in range(31))),
    array(*(text(str(n)) for n in range(2_000))),
    array(array(), vector(1.0), mapping(a=array(array()))),
    {"map_value": {}},
    mapping(__type__=text("__vector__")),
    mapping(__type__=text("__vector__"), value=text("x")),
    mapping(__type__=text("__vector__"), value=array(text("x"))),
    mapping(__type__=text("__vector__"), value=array()),
    mapping(__type__=text("__vector__"), value=array(number(1), number(2))),
    mapping(__type__=text("__vector__"), value=array(number(1)), more=number(1)),
    mapping(__type__=text("__int__"), value=number(1)),
    mapping(__type__=number(1)),
    vector(*([0.5] * 2_049)),
    vector(0.0, 0.0),
    vector(float("nan"), float("inf")),
    vector(5e-324, 1.7e308),
    {"map_value": {"fields": {"": number(1)}}},
    {"map_value": {"fields": {"__x__": number(1), "a.b": number(1), "`": {}}}},
    {"map_value": {"fields": {"a" * 1_501: number(1)}}},
    {"map_value": {"fields": {str(n): number(n) for n in range(2_000)}}},
    {"field_reference_value": "n"},
    {"function_value": {"name": "f", "args": [number(1)]}},
    {"pipeline_value": {"stages": [{"name": "collection"}]}},
    {"bytes_value": b"\xff" * 1_501},
    text("x" * 1_501),
    number(2**63 - 1),
    number(-(2**63)),
)


def _leaf(operator: int, path: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"field_filter": {"field": {"field_path": path}, "op": operator, "value": value}}


def _composite(op: int, *filters: dict[str, Any]) -> dict[str, Any]:
    return {"composite_filter": {"op": op, "filters": list(filters)}}


def _filters() -> tuple[dict[str, Any], ...]:
    one = _leaf(5, "n", number(1))
    either = _composite(2, one, _leaf(5, "s", text("a")))
    thirty = array(*(number(n) for n in range(30)))
    return (
        {},
        _composite(1),
        _composite(0, one),
        _composite(77, one, one),
        _leaf(0, "n", number(1)),
        _leaf(5, "", number(1)),
        _leaf(8, "n", number(1)),
        _leaf(8, "n", array()),
        _leaf(9, "n", array({"null_value": 0})),
        _leaf(10, "n", array(*(number(n) for n in range(11)))),
        _leaf(5, "__name__", number(1)),
        _leaf(8, "__name__", array(number(1), {"reference_value": name("c/a")})),
        _leaf(7, "__name__", {"reference_value": name("c/a")}),
        {"unary_filter": {"op": 2}},
        {"unary_filter": {"op": 2, "field": {"field_path": "__name__"}}},
        # Small as written, 2**30 and 30**6 conjunctions when multiplied out.
        _composite(1, *[either] * 30),
        _composite(1, *(_leaf(8, path, thirty) for path in "abcdef")),
        _composite(1, *(_leaf(1, f"f{n}", number(n)) for n in range(11))),
        _composite(1, *[one] * 500),
        _composite(2, *[one] * 500),
        _composite(1, _leaf(6, "n", number(1)), _leaf(10, "s", array(text("a")))),
        _composite(1, _leaf(7, "n", number(1)), _leaf(9, "s", array(text("a")))),
    )


@cache
def messages() -> dict[str, list[Tree]]:
    """By the full name of the type: contents that a field of the type may be set to."""
    filters = types.StructuredQuery.Filter.pb()
    return {
        kind.DESCRIPTOR.full_name: [parse(kind(**fields)) for fields in wrong]
        for kind, wrong in (
            (types.Value.pb(), _WRONG_VALUES),
            (filters, _filters()),
            (
                Timestamp,
                (
                    *({}, {"seconds": 1}, {"nanos": 1}, {"nanos": -1}, {"nanos": 1_000_000_000}),
                    *({"seconds": 253_402_300_800}, {"seconds": -62_135_596_801}),
                    *({"seconds": 2**63 - 1, "nanos": 2**31 - 1}, {"seconds": -(2**63)}),
                    *({"seconds": 253_402_300_799, "nanos": 999_999_999}, {"seconds": 10**9}),
                ),
            ),
            (Int32Value, [{"value": value} for value in (0, 1, -1, 1_001, 2**31 - 1, -(2**31))]),
            (
                DoubleValue,
                [{"value": float(value)} for value in ("nan", "inf", "-inf", "-1", "5e-324")],
            ),
        )
    }
