"""A caller's token with every call of a channel, for our own commands."""

from collections.abc import Callable
from typing import Any

import grpc.aio


def bearing(token: str) -> list[grpc.aio.ClientInterceptor]:
    """One interceptor for each kind of call: of one that is of several kinds, a channel takes
    the first alone, and the calls of the others would bear nothing."""
    return [_Unary(token), _Stream(token)]


class _Bearer:
    def __init__(self, token: str) -> None:
        self._pair = ("authorization", f"Bearer {token}")

    def _signed(self, details: Any) -> Any:
        pairs = (*(details.metadata or ()), self._pair)
        return details._replace(metadata=grpc.aio.Metadata(*pairs))


class _Unary(_Bearer, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any
    ) -> Any:
        return await continuation(self._signed(details), request)


class _Stream(_Bearer, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any
    ) -> Any:
        return await continuation(self._signed(details), request)
