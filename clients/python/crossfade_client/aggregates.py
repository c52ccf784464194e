"""Counts, sums and averages over what a query finds, and their message. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from crossfade_api.v1 import crossfade_pb2 as pb
from crossfade_client import _codec, _paths, query
from crossfade_client.errors import InternalError, InvalidArgumentError
from crossfade_client.query import Query
from crossfade_client.values import FieldPath


@dataclass(frozen=True, slots=True)
class Count:
    """How many documents there are; counting ends at `up_to`."""

    up_to: int | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of the numbers in a field. An int where all are and it fits 64 bits."""

    field: FieldPath


@dataclass(frozen=True, slots=True)
class Average:
    """The average of the numbers in a field; None where there is none."""

    field: FieldPath


Aggregation: TypeAlias = Count | Sum | Average
Aggregates: TypeAlias = "dict[str, int | float | None]"
"""Results by the names they were asked under."""


def request(query_: Query, aggregations: Mapping[str, Aggregation]) -> pb.AggregateRequest:
    """Raises InvalidArgumentError for no aggregations and for what cannot be encoded."""
    if not aggregations:
        raise InvalidArgumentError("aggregate: no aggregations")
    whole = query.request(query_)
    message = pb.AggregateRequest(parent=whole.parent)
    message.query.structured_query.CopyFrom(whole.query)
    for alias, aggregation in aggregations.items():
        item = message.query.aggregations.add(alias=alias)
        if isinstance(aggregation, Count):
            item.count.SetInParent()
            if aggregation.up_to is not None:
                item.count.up_to.value = aggregation.up_to
        else:
            operator = item.sum if isinstance(aggregation, Sum) else item.avg
            operator.field.field_path = _paths.spell(_paths.parse(aggregation.field))
    return message


def result(reply: pb.AggregateReply, aggregations: Mapping[str, Aggregation]) -> Aggregates:
    """Raises InternalError for a reply that leaves one out: nothing said is not zero."""
    fields = reply.result.aggregate_fields
    silent = [alias for alias in aggregations if alias not in fields]
    if silent:
        raise InternalError(
            f"the reply says nothing of {len(silent)} of {len(aggregations)} aggregations"
        )
    return {alias: _number(_codec.decode_value(fields[alias])) for alias in aggregations}


def _number(value: Any) -> int | float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InternalError("the reply to an aggregation holds what is no number")
    return value
