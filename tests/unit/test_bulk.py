"""Rows as columns: what travels as text, and where one statement ends and the next begins."""

from typing import Any

import pytest

from crossfade.stores.postgres import bulk
from crossfade.stores.postgres.bulk import Bulk

COLUMNS = [
    ("id", "text"),
    ("at", "timestamptz"),
    ("uids", "int8[]"),
    ("rest", "jsonb"),
    ("odd", "text[]"),
]
TABLE = Bulk('"s"."t"', COLUMNS, ["at", "uids", "rest", "odd", "update_time", "epoch"])


def row(key: str, *values: Any, create: int | None = 1) -> list[Any]:
    return [key, *(values or (None, None, None, None)), create, 2, 3]


def test_arrays_and_json_travel_as_texts():
    rest: Any = [1, {"$d": -0.5}, "ü\u0001"]
    calls = list(
        TABLE.calls([row("a"), row("b", None, [1, -2], rest, ["a", 'q"', "back\\slash", "c,d"])])
    )
    assert len(calls) == 1
    statement, columns = calls[0]
    assert columns == [
        ["a", "b"],
        [None, None],
        [None, "{1,-2}"],
        [None, '[1,{"$d":-0.5},"ü\\u0001"]'],
        [None, '{"a","q\\"","back\\\\slash","c,d"}'],
        [1, 1],
        [2, 2],
        [3, 3],
    ]
    assert "$2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::int8[]" in statement
    assert "r.c2::int8[], r.c3::jsonb, r.c4::text[], coalesce(r.c5, r.c6), r.c6, r.c7" in statement
    assert next(TABLE.calls([row("a", None, [], {}, None)]))[1][2:4] == [["{}"], ["{}"]]


def test_a_row_without_create_time_keeps_the_one_that_is_there():
    calls = list(TABLE.calls([row("a", create=None), row("b"), row("c", create=None)]))
    assert [columns[0] for _, columns in calls] == [["b"], ["a", "c"]]
    assert ["create_time = excluded" in statement for statement, _ in calls] == [True, False]
    assert list(TABLE.calls([])) == []


def test_a_statement_has_its_bounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk, "MAX_ROWS", 3)
    many = list(TABLE.calls([row(str(number)) for number in range(7)]))
    assert [columns[0] for _, columns in many] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    monkeypatch.setattr(bulk, "MAX_SIZE", 20)
    large = [row("a", None, None, "x" * 17, None), row("b"), row("c", None, None, "x" * 99, None)]
    assert [columns[0] for _, columns in TABLE.calls([*large, row("d")])] == [
        ["a"],
        ["b"],
        ["c"],
        ["d"],
    ]
