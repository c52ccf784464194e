"""Nearest neighbours: the same ones, as near, from every store."""

import pytest

from crossfade.document import Fields
from crossfade.errors import InvalidArgument
from crossfade.nearest import Measure, Nearest
from crossfade.query import FieldFilter, Op, Order, Query
from crossfade.write import Write
from tests.contract.conftest import Bench


def vector(*items: float) -> Fields:
    return {"__type__": "__vector__", "value": list(items)}


VECTORS = {
    "a": vector(3.0, 4.0),
    "b": vector(0.0, 1.0),
    "c": vector(0.0, 0.0),
    "d": vector(3.0, 4.0),
    "e": vector(1.0),
    "__id7__": vector(6.0, 8.0),
}


@pytest.mark.parametrize(
    ("measure", "threshold", "expected"),
    [
        (Measure.EUCLIDEAN, None, "a d b __id7__ c"),
        (Measure.EUCLIDEAN, 5.0, "a d b __id7__ c"),
        (Measure.EUCLIDEAN, 4.5, "a d b"),
        (Measure.COSINE, 0.5, "__id7__ a d b"),
        (Measure.DOT_PRODUCT, 4.0, "__id7__ a d b"),
    ],
)
async def test_nearest(
    bench: Bench, measure: Measure, threshold: float | None, expected: str
) -> None:
    await bench.put(**VECTORS, other=1)
    near = Nearest((bench.field,), vector(3.0, 4.0), measure, 5, threshold=threshold)
    assert await bench.ids(nearest=near) == expected.split()


async def test_with_filter_order_and_distance(bench: Bench) -> None:
    await bench.commit(
        *(
            Write(bench.path(name), {bench.field: value, "w": index})
            for index, (name, value) in enumerate(VECTORS.items())
        )
    )
    near = Nearest((bench.field,), vector(3.0, 4.0), Measure.EUCLIDEAN, 3, "far")
    query = Query(
        collection=bench.kind,
        where=FieldFilter(("w",), Op.LESS_THAN, 4),
        order_by=(Order(("w",), descending=True),),
        nearest=near,
    )
    found = await bench.run(query)
    assert [(d.path, d.fields["far"]) for d in found] == [
        (bench.path("d"), 0.0),
        (bench.path("a"), 0.0),
        (bench.path("b"), 18.0**0.5),
    ]
    assert found[0].fields == {bench.field: vector(3.0, 4.0), "w": 3, "far": 0.0}
    few = Query(collection=bench.kind, select=(("far",),), nearest=near)
    assert (await bench.run(few))[0].fields == {"far": 0.0}


async def test_no_limit_no_cursor_beside(bench: Bench) -> None:
    near = Nearest((bench.field,), vector(1.0), Measure.EUCLIDEAN, 1)
    for query in (Query(limit=1, nearest=near), Query(offset=1, nearest=near)):
        with pytest.raises(InvalidArgument):
            await bench.run(query)
