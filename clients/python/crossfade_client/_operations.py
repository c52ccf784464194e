"""The operations of crossfade.v1: what each sends, and what its answer means. No I/O.

`AsyncCrossfade` and `Crossfade` carry the same ones out, awaiting or waiting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc

from crossfade_client import _requests, aggregates, query
from crossfade_client._requests import RequestId
from crossfade_client.aggregates import Aggregates, Aggregation
from crossfade_client.errors import CrossfadeError, InternalError, from_status
from crossfade_client.query import Query
from crossfade_client.values import CommitResult, FieldPath, Snapshot
from crossfade_client.writes import Write

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call. `read` is given the reply, or all messages of a `stream`; `safe`: it may be
    sent again; `request_id`: of a commit that carries one."""

    method: str
    request: Any = field(repr=False)  # it holds documents
    read: Callable[[Any], T]
    stream: bool = False
    safe: bool = True
    request_id: str | None = None

    def error(self, code: grpc.StatusCode, details: str | None) -> CrossfadeError:
        """What the caller gets for this status."""
        return from_status(
            code, details or "", commit=self.method == "Commit", request_id=self.request_id
        )


def get(path: str) -> Operation[Snapshot]:
    return Operation("GetDocument", _requests.get_request(path), _requests.get_result)


def get_all(paths: Sequence[str]) -> Operation[list[Snapshot | None]]:
    return Operation(
        "BatchGetDocuments",
        _requests.batch_get_request(paths),
        lambda replies: _requests.batch_get_result(replies, paths),
        stream=True,
    )


def find_by_query(query_: Query | str) -> Operation[list[Snapshot]]:
    """`read` is given one message of the stream at a time."""
    return Operation("Query", query.request(_query(query_)), _requests.query_result, stream=True)


def aggregate(
    query_: Query | str, aggregations: Mapping[str, Aggregation]
) -> Operation[Aggregates]:
    return Operation(
        "Aggregate",
        aggregates.request(_query(query_), aggregations),
        lambda reply: aggregates.result(_requests.checked(reply), aggregations),
    )


def count(query_: Query | str, up_to: int | None) -> Operation[int]:
    def read(found: float | None) -> int:
        if not isinstance(found, int):
            raise InternalError("the reply to a count is no whole number")
        return found

    return _single(query_, aggregates.Count(up_to), read)


def sum_(query_: Query | str, field: FieldPath) -> Operation[int | float]:
    def read(found: float | None) -> int | float:
        if found is None:
            raise InternalError("the reply to a sum is no number")
        return found

    return _single(query_, aggregates.Sum(field), read)


def average(query_: Query | str, field: FieldPath) -> Operation[float | None]:
    return _single(query_, aggregates.Average(field), lambda found: found)


def _single(
    query_: Query | str, aggregation: Aggregation, read: Callable[[int | float | None], T]
) -> Operation[T]:
    whole = aggregate(query_, {"only": aggregation})
    return Operation(whole.method, whole.request, lambda reply: read(whole.read(reply)["only"]))


def commit(writes: Sequence[Write], request_id: str | RequestId | None) -> Operation[CommitResult]:
    request = _requests.commit_request(writes, request_id)
    return Operation(
        "Commit",
        request,
        lambda reply: _requests.commit_result(reply, request),
        safe=bool(request.request_id),
        request_id=request.request_id or None,
    )


def _query(query_: Query | str) -> Query:
    """A whole collection may be given by its path."""
    return Query(query_) if isinstance(query_, str) else query_
