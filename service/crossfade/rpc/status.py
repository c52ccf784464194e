"""Errors as gRPC statuses, on the way out. The one table."""

import traceback
from pathlib import Path
from typing import Any

import grpc
import structlog

from crossfade.errors import CrossfadeError, Internal

log = structlog.get_logger(__name__)

MAX_DETAILS = 500
"""Characters. Each takes up to 12 bytes of the header."""
_CODES = {code.name: code for code in grpc.StatusCode}


def code_of(error: CrossfadeError) -> grpc.StatusCode:
    """Every error class names its status; the subclass's own name wins."""
    return _CODES[error.code]


def refuse(context: Any, rpc: str, error: Exception) -> str:
    """Ends a call with the error's status, whose name is returned.

    What is none of our errors is a defect: the caller hears INTERNAL, the log has the
    place. Its message stays here, for it may hold a document's values.
    """
    if isinstance(error, CrossfadeError):
        if isinstance(error, Internal):
            log.error("a request failed by a defect", rpc=rpc, error=str(error), at=place(error))
        context.set_code(code_of(error))
        context.set_details(details(error))
        return error.code
    log.error("a request failed by a defect", rpc=rpc, error=type(error).__name__, at=place(error))
    context.set_code(grpc.StatusCode.INTERNAL)
    context.set_details(f"a defect ({type(error).__name__}); the server's log has the place")
    return "INTERNAL"


def details(error: CrossfadeError) -> str:
    """The message, short enough to travel.

    It is a header, percent-encoded, and a client that is sent more than 8 KiB of headers
    sees RESOURCE_EXHAUSTED in the place of the status: "not found" would be lost.
    """
    text = str(error)
    if len(text) <= MAX_DETAILS:
        return text
    return f"{text[: MAX_DETAILS - 1]}…"


def place(error: BaseException) -> str:
    """file:line of where the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
