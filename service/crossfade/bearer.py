"""A caller's token with every call of a channel, for our own commands."""

from collections.abc import Callable
from typing import Any

import grpc.aio


class Bearer(grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, token: str) -> None:
        self._pair = ("authorization", f"Bearer {token}")

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any
    ) -> Any:
        return await continuation(self._signed(details), request)

    async def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any
    ) -> Any:
        return await continuation(self._signed(details), request)

    def _signed(self, details: Any) -> Any:
        pairs = (*(details.metadata or ()), self._pair)
        return details._replace(metadata=grpc.aio.Metadata(*pairs))
