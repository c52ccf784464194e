"""Errors as gRPC statuses, on the way out. The one table."""

import traceback
from math import ceil
from pathlib import Path
from typing import Any

import grpc
import structlog

from crossfade import redaction
from crossfade.errors import CrossfadeError, Internal, ResourceExhausted

log = structlog.get_logger(__name__)

MAX_DETAILS = 500
"""Characters. Each takes up to 12 bytes of the header."""
STATUS_METADATA = "grpc-status-details-bin"
PUSHBACK_METADATA = "grpc-retry-pushback-ms"
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
        if isinstance(error, ResourceExhausted) and error.retry_after is not None:
            context.set_trailing_metadata(retry_hint(error, error.retry_after))
        return error.code
    log.error("a request failed by a defect", rpc=rpc, error=type(error).__name__, at=place(error))
    context.set_code(grpc.StatusCode.INTERNAL)
    context.set_details(f"a defect ({type(error).__name__}); the server's log has the place")
    return "INTERNAL"


def retry_hint(error: ResourceExhausted, seconds: float) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata that say when to try again: Google's RetryInfo, and milliseconds in gRPC's own."""
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    milliseconds = max(1, ceil(seconds * 1_000))
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(milliseconds)
    packed = AnyMessage()
    packed.Pack(info)
    status = Status(code=code_of(error).value[0], message=details(error), details=[packed])
    return (STATUS_METADATA, status.SerializeToString()), (PUSHBACK_METADATA, str(milliseconds))


def details(error: CrossfadeError) -> str:
    """The message, short enough to travel, and without ids that are secrets.

    It is a header, percent-encoded, and a client that is sent more than 8 KiB of headers
    sees RESOURCE_EXHAUSTED in the place of the status: "not found" would be lost.
    """
    text = redaction.present().text(str(error))
    if len(text) <= MAX_DETAILS:
        return text
    return f"{text[: MAX_DETAILS - 1]}…"


def place(error: BaseException) -> str:
    """file:line of where the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
