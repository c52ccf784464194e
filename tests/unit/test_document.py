"""Paths, order, equality, times and limits of documents."""

import itertools
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.document import (
    ABSENT,
    INT64_MAX,
    NAME,
    Database,
    GeoPoint,
    Reference,
    check_document,
    check_document_path,
    check_field_path,
    collection_id,
    collection_path,
    compare,
    document_id,
    equal,
    format_field_path,
    from_micros,
    get_field,
    identical,
    is_own,
    order_key,
    parse_field_path,
    path_key,
    to_micros,
    walk,
    with_field,
)
from crossfade.errors import InvalidArgument
from tests import strategies as some

DATABASE = Database("p", "d")


# --- paths -------------------------------------------------------------------------------------


def test_names_and_paths() -> None:
    assert DATABASE.name == "projects/p/databases/d"
    assert DATABASE.full("c/a") == "projects/p/databases/d/documents/c/a"
    assert DATABASE.full("") == DATABASE.root
    assert DATABASE.relative(DATABASE.full("c/a/d/b")) == "c/a/d/b"
    assert DATABASE.relative("c/a") == "c/a"
    assert DATABASE.relative(DATABASE.root) == ""
    assert Database("p").database == "(default)"


@pytest.mark.parametrize(
    "name",
    ["projects/q/databases/d/documents/c/a", "projects/p/databases/d", "projects/p/d/documents/c"],
)
def test_names_of_elsewhere(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^name: "):
        DATABASE.relative(name, "name")


def test_parts_of_a_path() -> None:
    assert collection_path("tasks/1/chunks/2") == "tasks/1/chunks"
    assert collection_id("tasks/1/chunks/2") == "chunks"
    assert collection_id("tasks/1") == "tasks"
    assert document_id("tasks/1/chunks/2") == "2"
    assert is_own("_crossfade_intents/x")
    assert not is_own("tasks/_crossfade_x")


@pytest.mark.parametrize(
    "path",
    ["c/a", "c/__id7__", "c/__id-7__", "c/" + "x" * 1500, "c/a/d/b", "c/.x", "c/__x", "c/\0"],
)
def test_legal_paths(path: str) -> None:
    assert check_document_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "c",
        "c/a/d",
        "c/",
        "/a",
        "c//d/e",
        "c/.",
        "c/..",
        "./a",
        "c/__x__",
        "__x__/a",
        "__id7__/a",
        "c/__id07__",
        "c/__id0__",
        "c/__id+7__",
        "c/__id٣__",
        f"c/__id{INT64_MAX + 1}__",
        "c/" + "x" * 1501,
        "c/" + "ü" * 751,
        "c/\ud800",
    ],
)
def test_illegal_paths(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^name: "):
        check_document_path(path)


def test_names_sort_numeric_ids_first_then_by_bytes() -> None:
    ids = [
        "__id-3__",
        "__id7__",
        "__id10__",
        "10",
        "7",
        "A",
        "a",
        "a\0",
        "ä",
        "\uffff",
        "\U0001f600",
    ]
    paths = [f"c/{one}" for one in ids]
    shuffled = paths[5:] + paths[:5]
    assert sorted(shuffled, key=path_key) == paths
    assert path_key("c/a") < path_key("c/a/b/c") < path_key("c/b")


# --- field paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", ("a",)),
        ("a.b_1.C", ("a", "b_1", "C")),
        ("`a.b`.c", ("a.b", "c")),
        ("`\\``", ("`",)),
        ("`\\\\`", ("\\",)),
        ("__name__", NAME),
        ("a.`x y`", ("a", "x y")),
        ("`0`.`ü`", ("0", "ü")),
    ],
)
def test_field_paths(text: str, path: tuple[str, ...]) -> None:
    assert parse_field_path(text) == path
    assert parse_field_path(format_field_path(path)) == path


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1).map(tuple))
def test_every_field_path_comes_back(path: tuple[str, ...]) -> None:
    assert parse_field_path(format_field_path(path)) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "`a",
        "a`",
        "`a`b",
        "`a\\",
        "0",
        "a-b",
        "ü",
        "a b",
        "``",
        "x" * 1501,
    ],
)
def test_illegal_field_paths(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^mask: "):
        parse_field_path(text, "mask")


def test_reserved_field_paths() -> None:
    check_field_path(NAME, "where")
    check_field_path(("a", "_b_"), "where")
    for path in (("__x__",), ("a", "__x__"), ("__name__", "a")):
        with pytest.raises(InvalidArgument, match=r"^where: "):
            check_field_path(path, "where")


def test_get_and_set_fields() -> None:
    fields: Any = {"a": {"b": {"c": 1}}, "n": None}
    assert get_field(fields, ("a", "b", "c")) == 1
    assert get_field(fields, ("a", "x")) is ABSENT
    assert get_field(fields, ("n",)) is None
    assert get_field(fields, ("n", "x")) is ABSENT
    changed = with_field(fields, ("a", "b", "d"), 2)
    assert changed == {"a": {"b": {"c": 1, "d": 2}}, "n": None}
    assert fields == {"a": {"b": {"c": 1}}, "n": None}, "the original stays"
    assert with_field(fields, ("n", "x"), 1)["n"] == {"x": 1}
    assert with_field(fields, ("x", "y"), ABSENT) == fields
    assert with_field(fields, ("a", "b"), ABSENT) == {"a": {}, "n": None}


def test_a_vector_is_no_map() -> None:
    vector: Any = {"v": {"__type__": "__vector__", "value": [1.0]}}
    assert get_field(vector, ("v", "value")) is ABSENT
    assert with_field(vector, ("v", "x"), 1) == {"v": {"x": 1}}
    assert with_field(vector, ("v", "x"), ABSENT) == vector


def test_walk() -> None:
    fields: Any = {"a": {"b": 1, "e": {}}, "l": [{"x": 1}]}
    assert list(walk(fields)) == [(("a", "b"), 1), (("a", "e"), {}), (("l",), [{"x": 1}])]


# --- order and equality ------------------------------------------------------------------------

ORDERED: list[Any] = [
    None,
    False,
    True,
    math.nan,
    -math.inf,
    -(2**63),
    -1.5,
    0,
    5e-324,
    1,
    2**53,
    2**53 + 1,
    float(2**63),
    math.inf,
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),
    "",
    "Z",
    "a",
    "ä",
    "\uffff",
    "\U0001f600",
    b"",
    b"\0",
    b"\xff",
    Reference("projects/p/databases/d/documents/c/__id7__"),
    Reference("projects/p/databases/d/documents/c/a"),
    Reference("projects/p/databases/d/documents/c/a/d/a"),
    GeoPoint(-1.0, 50.0),
    GeoPoint(-0.0, 50.0),
    GeoPoint(0.0, 2.0),
    [],
    [None],
    [1],
    [1, None],
    ["a"],
    {"__type__": "__vector__", "value": [9.0]},
    {"__type__": "__vector__", "value": [1.0, 2.0]},
    {},
    {"a": 1},
    {"a": 1, "b": 0},
    {"a": 2},
    {"b": 0},
]


def test_the_order_of_values() -> None:
    for (i, left), (j, right) in itertools.product(enumerate(ORDERED), repeat=2):
        assert compare(left, right) == (i > j) - (i < j), (left, right)


@given(some.values(), some.values(), some.values())
def test_the_order_is_total(a: Any, b: Any, c: Any) -> None:
    assert compare(a, b) == -compare(b, a)
    assert compare(a, a) == 0
    low, middle, high = sorted([a, b, c], key=order_key)
    assert compare(low, middle) <= 0
    assert compare(low, high) <= 0
    assert equal(a, b) is (compare(a, b) == 0)
    if identical(a, b):
        assert equal(a, b)


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (0.0, -0.0), (0, -0.0), (math.nan, -math.nan), ([1], [1.0]), ({"a": 1}, {"a": 1.0})],
)
def test_equal_for_queries(left: Any, right: Any) -> None:
    assert equal(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("a", b"a"),
        (None, False),
        ([1], [1.0]),
        ([1], [1, 1]),
        ({"a": 0.0}, {"a": -0.0}),
        ({"a": 1}, {"b": 1}),
        (GeoPoint(0.0, 0.0), GeoPoint(-0.0, 0.0)),
        ([], {}),
    ],
)
def test_not_identical(left: Any, right: Any) -> None:
    assert not identical(left, right)
    assert identical(left, left)


def test_nan_is_identical_to_itself() -> None:
    assert identical({"a": [math.nan]}, {"a": [float("nan")]})


# --- times -------------------------------------------------------------------------------------


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_exact(moment: datetime) -> None:
    assert from_micros(to_micros(moment)) == moment


def test_times_before_1970() -> None:
    assert to_micros(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1
    assert from_micros(-1).microsecond == 999_999


# --- limits ------------------------------------------------------------------------------------


def refused(fields: dict[str, Any]) -> str:
    with pytest.raises(InvalidArgument) as error:
        check_document("c/a", fields)
    return str(error.value)


def test_a_message_names_field_and_limit_and_no_value() -> None:
    secret = "secret" * 200_000
    message = refused({"outer": {"inner": secret}})
    assert "outer.inner" in message
    assert "1048487" in message
    assert "secret" not in message


def test_limits_name_the_field() -> None:
    assert "`x y`" in refused({"x y": [[1]]})
    assert "a.b" in refused({"a": {"b": 2**63}})
    assert "20" in refused({"a": nested(21)})
    assert "2048" in refused({"v": {"__type__": "__vector__", "value": [1.0] * 2049}})
    assert "1500" in refused({"n" * 1501: 1})
    assert "Unicode" in refused({"a": "\ud800"})
    assert "Unicode" in refused({"\ud800": 1})


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@given(some.fields())
def test_the_strategies_make_legal_documents(fields: dict[str, Any]) -> None:
    check_document("c/a", fields)


def test_the_size_of_a_document() -> None:
    """By the published example: names, values, and what each costs."""
    base = len("c") + 1 + len("a") + 1 + 16 + 32
    room = 1_048_576 - base - 2 * (1 + 1)
    half = room // 2 - 1
    check_document("c/a", {"x": "s" * half, "y": "s" * half})
    with pytest.raises(InvalidArgument, match="1,048,576"):
        check_document("c/a", {"x": "s" * half, "y": "s" * (half + 2)})
