"""Aggregations: count, sum and average over what a query finds. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any

from crossfade import query as queries
from crossfade.document import (
    INT64_MAX,
    INT64_MIN,
    NAME,
    Document,
    FieldPath,
    Value,
    check_field_path,
    check_reserved_name,
    format_field_path,
    get_field,
)
from crossfade.errors import InvalidArgument
from crossfade.query import Order, Query

MAX_AGGREGATIONS = 5


class AggregationKind(StrEnum):
    """By the names of the protocol's fields."""

    COUNT = "count"
    SUM = "sum"
    AVERAGE = "avg"


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One number to find out. `path`: of a sum or an average. `up_to`: where a count stops."""

    kind: AggregationKind
    alias: str
    path: FieldPath | None = None
    up_to: int | None = None


def named(aggregations: Iterable[Aggregation]) -> tuple[Aggregation, ...]:
    """With the aliases field_1, field_2, ... for those that come without one."""
    result: list[Aggregation] = []
    missing = 0
    for aggregation in aggregations:
        if aggregation.alias:
            result.append(aggregation)
        else:
            missing += 1
            result.append(replace(aggregation, alias=f"field_{missing}"))
    return tuple(result)


def aggregate(
    query: Query, documents: Iterable[Document], aggregations: Sequence[Aggregation]
) -> dict[str, Value]:
    """The result by alias. Raises InvalidArgument for what Firestore refuses."""
    orders = check(query, aggregations)
    matches = queries.matcher(query, orders)
    found = queries.finish(query, orders, [d for d in documents if matches(d)])
    return evaluate(aggregations, found)


def check(query: Query, aggregations: Sequence[Aggregation]) -> tuple[Order, ...]:
    """The order in which the query's documents are found. Raises InvalidArgument.

    The fields that are summed are orders like those of inequalities, by name and
    behind them: documents without one of them are not found (not even counted), and
    a limit cuts in the order of their values.
    """
    if not aggregations:
        raise InvalidArgument("Aggregations can not be empty.")
    if len(aggregations) > MAX_AGGREGATIONS:
        raise InvalidArgument(
            f"The maximum number of aggregations allowed in an aggregation query is "
            f"{MAX_AGGREGATIONS}. Received: {len(aggregations)}"
        )
    aliases: set[str] = set()
    for aggregation in aggregations:
        if aggregation.alias in aliases:
            raise InvalidArgument(
                f"Aggregation aliases contain duplicate alias: {aggregation.alias[:120]}."
            )
        aliases.add(aggregation.alias)
        _check_one(aggregation)
    return _orders(query, {a.path for a in aggregations if a.path is not None})


def _check_one(aggregation: Aggregation) -> None:
    check_reserved_name(aggregation.alias, "aggregations.alias")
    if aggregation.up_to is not None and aggregation.up_to <= 0:
        raise InvalidArgument("The `up_to` value in a COUNT aggregation must be greater than zero.")
    if aggregation.path == NAME:
        raise InvalidArgument("Aggregations are not supported for the property: __name__")
    if aggregation.path is not None:
        check_field_path(aggregation.path, f"aggregations.{aggregation.kind}.field")


def _orders(query: Query, paths: set[FieldPath]) -> tuple[Order, ...]:
    orders = queries.check(query)
    if paths and query.select is not None:
        raise InvalidArgument(
            "query.select: Cannot apply property masks when aggregation fields are present."
        )
    missing = sorted(paths - {order.path for order in orders})
    if not missing:
        return orders
    if any(order.path == NAME for order in query.order_by) or (
        query.all_descendants and query.parent
    ):
        shown = ", ".join(map(format_field_path, missing))[:120]
        raise InvalidArgument(
            f"This query requires an index that has fields [{shown}] after __name__ and "
            f"Firestore does not currently support such an index. Please try the query again "
            f"with additional ordering on those fields."
        )
    *before, last = orders
    return (*before, *(Order(path, last.descending) for path in missing), last)


def evaluate(
    aggregations: Sequence[Aggregation], documents: Sequence[Document]
) -> dict[str, Value]:
    """The result over documents that were found in the order of `check`."""
    return {a.alias: _evaluate(a, documents) for a in aggregations}


def _evaluate(aggregation: Aggregation, documents: Sequence[Document]) -> Value:
    path = aggregation.path
    if path is None:
        return min(len(documents), aggregation.up_to or len(documents))
    values = [get_field(document.fields, path) for document in documents]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if aggregation.kind is AggregationKind.SUM:
        return _sum(numbers)
    return float(_sum(numbers)) / len(numbers) if numbers else None


def _sum(numbers: Sequence[int | float]) -> int | float:
    """Integers and doubles each exactly, then added: no order of the documents shows.

    Integers that do not fit 64 bits become a double, and only in the end: what
    overflows on the way may come back.
    """
    doubles = [number for number in numbers if isinstance(number, float)]
    whole = sum(number for number in numbers if isinstance(number, int))
    if doubles:
        return float(whole) + _sum_doubles(doubles)
    return whole if INT64_MIN <= whole <= INT64_MAX else float(whole)


def _sum_doubles(doubles: Sequence[float]) -> float:
    """Rounded once; 0.0 where it is zero, never -0.0."""
    special: list[Any] = [double for double in doubles if not math.isfinite(double)]
    if special:
        return float(sum(special))
    try:
        return math.fsum(doubles) + 0.0
    except OverflowError:  # on the way or in the end
        exact = sum(map(Fraction, doubles))
        try:
            return float(exact)
        except OverflowError:
            return math.inf if exact > 0 else -math.inf
