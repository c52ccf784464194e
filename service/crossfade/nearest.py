"""Nearest neighbours of a vector, found by looking at every one. Pure.

A part of a query: it comes after filter and order and before the projection.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from crossfade.document import (
    MAX_VECTOR,
    Document,
    FieldPath,
    Value,
    check_field_path,
    check_reserved_name,
    get_field,
    is_vector,
)
from crossfade.errors import InvalidArgument

MAX_LIMIT = 1_000


class Measure(StrEnum):
    """How far two vectors are apart, by the names of the protocol. With DOT_PRODUCT a
    larger number is nearer."""

    EUCLIDEAN = "EUCLIDEAN"
    COSINE = "COSINE"
    DOT_PRODUCT = "DOT_PRODUCT"


@dataclass(frozen=True, slots=True)
class Nearest:
    """At most `limit` documents whose vector at `path` is nearest to `vector`.

    `result_field`: a top-level name (no path) that each found document gets, with its
    distance as a double. `threshold`: distances above it (DOT_PRODUCT: below it) are left out.
    """

    path: FieldPath
    vector: Value
    measure: Measure
    limit: int
    result_field: str | None = None
    threshold: float | None = None


def check(nearest: Nearest) -> None:
    """Raises InvalidArgument where Firestore would."""
    check_field_path(nearest.path, "find_nearest.vector_field")
    if not 1 <= nearest.limit <= MAX_LIMIT:
        raise InvalidArgument(
            f"FindNearest.limit must be a positive integer of no more than {MAX_LIMIT}"
        )
    vector = nearest.vector
    if not isinstance(vector, dict) or not is_vector(vector):
        raise InvalidArgument("find_nearest.query_vector: Query Value must be of type vector.")
    items: Any = vector["value"]
    if not isinstance(items, list) or not all(isinstance(item, float) for item in items):
        raise InvalidArgument(
            "find_nearest.query_vector: Vector must only contain values of type 'double'"
        )
    if not items:
        raise InvalidArgument("find_nearest.query_vector: Cannot have a zero length vector.")
    if len(items) > MAX_VECTOR:
        raise InvalidArgument(
            f"find_nearest.query_vector: Vectors must be at most {MAX_VECTOR} dimensions."
        )
    if nearest.threshold is not None and not math.isfinite(nearest.threshold):
        raise InvalidArgument(
            "find_nearest.distance_threshold: distanceThreshold must be a finite number."
        )
    if nearest.result_field is not None:
        check_reserved_name(nearest.result_field, "find_nearest.distance_result_field")


def find(nearest: Nearest, documents: Iterable[Document]) -> list[Document]:
    """The nearest documents, nearest first; those equally near stay in the order they came in.

    Documents without a vector of the same dimension are left out. A distance that is
    no number (COSINE with a vector of zeros) counts as the largest of all.
    """
    wanted = _items(nearest.vector)
    distance = _DISTANCES[nearest.measure]
    sign = -1 if nearest.measure is Measure.DOT_PRODUCT else 1
    least = None if nearest.threshold is None else _rank(nearest.threshold, sign)
    ranked: list[tuple[tuple[int, float], float, Document]] = []
    for document in documents:
        value = get_field(document.fields, nearest.path)
        if not isinstance(value, dict) or not is_vector(value):
            continue
        items = _items(value)
        if len(items) != len(wanted):
            continue
        far = distance(items, wanted)
        rank = _rank(far, sign)
        if least is None or rank <= least:
            ranked.append((rank, far, document))
    ranked.sort(key=lambda item: item[0])
    return [
        document
        if nearest.result_field is None
        else replace(document, fields=document.fields | {nearest.result_field: far})
        for _, far, document in ranked[: nearest.limit]
    ]


def _rank(distance: float, sign: int) -> tuple[int, float]:
    """Sorts the nearest first. NaN is larger than every number, so last or (DOT_PRODUCT) first."""
    return (sign, 0.0) if distance != distance else (0, sign * distance)


def _items(vector: Any) -> list[float]:
    items: list[float] = vector["value"]
    return items


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    total = 0.0
    for a, b in zip(left, right, strict=True):
        total += a * b
    return total


def _euclidean(left: Sequence[float], right: Sequence[float]) -> float:
    gaps = [a - b for a, b in zip(left, right, strict=True)]
    return math.sqrt(_dot(gaps, gaps))


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """1 minus the cosine of the angle: 0 in the same direction, 2 in the opposite one."""
    lengths = math.sqrt(_dot(left, left) * _dot(right, right))
    return 1.0 - _dot(left, right) / lengths if lengths else math.nan


_DISTANCES: dict[Measure, Callable[[Sequence[float], Sequence[float]], float]] = {
    Measure.EUCLIDEAN: _euclidean,
    Measure.COSINE: _cosine,
    Measure.DOT_PRODUCT: _dot,
}
