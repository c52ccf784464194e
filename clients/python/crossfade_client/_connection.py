"""What both clients are made of: where the sidecar is, deadlines, metadata, the channel."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict

import grpc

from crossfade_api.v1 import crossfade_pb2_grpc as rpc
from crossfade_client._requests import CHANNEL_OPTIONS, Attempts, RequestId

Metadata: TypeAlias = (
    "Sequence[tuple[str, str | bytes]] | Callable[[], Sequence[tuple[str, str | bytes]]]"
)
"""Pairs sent with a call, or what makes them anew for each call (a `traceparent`, say)."""


class CommitOptions(TypedDict, total=False):
    """What every write may be given; see `commit`."""

    request_id: str | RequestId | None
    timeout: float | None
    metadata: Metadata


class Connection:
    """A sidecar at `target` ("127.0.0.1:7600", "unix:/run/crossfade.sock").

    `timeout`: seconds that each operation may take, all its attempts together; every
    method takes its own as well. `retries`: how often UNAVAILABLE is tried again,
    where that is safe: reads, and commits with a request_id. `metadata` goes with every
    call, e.g. `traceparent`. `credentials` for TLS.

    All methods raise the errors of `crossfade_client.errors`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 5.0,
        retries: int = 4,
        metadata: Metadata = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._retries = retries
        self._metadata = metadata
        self._credentials = credentials
        self._channel: Any = None
        self._stub: Any = None
        self._connecting = threading.Lock()

    def _method(self, name: str, library: Any) -> Any:
        """Of a channel of grpc's, or of grpc.aio's, made at the first call, so that it belongs
        to the loop, and the process, that calls."""
        stub = self._stub
        if stub is None:
            with self._connecting:
                if self._channel is None:
                    self._channel = self._connect(library)
                    self._stub = rpc.CrossfadeStub(self._channel)
                stub = self._stub
        return getattr(stub, name)

    def _connect(self, library: Any) -> Any:
        options = list(CHANNEL_OPTIONS)
        if self._credentials is None:
            return library.insecure_channel(self._target, options)
        return library.secure_channel(self._target, self._credentials, options)

    def _forget(self) -> Any:
        """The channel, which is the caller's to close; the next call makes another."""
        with self._connecting:
            channel, self._channel, self._stub = self._channel, None, None
        return channel

    def _attempts(self, timeout: float | None, *, safe: bool = True) -> Attempts:
        return Attempts(self._timeout if timeout is None else timeout, self._retries, safe=safe)

    def _pairs(self, more: Metadata) -> tuple[tuple[str, str | bytes], ...]:
        mine = self._metadata() if callable(self._metadata) else self._metadata
        return (*mine, *(more() if callable(more) else more))
