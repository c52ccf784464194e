"""Every RPC of google.firestore.v1, asked of the client library itself.

Its transport builds one callable per method when it is made; over a channel that only
takes notes these are the paths, the kinds of call and the types of the messages.
"""

import enum
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import Mock

import grpc.aio
from google.cloud.firestore_v1.services.firestore.transports.grpc_asyncio import (
    FirestoreGrpcAsyncIOTransport,
)

SERVICE = "/google.firestore.v1.Firestore/"


class Kind(enum.StrEnum):
    """How a method is called; the values are the names of a channel's functions."""

    UNARY = "unary_unary"
    STREAM = "unary_stream"
    BOTH_WAYS = "stream_stream"


@dataclass(frozen=True, slots=True)
class Method:
    """`request` and `response` are protobuf message classes."""

    name: str
    kind: Kind
    request: Any
    response: Any

    @property
    def path(self) -> str:
        return SERVICE + self.name


@cache
def methods() -> dict[str, Method]:
    """By name."""
    channel = Mock(spec=grpc.aio.Channel)
    channel._unary_unary_interceptors = []
    FirestoreGrpcAsyncIOTransport(channel=channel)
    found = {}
    for kind in Kind:
        for call in getattr(channel, kind).call_args_list:
            path = call.args[0]
            if path.startswith(SERVICE):
                name = path.removeprefix(SERVICE)
                request = call.kwargs["request_serializer"].__self__
                response = call.kwargs["response_deserializer"].__self__
                found[name] = Method(name, kind, _message(request), _message(response))
    return found


def _message(owner: Any) -> Any:
    """A protobuf class: the library wraps all but the empty message."""
    if hasattr(owner, "pb"):
        return owner.pb()
    from google.protobuf.empty_pb2 import Empty

    return Empty
