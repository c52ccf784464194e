"""The methods of the admin services, asked from within the process: HTTP is one more way in
to the same logic, with the same refusals as gRPC. `[limits]` are for gRPC: nobody calls here
thousands of times, and who may is asked before."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from crossfade.call import Call
from crossfade.errors import Unimplemented
from crossfade.telemetry import Telemetry

M = TypeVar("M", bound=Message)
Method = Callable[[bytes, Call], Awaitable[bytes]]
READ_SECONDS = 15.0
MARGIN_SECONDS = 15.0
"""Over the time that a change of stage may take."""


class Calls:
    """`methods` by their names in the protocol: "SetStage"."""

    def __init__(self, methods: Mapping[str, Method], telemetry: Telemetry) -> None:
        self._methods = methods
        self._telemetry = telemetry

    def has(self, name: str) -> bool:
        return name in self._methods

    async def ask(
        self, name: str, request: Message, reply: type[M], timeout: float = READ_SECONDS
    ) -> M:
        """The method's reply. Raises CrossfadeError."""
        method = self._methods.get(name)
        if method is None:
            raise Unimplemented(f"this sidecar has no {name}")
        call = Call(self._telemetry, time.monotonic() + timeout)
        return reply.FromString(await method(request.SerializeToString(), call))


def plain(message: Message) -> dict[str, Any]:
    """A message as what models are made of: names as in the .proto files, every field there."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
