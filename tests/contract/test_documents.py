"""Reading and writing documents: the same on every store."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from crossfade.document import INT64_MAX, INT64_MIN, GeoPoint, Reference, identical
from crossfade.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from crossfade.write import Write
from tests.contract.conftest import FIRESTORES, Bench


async def test_what_was_set_is_read(bench: Bench) -> None:
    outcome = await bench.commit(Write(bench.path("a"), {bench.field: "x", "n": 1}))
    stored = await bench.stored(bench.path("a"))
    document = await bench.document(bench.path("a"))
    assert document.fields == {bench.field: "x", "n": 1}
    assert document.path == bench.path("a")
    assert outcome.writes[0].update_time == outcome.commit_time == document.update_time
    assert document.create_time == document.update_time
    assert stored.version is not None
    assert stored.version[1] == document.update_time


async def test_a_missing_document_is_missing(bench: Bench) -> None:
    stored = await bench.stored(bench.path("nobody"))
    assert stored.data is None
    assert stored.path == bench.path("nobody")


async def test_many_are_answered_in_the_order_asked_duplicates_twice(bench: Bench) -> None:
    await bench.put(a=1, b=2)
    paths = [bench.path(name) for name in ("b", "nobody", "a", "b")]
    reading = await bench.get(*paths)
    assert [stored.path for stored in reading.documents] == paths
    assert [stored.data is None for stored in reading.documents] == [False, True, False, False]
    assert reading.documents[0] == reading.documents[3]
    assert reading.read_time > 0


async def test_set_replaces_and_keeps_the_create_time(bench: Bench) -> None:
    await bench.commit(Write(bench.path("a"), {bench.field: 1, "old": True}))
    first = await bench.document(bench.path("a"))
    await bench.put(a=2)
    second = await bench.document(bench.path("a"))
    assert second.fields == {bench.field: 2}
    assert second.create_time == first.create_time
    assert second.update_time > first.update_time


async def test_merge_changes_what_the_mask_names(bench: Bench) -> None:
    f = bench.field
    await bench.commit(Write(bench.path("a"), {f: 1, "m": {"x": 1, "y": 2}, "gone": 1}))
    mask = ((f,), ("m", "x"), ("gone",), ("m", "never"))
    await bench.commit(Write(bench.path("a"), {f: "new", "m": {"x": 9}, "unmasked": 1}, mask))
    assert await bench.fields(bench.path("a")) == {f: "new", "m": {"x": 9, "y": 2}}


async def test_merge_makes_documents_and_maps_on_the_way(bench: Bench) -> None:
    await bench.commit(Write(bench.path("a"), {"m": {"x": {"y": 1}}}, (("m", "x", "y"),)))
    await bench.commit(Write(bench.path("b"), {}, ()))
    await bench.commit(Write(bench.path("c"), {}, (("x",),)))
    assert await bench.fields(bench.path("a")) == {"m": {"x": {"y": 1}}}
    assert await bench.fields(bench.path("b")) == {}
    assert await bench.fields(bench.path("c")) == {}


async def test_merge_below_something_that_is_no_map_makes_it_one(bench: Bench) -> None:
    f = bench.field
    for before in (1, "x", [1], {"__type__": "__vector__", "value": [1.0]}):
        await bench.put(a=before)
        await bench.commit(Write(bench.path("a"), {f: {"in": 1}}, ((f, "in"),)))
        assert await bench.fields(bench.path("a")) == {f: {"in": 1}}


async def test_field_names_need_quotes_in_paths(bench: Bench) -> None:
    names = ["a.b", "`", "\\", "ünï", "with space", "0", "\0", "'\"", "é́"]
    await bench.commit(Write(bench.path("a"), dict.fromkeys(names, 1)))
    await bench.commit(
        Write(bench.path("a"), dict.fromkeys(names[:4], 2), tuple((name,) for name in names[:5]))
    )
    expected = dict.fromkeys(names[:4], 2) | dict.fromkeys(names[5:], 1)
    assert await bench.fields(bench.path("a")) == expected


async def test_delete(bench: Bench) -> None:
    await bench.put(a=1)
    outcome = await bench.commit(Write(bench.path("a"), None))
    assert outcome.writes[0].update_time is None
    assert await bench.fields(bench.path("a")) is None
    again = await bench.commit(Write(bench.path("a"), None))
    assert again.writes[0].update_time is None
    assert again.commit_time > outcome.commit_time


async def test_a_document_that_comes_back_is_new(bench: Bench) -> None:
    await bench.put(a=1)
    before = await bench.document(bench.path("a"))
    await bench.commit(Write(bench.path("a"), None))
    await bench.put(a=1)
    after = await bench.document(bench.path("a"))
    assert after.create_time == after.update_time > before.update_time


async def test_documents_below_missing_ones(bench: Bench) -> None:
    await bench.commit(Write(bench.path("nobody") + "/sub/x", {"v": 1}))
    assert await bench.fields(bench.path("nobody")) is None
    assert await bench.fields(bench.path("nobody") + "/sub/x") == {"v": 1}


# --- preconditions -----------------------------------------------------------------------------


async def test_create_refuses_what_exists(bench: Bench) -> None:
    await bench.commit(Write(bench.path("a"), {bench.field: 1}, exists=False))
    for write in (Write(bench.path("a"), {bench.field: 2}), Write(bench.path("a"), None)):
        with pytest.raises(AlreadyExists):
            await bench.commit(replace(write, exists=False))
    assert await bench.value("a") == 1


async def test_update_refuses_what_is_missing(bench: Bench) -> None:
    for write in (Write(bench.path("a"), {bench.field: 2}), Write(bench.path("a"), None)):
        with pytest.raises(NotFound):
            await bench.commit(replace(write, exists=True))
    assert await bench.fields(bench.path("a")) is None


async def test_update_time_must_be_the_stored_one(bench: Bench) -> None:
    f, path = bench.field, bench.path("a")
    first = (await bench.put(a=1)).writes[0].update_time
    assert first is not None
    second = (await bench.commit(Write(path, {f: 2}, update_time=first))).writes[0].update_time
    assert second is not None
    with pytest.raises(FailedPrecondition):
        await bench.commit(Write(path, {f: 3}, update_time=first))
    with pytest.raises(FailedPrecondition):
        await bench.commit(Write(path, None, update_time=first))
    with pytest.raises(InvalidArgument):  # later than anything that was stored
        await bench.commit(Write(path, {f: 3}, update_time=second + 3_600_000_000))
    with pytest.raises(FailedPrecondition):
        await bench.commit(Write(bench.path("nobody"), {f: 3}, update_time=first))
    assert await bench.value("a") == 2
    await bench.commit(Write(path, None, update_time=second))
    assert await bench.fields(path) is None


# --- commits -----------------------------------------------------------------------------------


async def test_all_writes_or_none(bench: Bench) -> None:
    f = bench.field
    await bench.put(b=1)
    with pytest.raises(AlreadyExists):
        await bench.commit(
            Write(bench.path("a"), {f: 1}),
            Write(bench.path("b"), {f: 2}, exists=False),
            Write(bench.path("c"), None),
        )
    assert await bench.fields(bench.path("a")) is None
    assert await bench.value("b") == 1


async def test_a_commit_has_one_time(bench: Bench) -> None:
    outcome = await bench.put(a=1, b=2, c=3)
    assert {result.update_time for result in outcome.writes} == {outcome.commit_time}


async def test_times_rise_strictly(bench: Bench) -> None:
    times = []
    for number in range(20):
        outcome = await bench.put(a=number)
        times.append(outcome.commit_time)
        assert (await bench.document(bench.path("a"))).update_time == outcome.commit_time
    assert times == sorted(set(times))


async def test_a_write_that_changes_nothing_keeps_the_update_time(bench: Bench) -> None:
    f = bench.field
    value = {"n": math.nan, "l": [1, None, {"x": b"\0"}], "z": 0}
    first = await bench.put(a=value)
    second = await bench.put(a=dict(reversed(value.items())))
    assert second.writes[0].update_time == first.commit_time
    assert second.commit_time > first.commit_time
    merged = await bench.commit(Write(bench.path("a"), {f: {"z": 0}}, ((f, "z"), ("nope",))))
    assert merged.writes[0].update_time == first.commit_time
    changed = await bench.put(a=value | {"z": 0.0})
    assert changed.writes[0].update_time == changed.commit_time
    signed = await bench.put(a=value | {"z": -0.0})
    assert signed.writes[0].update_time == signed.commit_time


async def test_the_same_document_twice_in_order(bench: Bench) -> None:
    f = bench.field
    outcome = await bench.commit(
        Write(bench.path("a"), {f: 1, "x": 1}),
        Write(bench.path("a"), {f: 2}, ((f,),)),
        Write(bench.path("b"), {f: 1}),
        Write(bench.path("b"), None),
        Write(bench.path("c"), None),
        Write(bench.path("c"), {f: 3}, exists=False),
    )
    assert await bench.fields(bench.path("a")) == {f: 2, "x": 1}
    assert await bench.fields(bench.path("b")) is None
    assert await bench.value("c") == 3
    times = [result.update_time for result in outcome.writes]
    assert times[1] == times[5] == outcome.commit_time
    assert times[3] is None


# PostgreSQL gives such a document a new time: one more version of the same content.
@pytest.mark.parametrize("source", FIRESTORES, indirect=True)
async def test_there_and_back_in_one_commit_is_no_change(bench: Bench) -> None:
    first = await bench.put(a=1)
    outcome = await bench.commit(
        Write(bench.path("a"), {bench.field: 2}), Write(bench.path("a"), {bench.field: 1})
    )
    assert outcome.writes[-1].update_time == first.commit_time
    assert (await bench.document(bench.path("a"))).update_time == first.commit_time


# --- values ------------------------------------------------------------------------------------

_NEST: Any = 1
for _ in range(20):
    _NEST = {"a": _NEST}
HOSTILE: dict[str, Any] = {
    "null": None,
    "false": False,
    "nan": math.nan,
    "minus zero": -0.0,
    "zero": 0,
    "zero double": 0.0,
    "infinity": -math.inf,
    "max": INT64_MAX,
    "min": INT64_MIN,
    "2^53 - 1": 2**53 - 1,
    "2^53 + 1": 2**53 + 1,
    "-2^53 - 1": -(2**53) - 1,
    "2^53 - 1, double": float(2**53 - 1),
    "2^53, double": float(2**53),
    "large double": float(2**63),
    "tiny": 5e-324,
    "empty string": "",
    "nul": "a\0b",
    "astral": "\U0001f600\uffff",
    "empty bytes": b"",
    "bytes": bytes(range(256)),
    "first moment": datetime(1, 1, 1, tzinfo=UTC),
    "last moment": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "microsecond": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "reference": Reference("projects/p/databases/(default)/documents/c/__id7__"),
    "geo": GeoPoint(-0.0, 180.0),
    "empty map": {},
    "empty array": [],
    "array of empties": [{}, None, "", {"a": []}],
    "deep": _NEST,
    "vector": {"__type__": "__vector__", "value": [1.0, -0.0, math.inf]},
    "looks tagged": {"$integer": "1", "t": "n"},
    "date text": "2026-01-01T00:00:00Z",
    "number text": "48",
}


SURROGATES: dict[str, Any] = {
    "alone": "\ud800",
    "in an array": ["a\udfff"],
    "in a map": {"a": "\ud800\ud800"},
    "in a name": {"\ud800": 1},
}


@pytest.mark.parametrize("name", SURROGATES)
async def test_lone_surrogates_are_refused(bench: Bench, name: str) -> None:
    """What is no Unicode cannot be sent, and no store keeps a part of the commit."""
    with pytest.raises(InvalidArgument):
        await bench.commit(
            Write(bench.path("b"), {}), Write(bench.path("a"), {bench.field: SURROGATES[name]})
        )
    assert await bench.fields(bench.path("b")) is None


@pytest.mark.parametrize("name", HOSTILE)
async def test_values_come_back_to_the_last_bit(bench: Bench, name: str) -> None:
    value = HOSTILE[name]
    inside = {} if name == "deep" else {"in": {"x": value}}  # deep goes as deep as it may
    await bench.commit(Write(bench.path("a"), {bench.field: value} | inside))
    fields = await bench.fields(bench.path("a"))
    assert identical(fields, {bench.field: value} | inside)


async def test_values_come_back_from_arrays(bench: Bench) -> None:
    items = [
        value
        for name, value in HOSTILE.items()
        if name not in {"deep", "vector"} and not isinstance(value, list)
    ]
    await bench.put(a=items)
    assert identical(await bench.value("a"), items)
