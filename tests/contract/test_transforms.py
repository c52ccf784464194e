"""Transforms: what a store computes from the value it holds."""

import math
from typing import Any

import pytest

from crossfade.document import INT64_MAX, INT64_MIN, identical, to_micros
from crossfade.errors import InvalidArgument
from crossfade.write import Transform, TransformKind, Write
from tests.contract.conftest import Bench

K = TransformKind
ABSENT = object()

# kind, stored value, operand, what is stored then
NUMBERS: list[tuple[TransformKind, Any, Any, Any]] = [
    (K.INCREMENT, 1, 2, 3),
    (K.INCREMENT, 1, 2.5, 3.5),
    (K.INCREMENT, 1.5, 1, 2.5),
    (K.INCREMENT, 1.0, 1, 2.0),
    (K.INCREMENT, ABSENT, 2, 2),
    (K.INCREMENT, None, 2, 2),
    (K.INCREMENT, "text", 2.5, 2.5),
    (K.INCREMENT, True, 2, 2),
    (K.INCREMENT, INT64_MAX, 1, INT64_MAX),
    (K.INCREMENT, INT64_MIN, -1, INT64_MIN),
    (K.INCREMENT, INT64_MAX, 1.0, float(2**63)),
    (K.INCREMENT, 1, math.nan, math.nan),
    (K.INCREMENT, math.inf, -math.inf, math.nan),
    (K.INCREMENT, -0.0, 0, 0.0),
    (K.MAXIMUM, 1, 2, 2),
    (K.MAXIMUM, 3, 2.5, 3),
    (K.MAXIMUM, 2, 2.0, 2),
    (K.MAXIMUM, 2.0, 2, 2.0),
    (K.MAXIMUM, 0, -0.0, 0),
    (K.MAXIMUM, ABSENT, 1, 1),
    (K.MAXIMUM, "z", 1, 1),
    (K.MAXIMUM, 1, math.nan, math.nan),
    (K.MAXIMUM, math.nan, 1, math.nan),
    (K.MINIMUM, 1, 2, 1),
    (K.MINIMUM, 3, 2.5, 2.5),
    (K.MINIMUM, 2, 2.0, 2),
    (K.MINIMUM, ABSENT, 1, 1),
    (K.MINIMUM, math.nan, 1, math.nan),
]


@pytest.mark.parametrize(("kind", "stored", "operand", "expected"), NUMBERS)
async def test_numbers(
    bench: Bench, kind: TransformKind, stored: Any, operand: Any, expected: Any
) -> None:
    fields = {} if stored is ABSENT else {bench.field: stored}
    await bench.commit(Write(bench.path("a"), fields))
    outcome = await bench.transform("a", Transform((bench.field,), kind, operand))
    assert identical(await bench.value("a"), expected)
    assert identical(list(outcome.writes[0].results), [expected])


ARRAYS: list[tuple[TransformKind, Any, Any, Any]] = [
    (K.UNION, [1], [2, 1.0, 2], [1, 2]),
    (K.UNION, [1, 1], [1], [1, 1]),
    (K.UNION, [math.nan, None], [math.nan, None, -0.0, 0], [math.nan, None, -0.0]),
    (K.UNION, ABSENT, ["a", "a"], ["a"]),
    (K.UNION, "text", [1], [1]),
    (K.UNION, [{"a": 1}], [{"a": 1.0}, {"a": 2}], [{"a": 1}, {"a": 2}]),
    (K.UNION, None, [], []),
    (K.REMOVE, [1, 2, 1.0, "1"], [1], [2, "1"]),
    (K.REMOVE, [math.nan, None, 1], [math.nan, None], [1]),
    (K.REMOVE, ABSENT, [1], []),
    (K.REMOVE, 5, [1], []),
    (K.REMOVE, [{"a": [1]}], [{"a": [1.0]}], []),
]


@pytest.mark.parametrize(("kind", "stored", "operand", "expected"), ARRAYS)
async def test_arrays(
    bench: Bench, kind: TransformKind, stored: Any, operand: Any, expected: Any
) -> None:
    fields = {} if stored is ABSENT else {bench.field: stored}
    await bench.commit(Write(bench.path("a"), fields))
    outcome = await bench.transform("a", Transform((bench.field,), kind, operand))
    assert identical(await bench.value("a"), expected)
    assert outcome.writes[0].results == (None,)


async def test_request_time_is_the_commits_in_milliseconds(bench: Bench) -> None:
    f = bench.field
    outcome = await bench.commit(
        Write(
            bench.path("a"),
            {"x": 1},
            transforms=(
                Transform((f,), K.REQUEST_TIME),
                Transform(("in", "deep"), K.REQUEST_TIME),
            ),
        )
    )
    moment = await bench.value("a")
    behind = outcome.commit_time - to_micros(moment)
    assert 0 <= behind < 1_000_000
    assert to_micros(moment) % 1_000 == 0
    assert await bench.fields(bench.path("a")) == {"x": 1, f: moment, "in": {"deep": moment}}
    assert outcome.writes[0].results == (moment, moment)


async def test_transforms_follow_the_fields_and_one_another(bench: Bench) -> None:
    f = bench.field
    outcome = await bench.commit(
        Write(
            bench.path("a"),
            {f: 10},
            transforms=(Transform((f,), K.INCREMENT, 1), Transform((f,), K.MAXIMUM, 50)),
        )
    )
    assert await bench.value("a") == 50
    assert outcome.writes[0].results == (11, 50)


async def test_a_transform_makes_the_document_and_maps(bench: Bench) -> None:
    await bench.transform("a", Transform(("m", "x.y"), K.INCREMENT, 1))
    assert await bench.fields(bench.path("a")) == {"m": {"x.y": 1}}


async def test_a_transform_that_changes_nothing_keeps_the_update_time(bench: Bench) -> None:
    first = await bench.put(a=[1, 2])
    second = await bench.transform("a", Transform((bench.field,), K.UNION, [1.0]))
    assert second.writes[0].update_time == first.commit_time
    third = await bench.transform("a", Transform((bench.field,), K.REMOVE, [1]))
    assert third.writes[0].update_time == third.commit_time


async def test_transforms_of_one_document_in_one_commit(bench: Bench) -> None:
    step = Write(bench.path("a"), {}, (), (Transform((bench.field,), K.INCREMENT, 1),))
    outcome = await bench.commit(step, step, step)
    assert await bench.value("a") == 3
    assert [result.results for result in outcome.writes] == [(1,), (2,), (3,)]


async def test_illegal_transforms(bench: Bench) -> None:
    f = bench.field
    illegal = [
        (Transform((f,), K.INCREMENT, "1"),),
        (Transform((f,), K.MAXIMUM, None),),
        (Transform((f,), K.INCREMENT, 1), Transform((f, "in"), K.INCREMENT, 1)),
    ]
    for transforms in illegal:
        with pytest.raises(InvalidArgument):
            await bench.transform("a", *transforms)
    assert await bench.fields(bench.path("a")) is None
