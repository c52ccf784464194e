"""Nearest neighbours. The distances come from the official emulator and, where it says so,
from the client library's own system tests."""

import math
from dataclasses import replace
from typing import Any

import pytest

from crossfade.document import Document, Fields, identical
from crossfade.errors import InvalidArgument
from crossfade.nearest import Measure, Nearest, check, find
from crossfade.query import Cursor, FieldFilter, Op, Order, Query, run
from crossfade.query import check as check_query


def vector(*items: Any) -> Fields:
    return {"__type__": "__vector__", "value": list(items)}


NEAREST = Nearest(("e",), vector(1.0, 2.0, 3.0), Measure.EUCLIDEAN, 10, "far")
_VALUES: Fields = {
    "a": vector(1.0, 2.0, 3.0),
    "b": vector(2.0, 2.0, 3.0),
    "c": vector(3.0, 4.0, 5.0),
    "d": vector(1.0, 2.0),
    "e": 1,
    "f": vector(0.0, 0.0, 0.0),
    "g": vector(2.0, 4.0, 6.0),
    "h": vector(-1.0, -2.0, -3.0),
    "j": vector(1.0, 2.0, 3.0),
    "k": [1.0, 2.0, 3.0],
}
DOCUMENTS = [Document(f"c/{name}", {"e": value}, 1, 1) for name, value in _VALUES.items()]


def found(nearest: Nearest, documents: list[Document] = DOCUMENTS) -> list[tuple[str, Any]]:
    return [(d.path[2:], d.fields.get("far")) for d in find(nearest, documents)]


def test_euclidean() -> None:
    assert found(NEAREST) == [
        *(("a", 0.0), ("j", 0.0), ("b", 1.0), ("c", 3.4641016151377544)),
        *(("f", 3.7416573867739413), ("g", 3.7416573867739413), ("h", 7.483314773547883)),
    ]


def test_cosine() -> None:
    """That of c, 0.017..., is in the client's system tests. A vector of zeros has none."""
    *numbers, last = found(replace(NEAREST, measure=Measure.COSINE))
    assert numbers == [
        *(("a", 0.0), ("g", 0.0), ("j", 0.0), ("c", 0.017292370176009153)),
        *(("b", 0.027694414671753376), ("h", 2.0)),
    ]
    assert last[0] == "f"
    assert math.isnan(last[1])


def test_dot_product() -> None:
    """The largest comes first."""
    assert found(replace(NEAREST, measure=Measure.DOT_PRODUCT)) == [
        *(("g", 28.0), ("c", 26.0), ("b", 15.0), ("a", 14.0)),
        *(("j", 14.0), ("f", 0.0), ("h", -14.0)),
    ]


@pytest.mark.parametrize(
    ("measure", "threshold", "names"),
    [
        (Measure.EUCLIDEAN, 1.0, "ajb"),
        (Measure.EUCLIDEAN, -1.0, ""),
        (Measure.COSINE, 0.02, "agjc"),
        (Measure.COSINE, 3.0, "agjcbh"),
        (Measure.DOT_PRODUCT, 14.0, "gcbaj"),
        (Measure.DOT_PRODUCT, -20.0, "gcbajfh"),
    ],
)
def test_threshold(measure: Measure, threshold: float, names: str) -> None:
    asked = replace(NEAREST, measure=measure, threshold=threshold)
    assert "".join(name for name, _ in found(asked)) == names


def test_numbers_that_are_none() -> None:
    """NaN is the largest distance: it passes the threshold of a dot product only."""
    hidden = replace(NEAREST, vector=vector(math.inf, 1.0, 1.0), measure=Measure.DOT_PRODUCT)
    assert [name for name, _ in found(hidden)] == ["f", "a", "b", "c", "g", "j", "h"]
    unknown = replace(NEAREST, vector=vector(math.nan, 1.0, 1.0), threshold=1.0)
    assert found(unknown) == []
    assert len(found(replace(unknown, measure=Measure.DOT_PRODUCT))) == 7


def test_limit_and_names() -> None:
    assert [name for name, _ in found(replace(NEAREST, limit=3))] == ["a", "j", "b"]
    plain = find(replace(NEAREST, limit=1, result_field=None), DOCUMENTS)
    assert plain == [DOCUMENTS[0]]
    dotted = find(replace(NEAREST, limit=1, result_field="a.b"), DOCUMENTS)
    assert identical(dotted[0].fields, {"e": vector(1.0, 2.0, 3.0), "a.b": 0.0})
    over = find(replace(NEAREST, limit=1, result_field="e"), DOCUMENTS)
    assert over[0].fields == {"e": 0.0}


def test_inside_a_query() -> None:
    """After filter and order, which decides between the equally near; before the projection."""
    documents = [
        replace(document, fields={**document.fields, "z": index})
        for index, document in enumerate(DOCUMENTS)
    ]
    up = Query(collection="c", where=FieldFilter(("z",), Op.LESS_THAN, 6), nearest=NEAREST)
    assert [d.path for d in run(up, documents)] == ["c/a", "c/b", "c/c", "c/f"]
    down = Query(collection="c", order_by=(Order(("z",), descending=True),), nearest=NEAREST)
    assert [d.path[2:] for d in run(down, documents)] == ["j", "a", "b", "c", "g", "f", "h"]
    few = Query(collection="c", nearest=NEAREST, select=(("z",), ("far",)))
    assert run(few, documents)[0].fields == {"z": 0, "far": 0.0}
    assert not few.whole
    assert not up.whole
    assert Query(nearest=replace(NEAREST, result_field=None)).whole


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 0},
        {"limit": -1},
        {"limit": 1001},
        {"path": ("__x__",)},
        {"vector": None},
        {"vector": [1.0, 2.0]},
        {"vector": {"value": [1.0]}},
        {"vector": vector()},
        {"vector": vector(1)},
        {"vector": {"__type__": "__vector__", "value": "text"}},
        {"vector": vector(*[1.0] * 2049)},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"result_field": "__name__"},
        {"result_field": "x" * 1501},
    ],
)
def test_illegal(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        check(replace(NEAREST, **change))


@pytest.mark.parametrize(
    "query",
    [
        Query(nearest=NEAREST, limit=1),
        Query(nearest=NEAREST, offset=1),
        Query(nearest=NEAREST, order_by=(Order(("z",)),), start=Cursor((1,), before=True)),
        Query(nearest=NEAREST, order_by=(Order(("z",)),), end=Cursor((1,), before=True)),
        Query(nearest=replace(NEAREST, limit=0)),
    ],
)
def test_illegal_together(query: Query) -> None:
    with pytest.raises(InvalidArgument):
        check_query(query)
