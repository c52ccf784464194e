"""One class for each gRPC status a call can end with.

"Not there" (`NotFoundError`) and "nobody could say" (`UnavailableError`,
`DeadlineExceededError`) are different classes and never stand in for each other.
"""

from typing import ClassVar

import grpc


class CrossfadeError(Exception):
    """Base of all. `code` is the gRPC status, `details` the sentence that came with it.

    `request_id` is set on errors of commits that carried one: a commit whose outcome
    is not known (UNAVAILABLE, DEADLINE_EXCEEDED, UNKNOWN) may be sent again with it and
    is done once.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(self, details: str = "", request_id: str | None = None) -> None:
        super().__init__(details)
        self.details = details
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}" if self.details else self.code.name


class UnknownError(CrossfadeError):
    """The server failed in a way it has no word for."""


class OutcomeUnknownError(UnknownError):
    """The commit may or may not have been applied. Ask again with the same request_id."""


class CallCancelledError(CrossfadeError):
    """The server, or something on the way, cancelled the call."""

    code = grpc.StatusCode.CANCELLED


class InvalidArgumentError(CrossfadeError):
    """The request can never succeed as it is. Also raised before anything is sent."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceededError(CrossfadeError):
    """No answer in time. A commit may have been applied."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFoundError(CrossfadeError):
    """The document is known not to exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(CrossfadeError):
    """A create met an existing document."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDeniedError(CrossfadeError):
    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(CrossfadeError):
    """A quota or a size limit."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPreconditionError(CrossfadeError):
    """The request is fine, the state it met is not."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(CrossfadeError):
    """Not done because of a conflict; the whole operation may be tried again."""

    code = grpc.StatusCode.ABORTED


class OutOfRangeError(CrossfadeError):
    code = grpc.StatusCode.OUT_OF_RANGE


class UnimplementedError(CrossfadeError):
    """The server does not serve this call; often it is not a Crossfade sidecar."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(CrossfadeError):
    """A defect of the server, or a reply that this client cannot read."""

    code = grpc.StatusCode.INTERNAL


class UnavailableError(CrossfadeError):
    """The sidecar, or the store behind it, could not be asked. A commit may have been applied."""

    code = grpc.StatusCode.UNAVAILABLE


class DataLossError(CrossfadeError):
    code = grpc.StatusCode.DATA_LOSS


class UnauthenticatedError(CrossfadeError):
    code = grpc.StatusCode.UNAUTHENTICATED


_CLASSES: dict[grpc.StatusCode, type[CrossfadeError]] = {
    each.code: each
    for each in (
        UnknownError,
        CallCancelledError,
        InvalidArgumentError,
        DeadlineExceededError,
        NotFoundError,
        AlreadyExistsError,
        PermissionDeniedError,
        ResourceExhaustedError,
        FailedPreconditionError,
        AbortedError,
        OutOfRangeError,
        UnimplementedError,
        InternalError,
        UnavailableError,
        DataLossError,
        UnauthenticatedError,
    )
}


def from_status(
    code: grpc.StatusCode, details: str, *, commit: bool = False, request_id: str | None = None
) -> CrossfadeError:
    """The error of a status. UNKNOWN of a commit is an OutcomeUnknownError."""
    if commit and code is grpc.StatusCode.UNKNOWN:
        return OutcomeUnknownError(details, request_id)
    return _CLASSES.get(code, UnknownError)(details, request_id)
