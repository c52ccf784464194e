"""What the official emulator does differently, as far as random requests meet it.

Each rule here has a test of its own in test_known_differences.py.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from crossfade.document import FieldPath, get_field, identical
from crossfade.query import LISTS, CompositeFilter, FieldFilter, Filter, Op, Query
from tests.contract.protocol import Aggregate, Answer, Request, RunQuery, Session
from tests.strategies import UNARY

NOTHING = object()
"""A filter that no document passes."""


async def explained(request: Request, ours: Answer, theirs: Answer, session: Session) -> bool:
    """Whether an answer of ours that is not theirs is a known difference. `session`: ours."""
    if isinstance(request, RunQuery | Aggregate) and ours.error == "INVALID_ARGUMENT":
        if theirs.error:
            return False
        simple = simplified(request.query)
        return simple is not None and same(
            await session.ask(replace(request, query=simple)), theirs
        )
    if isinstance(request, RunQuery) and request.query.nearest is not None and not ours.error:
        # It finds no vector that lies in a map.
        return len(request.query.nearest.path) > 1 and same(theirs, Answer())
    if isinstance(request, Aggregate) and not ours.error and not theirs.error:
        return await _sums_differ_a_little(request, ours, theirs, session)
    return False


def same(ours: Answer, theirs: Answer) -> bool:
    return ours.error == theirs.error and identical(ours.values, theirs.values)


# --- the emulator simplifies a filter before it applies limits ---------------------------------


def simplified(query: Query) -> Query | None:
    """The query as the emulator looks at it, if that is another one: a filter twice is one,
    and of a filter that nothing passes it looks at nothing else."""
    if query.where is None:
        return None
    where = _simple(query.where)
    if where is NOTHING:
        return Query(query.parent, query.collection, limit=0)
    return None if where == query.where else replace(query, where=where)


def _simple(where: Filter) -> Any:
    if isinstance(where, FieldFilter):
        return NOTHING if _empty(where) else where
    inner = [_simple(item) for item in where.filters]
    if where.any_of:
        inner = [item for item in inner if item is not NOTHING]
    elif NOTHING in inner:
        return NOTHING
    kept = _unique(inner)
    if not kept:
        return NOTHING
    return kept[0] if len(kept) == 1 else CompositeFilter(where.any_of, tuple(kept))


def _unique(filters: Iterable[Any]) -> list[Any]:
    """The filters without those that repeat an earlier one."""
    kept: list[Any] = []
    for item in filters:
        if not any(_alike(item, other) for other in kept):
            kept.append(item)
    return kept


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, FieldFilter) and isinstance(other, FieldFilter):
        alike = (one.path, one.op) == (other.path, other.op)
        return alike and identical(one.value, other.value)
    return bool(one == other)


def _empty(leaf: FieldFilter) -> bool:
    if leaf.op in UNARY:
        return False
    if leaf.op is Op.NOT_IN:
        return isinstance(leaf.value, list) and None in leaf.value
    operands = leaf.value if leaf.op in LISTS and isinstance(leaf.value, list) else [leaf.value]
    return all(_nothing(operand, leaf.op) for operand in operands)


def _nothing(operand: Any, op: Op) -> bool:
    return operand is None or (operand != operand and op is not Op.NOT_EQUAL)


# --- it adds doubles in no fixed order ---------------------------------------------------------


async def _sums_differ_a_little(
    request: Aggregate, ours: Answer, theirs: Answer, session: Session
) -> bool:
    """Whether all that differs are the last bits of sums of doubles."""
    mine, other = ours.values[0], theirs.values[0]
    if mine.keys() != other.keys():
        return False
    everything = await session.ask(RunQuery(Query(all_descendants=True)))
    paths = {aggregation.alias: aggregation.path for aggregation in request.aggregations}
    unnamed = [a.path for a in request.aggregations if not a.alias]
    paths |= {f"field_{index}": path for index, path in enumerate(unnamed, 1)}
    return all(
        identical(mine[alias], other[alias])
        or _nearly(mine[alias], other[alias], _doubles(everything, paths[alias]))
        for alias in mine
    )


def _doubles(everything: Answer, path: FieldPath | None) -> list[float]:
    """All finite doubles that a sum can have added."""
    values = [get_field(fields, path or ()) for _, fields, *_ in everything.values]
    return [v for v in values if isinstance(v, float) and math.isfinite(v)]


def _nearly(mine: Any, other: Any, doubles: list[float]) -> bool:
    """Within the error of a compensated sum. What overflows on the way may be anything."""
    if not (isinstance(mine, float) and isinstance(other, float)):
        return False
    scale = sum(map(abs, doubles))
    if math.isinf(scale):
        return True
    return abs(mine - other) <= 4 * _ULP * abs(mine) + len(doubles) * _ULP**2 * scale


_ULP = 2.0**-53
