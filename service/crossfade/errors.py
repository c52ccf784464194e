"""Every error a caller can meet: one class for each gRPC status, in one small tree.

Drivers' errors are translated to these once, where a store is entered; these
are translated to gRPC once, where an answer leaves. Messages name the field and
the limit and never hold a document's values.
"""

from typing import ClassVar


class CrossfadeError(Exception):
    """Base of all. `code` is the name of the gRPC status the caller sees."""

    code: ClassVar[str] = "UNKNOWN"


class InvalidArgument(CrossfadeError):
    """The request can never succeed as it is."""

    code = "INVALID_ARGUMENT"


class TooLarge(InvalidArgument):
    """A document over the limit of its size. Of several writes in a BatchWrite it fails one
    alone, as no other InvalidArgument does."""


class NotFound(CrossfadeError):
    """The document is known not to exist. Never said of a store that did not answer."""

    code = "NOT_FOUND"


class AlreadyExists(CrossfadeError):
    """A create met an existing document."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(CrossfadeError):
    """The request is fine, the state it met is not."""

    code = "FAILED_PRECONDITION"


class Aborted(CrossfadeError):
    """Not done because of a conflict; the whole operation may be tried again."""

    code = "ABORTED"


class PermissionDenied(CrossfadeError):
    """The store or the sidecar refuses this caller."""

    code = "PERMISSION_DENIED"


class Unauthenticated(CrossfadeError):
    """The caller, or the sidecar at the store, did not show who it is."""

    code = "UNAUTHENTICATED"


class Unimplemented(CrossfadeError):
    """A part of a protocol that is not served."""

    code = "UNIMPLEMENTED"


class ResourceExhausted(CrossfadeError):
    """A quota or limit of the store or the sidecar.

    `limit`: its name, where it is one of [limits]. `retry_after`: seconds after which the
    call may succeed; None: nobody knows, or it never will.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(
        self, message: str = "", *, limit: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class OutcomeUnknown(CrossfadeError):
    """A commit may or may not have been applied, and nobody can say yet.

    Asking again with the same request_id finds out without doing it twice.
    """

    code = "UNKNOWN"


class Internal(CrossfadeError):
    """A defect of ours."""

    code = "INTERNAL"


class InfrastructureError(CrossfadeError):
    """The store could not be asked or did not answer: the only ground for a fallback [law]."""

    code = "UNAVAILABLE"


class Unavailable(InfrastructureError):
    """The store cannot be reached or refuses to work now."""


class CommitUnanswered(Unavailable):
    """A store was told to commit and did not answer. Of any other InfrastructureError of a
    transaction it is known that nothing was done."""


class DeadlineExceeded(InfrastructureError):
    """The store did not answer in time."""

    code = "DEADLINE_EXCEEDED"


class EpochChanged(CrossfadeError):
    """The authority changed under an operation: decide again. Never leaves the sidecar."""

    code = "ABORTED"
