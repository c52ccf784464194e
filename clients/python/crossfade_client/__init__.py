"""Python client of the Crossfade sidecar.

async with AsyncCrossfade("127.0.0.1:7600") as crossfade:
    task = await crossfade.get("tasks/1")

with Crossfade("127.0.0.1:7600") as crossfade:
    task = crossfade.get("tasks/1")
"""

from crossfade_client._requests import RequestId
from crossfade_client.aggregates import Average, Count, Sum
from crossfade_client.client import AsyncBatch, AsyncCrossfade
from crossfade_client.errors import (
    AbortedError,
    AlreadyExistsError,
    CallCancelledError,
    CrossfadeError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
)
from crossfade_client.query import And, Filter, Or, Query
from crossfade_client.sync import Batch, Crossfade
from crossfade_client.values import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    CommitResult,
    GeoPoint,
    Increment,
    Maximum,
    Minimum,
    Reference,
    Snapshot,
    WriteResult,
)
from crossfade_client.watching import Moment
from crossfade_client.writes import Write

__all__ = [
    "DELETE_FIELD",
    "SERVER_TIMESTAMP",
    "AbortedError",
    "AlreadyExistsError",
    "And",
    "ArrayRemove",
    "ArrayUnion",
    "AsyncBatch",
    "AsyncCrossfade",
    "Average",
    "Batch",
    "CallCancelledError",
    "CommitResult",
    "Count",
    "Crossfade",
    "CrossfadeError",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "Filter",
    "GeoPoint",
    "Increment",
    "InternalError",
    "InvalidArgumentError",
    "Maximum",
    "Minimum",
    "Moment",
    "NotFoundError",
    "Or",
    "OutOfRangeError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "Query",
    "Reference",
    "RequestId",
    "ResourceExhaustedError",
    "Snapshot",
    "Sum",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "Write",
    "WriteResult",
]
