"""Errors over HTTP: one status for each gRPC status, and one shape of body for all of them."""

import re
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from crossfade.errors import CrossfadeError, Internal, InvalidArgument

log = structlog.get_logger(__name__)

STATUSES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNKNOWN": 500,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
}
"""For what the framework refuses by itself."""
PLACES = {"body", "query", "path"}
_FIELD = re.compile(r"([a-z_][a-z0-9_.\[\]]*): ")
"""Messages of InvalidArgument begin with the field that they are about."""


class Problem(BaseModel):
    """What went wrong. `field` names the part of the request that is to be changed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "INVALID_ARGUMENT",
                    "message": "read_percent: 101 is outside 0..100",
                    "field": "read_percent",
                }
            ]
        }
    )

    code: str = Field(description="The name of the gRPC status that the same call would end with.")
    message: str = Field(description="A sentence for people; it never holds a document's values.")
    field: str | None = Field(
        default=None, description="Where in the request it is, if it is there."
    )


def problem_of(error: Exception) -> tuple[int, Problem]:
    """The HTTP status and the body of an error. What is none of ours is a defect: its message
    stays in the process, for it may hold values."""
    if not isinstance(error, CrossfadeError) or isinstance(error, Internal):
        log.error("a request failed by a defect", error=type(error).__name__)
        name = type(error).__name__
        return 500, Problem(
            code="INTERNAL", message=f"a defect ({name}); the server's log has more", field=None
        )
    text = str(error)
    found = _FIELD.match(text) if isinstance(error, InvalidArgument) else None
    return STATUSES[error.code], Problem(
        code=error.code, message=text, field=found[1] if found else None
    )


def problem_of_validation(errors: list[Any]) -> Problem:
    """The first thing that a request's model refuses. What was given is not repeated."""
    first = errors[0]
    # Numbers are places in lists, and in text that is no JSON.
    place = [part for part in first["loc"] if isinstance(part, str) and part not in PLACES]
    field = ".".join(place) or None
    text = str(first["msg"]).removeprefix("Value error, ")
    text = f"{text[:1].lower()}{text[1:]}"
    return Problem(
        code="INVALID_ARGUMENT", message=f"{field}: {text}" if field else text, field=field
    )
