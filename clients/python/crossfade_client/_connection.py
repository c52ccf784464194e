"""What all clients are made of: where the sidecar is, deadlines, metadata, token, channel."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypedDict

import grpc

from crossfade_api.v1 import crossfade_pb2_grpc as rpc
from crossfade_client._requests import CHANNEL_OPTIONS, Attempts, RequestId
from crossfade_client.errors import InvalidArgumentError

Metadata: TypeAlias = (
    "Sequence[tuple[str, str | bytes]] | Callable[[], Sequence[tuple[str, str | bytes]]]"
)
"""Pairs sent with a call, or what makes them anew for each call (a `traceparent`, say)."""
BearerToken: TypeAlias = str | Callable[[], str]
"""A bearer token, or what reads it anew for each call: it may have been rotated."""

AUTHORIZATION = "authorization"
KEEPALIVE_TIMEOUT_MS = 5_000


class CommitOptions(TypedDict, total=False):
    """What every write may be given; see `commit`."""

    request_id: str | RequestId | None
    timeout: float | None
    metadata: Metadata


class Connection:
    """A sidecar at `target` ("127.0.0.1:7600", "unix:/run/crossfade/crossfade.sock").

    `timeout`: seconds that each operation may take, all its attempts together; every
    method takes its own as well. `retries`: how often UNAVAILABLE is tried again,
    where that is safe: reads, and commits with a request_id; and what the sidecar refused
    by a limit, when it says after how long. `metadata` goes with every call, e.g.
    `traceparent`.

    `token`: who calls. `root_certificates`: the PEM, or its file, of whoever signed the
    sidecar's certificate; with it, or with `credentials` (those of gRPC, for a certificate
    of one's own), the connection is TLS. `keepalive`: seconds of silence after which it is
    asked whether the sidecar is still there, while calls are under way; None: never.

    All methods raise the errors of `crossfade_client.errors`.
    """

    _stubs_by_name: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"": rpc.CrossfadeStub}

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 5.0,
        retries: int = 4,
        metadata: Metadata = (),
        token: BearerToken | None = None,
        root_certificates: bytes | str | Path | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        keepalive: float | None = 30.0,
    ) -> None:
        if credentials is not None and root_certificates is not None:
            raise InvalidArgumentError("credentials: root_certificates are part of them")
        if keepalive is not None and keepalive <= 0:
            raise InvalidArgumentError("keepalive: it is a number of seconds above 0, or None")
        self._target = target
        self._timeout = timeout
        self._retries = retries
        self._metadata = metadata
        self._token = token
        self._credentials = credentials
        if root_certificates is not None:
            if not isinstance(root_certificates, bytes):
                root_certificates = Path(root_certificates).read_bytes()
            self._credentials = grpc.ssl_channel_credentials(root_certificates)
        self._options = list(CHANNEL_OPTIONS)
        if keepalive is not None:
            self._options += [
                ("grpc.keepalive_time_ms", int(keepalive * 1_000)),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.http2.max_pings_without_data", 0),  # a quiet `watch` sends none
            ]
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}
        self._connecting = threading.Lock()

    def _method(self, name: str, library: Any, service: str = "") -> Any:
        """Of a channel of grpc's, or of grpc.aio's, made at the first call, so that it belongs
        to the loop, and the process, that calls."""
        stub = self._stubs.get(service)
        if stub is None:
            with self._connecting:
                if self._channel is None:
                    self._channel = self._connect(library)
                stub = self._stubs[service] = self._stubs_by_name[service](self._channel)
        return getattr(stub, name)

    def _connect(self, library: Any) -> Any:
        if self._credentials is None:
            return library.insecure_channel(self._target, self._options)
        return library.secure_channel(self._target, self._credentials, self._options)

    def _forget(self) -> Any:
        """The channel, which is the caller's to close; the next call makes another."""
        with self._connecting:
            channel, self._channel, self._stubs = self._channel, None, {}
        return channel

    def _attempts(self, timeout: float | None = None, *, safe: bool = True) -> Attempts:
        return Attempts(self._timeout if timeout is None else timeout, self._retries, safe=safe)

    def _pairs(self, more: Metadata = ()) -> tuple[tuple[str, str | bytes], ...]:
        mine = self._metadata() if callable(self._metadata) else self._metadata
        pairs = (*mine, *(more() if callable(more) else more))
        if self._token is None:
            return pairs
        token = self._token() if callable(self._token) else self._token
        return (*pairs, (AUTHORIZATION, f"Bearer {token}"))
