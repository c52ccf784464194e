"""What every store refuses to hold, and what it must just still hold."""

from typing import Any

import pytest

from crossfade.document import MAX_VALUE_BYTES, GeoPoint, Reference
from crossfade.errors import InvalidArgument
from crossfade.write import Write
from tests.contract.conftest import Bench


def deep(levels: int, leaf: Any = 1, *, arrays: bool = False) -> Any:
    value = leaf
    for level in range(levels):
        value = [value] if arrays and level % 2 else {"a": value}
    return value


def vector(*items: Any) -> dict[str, Any]:
    return {"__type__": "__vector__", "value": list(items)}


ROOT = "projects/p/databases/(default)/documents"
REFUSED: dict[str, Any] = {
    "array in an array": [[1]],
    "vector in an array": [vector(1.0)],
    "21 maps": deep(21),
    "21 maps, the last one empty": deep(20, {}),
    "21 maps and arrays": deep(21, arrays=True),
    "array below 20 maps": deep(20, [1]),
    "reserved name": {"__x__": 1},
    "reserved __type__": {"__type__": "other"},
    "empty name": {"": 1},
    "names of over 1500 bytes": {"a": {"n" * 1498: 1}},
    "names of over 1500 bytes, fewer characters": {"a": {"ü" * 749: 1}},
    "names of over 1500 bytes through an array": {"a": [{"n" * 1498: 1}]},
    "string": "x" * (MAX_VALUE_BYTES + 1),
    "string of two-byte characters": "ü" * (MAX_VALUE_BYTES // 2 + 1),
    "bytes": b"x" * (MAX_VALUE_BYTES + 1),
    "map that is large in sum": {"a": "x" * 700_000, "b": "x" * 400_000},
    "latitude": GeoPoint(90.1, 0.0),
    "longitude": GeoPoint(0.0, -180.1),
    "vector of none": vector(),
    "vector of integers": vector(1),
    "vector of text": vector("a"),
    "vector with NaN": vector(float("nan")),
    "vector of 2049": vector(*[1.0] * 2049),
    "vector and more": vector(1.0) | {"more": 1},
    "vector without value": {"__type__": "__vector__"},
    "relative reference": Reference("c/a"),
    "reference to a collection": Reference(f"{ROOT}/c"),
    "reference to the root": Reference(ROOT),
    "empty reference": Reference(""),
    "reference with a reserved id": Reference(f"{ROOT}/c/__x__"),
    "reference with an empty id": Reference(f"{ROOT}/c//d/e"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_values(bench: Bench, name: str) -> None:
    await bench.put(a="before")
    with pytest.raises(InvalidArgument) as refused:
        await bench.commit(
            Write(bench.path("b"), {"x": 1}), Write(bench.path("a"), {bench.field: REFUSED[name]})
        )
    assert "xxxx" not in str(refused.value)  # a limit names the field, never the value
    assert await bench.value("a") == "before"
    assert await bench.fields(bench.path("b")) is None


ACCEPTED: dict[str, Any] = {
    "20 maps": deep(20),
    "20 maps and arrays": deep(20, arrays=True),
    "a vector below 20 maps": deep(20, vector(1.0)),
    "arrays with a map between": [{"a": [1]}],
    "names of nearly 1500 bytes": {"a": {"n" * 1491: 1}},
    "string": "x" * MAX_VALUE_BYTES,
    "bytes": b"x" * MAX_VALUE_BYTES,
    "vector of 2048": vector(*[1.0] * 2048),
    "a name of one underscore pair": {"__x": 1, "x__": 2, "_": 3},
    "reference to another database": Reference("projects/x/databases/y/documents/a/b/c/d"),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_accepted_values(bench: Bench, name: str) -> None:
    await bench.put(a=ACCEPTED[name])
    assert await bench.value("a") == ACCEPTED[name]


async def test_a_document_of_one_mebibyte(bench: Bench) -> None:
    half = "x" * 524_000
    await bench.commit(Write(bench.path("a"), {"a": half, "b": half}))
    with pytest.raises(InvalidArgument):
        await bench.commit(Write(bench.path("a"), {"a": half, "b": half + "x" * 600}))
    with pytest.raises(InvalidArgument):
        await bench.commit(Write(bench.path("a"), {"c": "x" * 600}, (("c",),)))
    assert await bench.fields(bench.path("a")) == {"a": half, "b": half}


async def test_the_name_of_a_field(bench: Bench) -> None:
    await bench.commit(Write(bench.path("a"), {"n" * 1500: 1}))
    with pytest.raises(InvalidArgument):
        await bench.commit(Write(bench.path("a"), {"n" * 1501: 1}))


@pytest.mark.parametrize("name", ["__x__", "__type__", "__id7__"])
async def test_reserved_field_names(bench: Bench, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await bench.commit(Write(bench.path("a"), {name: 1}))


@pytest.mark.parametrize(
    "name", ["__id7__", "__id-9223372036854775808__", "x" * 1500, "a b", ".a", "a\0", "__x", "ü"]
)
async def test_odd_ids(bench: Bench, name: str) -> None:
    await bench.put(**{name: 1})
    assert await bench.value(name) == 1
    assert await bench.ids() == [name]


async def test_five_hundred_is_no_limit(bench: Bench) -> None:
    writes = [Write(bench.path(f"{number}"), {bench.field: number}) for number in range(700)]
    outcome = await bench.commit(*writes)
    assert len(outcome.writes) == 700
    await bench.commit(*(Write(write.path, None) for write in writes))
    assert await bench.ids() == []
