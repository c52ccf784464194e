"""What is sent, what an answer means, when a call is tried again. No I/O.

A client, async or not, is this plus a channel.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, TypeVar
from uuid import uuid4

import grpc

from crossfade_api.v1 import crossfade_pb2 as pb
from crossfade_client import _codec
from crossfade_client.errors import InternalError, InvalidArgumentError
from crossfade_client.values import CommitResult, Snapshot, WriteResult, relative
from crossfade_client.writes import Write

MAX_MESSAGE_BYTES = 11 * 1_048_576
PUSHBACK_METADATA = "grpc-retry-pushback-ms"

CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # One connection loads one worker of the sidecar: several addresses are used in turn,
    # and two clients of one process do not share a connection.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.use_local_subchannel_pool", 1),
    # What is tried again is decided here, not by a service config found in DNS.
    ("grpc.service_config_disable_resolution", 1),
    # A sidecar beside its application restarts in seconds: look for it sooner than gRPC would.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_Reply = TypeVar("_Reply")


class RequestId(Enum):
    """The default of `request_id`: a fresh uuid4 for each commit."""

    GENERATE = "generate"


# --- retries ------------------------------------------------------------------------------------


class Attempts:
    """The deadline of one operation and what is left of its retries.

    UNAVAILABLE is tried again where `safe`: a read, or a commit with a request_id. Pauses
    double from 20 ms to 1 s, each drawn evenly from zero to that, so that callers which
    failed together do not come back together. RESOURCE_EXHAUSTED is tried again where the
    sidecar says after how long: nothing was done then.
    """

    def __init__(
        self,
        timeout: float,
        retries: int,
        *,
        safe: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if timeout <= 0:
            raise InvalidArgumentError(f"timeout: {timeout} is not a number of seconds above 0")
        self._clock = clock
        self._end = clock() + timeout
        self._left = retries
        self._safe = safe
        self._pause = 0.02

    def remaining(self) -> float:
        """Seconds for the next attempt; a moment at least, so that gRPC itself ends the call."""
        return max(self._end - self._clock(), 0.001)

    def pause(self, code: grpc.StatusCode, hint: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None: there is none. `hint`: what the
        sidecar says of it."""
        refused = code is grpc.StatusCode.RESOURCE_EXHAUSTED and hint is not None
        away = code is grpc.StatusCode.UNAVAILABLE and self._safe
        if not (refused or away) or self._left <= 0:
            return None
        spread = random.uniform(0, self._pause)  # noqa: S311 (spreads load, keeps no secret)
        pause = (hint or 0.0) + spread
        if self._clock() + pause >= self._end:
            return None
        self._left -= 1
        self._pause = min(self._pause * 2, 1.0)
        return pause


def retry_after(error: Any) -> float | None:
    """The seconds after which a call that was refused by a limit may be sent again."""
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_METADATA:
            milliseconds = value.decode() if isinstance(value, bytes) else value
            return int(milliseconds) / 1e3 if milliseconds.isdecimal() else None
    return None


# --- requests and replies -----------------------------------------------------------------------


def checked(reply: _Reply | None) -> _Reply:
    """A message that it cannot parse is handed on by grpc.aio as None, without an error."""
    if reply is None:
        raise InternalError("the reply is not a message of crossfade.v1")
    return reply


def get_request(path: str) -> pb.GetDocumentRequest:
    return pb.GetDocumentRequest(name=path)


def get_result(reply: pb.GetDocumentReply | None) -> Snapshot:
    reply = checked(reply)
    if not reply.HasField("document"):
        raise InternalError("the reply to a get has no document")
    return _codec.decode_document(reply.document)


def batch_get_request(paths: Sequence[str]) -> pb.BatchGetDocumentsRequest:
    return pb.BatchGetDocumentsRequest(names=paths)


def batch_get_result(
    replies: Iterable[pb.BatchGetDocumentsReply], paths: Sequence[str]
) -> list[Snapshot | None]:
    """One entry per path, in order. A path the sidecar said nothing of is an error, not None."""
    known: dict[str, Snapshot | None] = {}
    for reply in replies:
        known.update((relative(name), None) for name in reply.missing)
        for document in reply.found:
            snapshot = _codec.decode_document(document)
            known[snapshot.path] = snapshot
    silent = [path for path in paths if relative(path) not in known]
    if silent:
        raise InternalError(f"the reply says nothing of {len(silent)} of {len(paths)} documents")
    return [known[relative(path)] for path in paths]


def query_result(reply: pb.QueryReply | None) -> list[Snapshot]:
    return [_codec.decode_document(document) for document in checked(reply).documents]


def commit_request(writes: Sequence[Write], request_id: str | RequestId | None) -> pb.CommitRequest:
    """Raises InvalidArgumentError for no writes, or an empty request_id."""
    if not writes:
        raise InvalidArgumentError("commit: no writes")
    if request_id == "":
        raise InvalidArgumentError("request_id: empty; None does without one")
    if request_id is RequestId.GENERATE:
        request_id = str(uuid4())
    return pb.CommitRequest(writes=[write.message for write in writes], request_id=request_id or "")


def commit_result(reply: pb.CommitReply | None, request: pb.CommitRequest) -> CommitResult:
    reply = checked(reply)
    if len(reply.write_results) != len(request.writes):
        raise InternalError(
            f"the reply has {len(reply.write_results)} results for {len(request.writes)} writes"
        )
    return CommitResult(
        _codec.decode_time(reply.commit_time),
        tuple(_write_result(result) for result in reply.write_results),
        reply.replayed,
    )


def _write_result(result: Any) -> WriteResult:
    return WriteResult(
        _codec.decode_time(result.update_time) if result.HasField("update_time") else None,
        tuple(_codec.decode_value(value) for value in result.transform_results),
    )
