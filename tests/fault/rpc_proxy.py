"""A proxy of Firestore's methods that fails on purpose: per method, before or after it.

Bytes in, bytes out. A call that the proxy has begun goes on though the sidecar gives it
up, as it does on a network: that is how a commit arrives late.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio

SERVICE = "/google.firestore.v1.Firestore/"
SECONDS = 30.0
"""How long a call goes on that its caller gave up."""
UNARY = {"BeginTransaction", "Commit", "GetDocument", "ListCollectionIds", "Rollback"}
STREAMING = {"BatchGetDocuments", "RunAggregationQuery", "RunQuery"}
OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 * 1_048_576),
    ("grpc.max_send_message_length", 16 * 1_048_576),
    ("grpc.max_metadata_size", 65_536),
)

Matches: TypeAlias = Callable[[bytes], bool]


def anything(_: bytes) -> bool:
    return True


class Held:
    """A call that waits in the proxy: `arrived`, then `release()`; `ended` when Firestore has
    answered it, with `code`, the status's name."""

    def __init__(self, *, answers: bool) -> None:
        self.arrived, self.ended = asyncio.Event(), asyncio.Event()
        self.code = ""
        self.answers = answers
        self._open = asyncio.Event()

    def release(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self.arrived.set()
        await self._open.wait()


class RpcProxy:
    """`async with`; `address` is host:port. `upstream`: host:port of a Firestore.

    The faults are asked for by a method's name ("Commit") and hold for the next `times`
    calls of it whose request `matches`.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._faults: list[_Fault] = []
        self._going: set[asyncio.Task[Any]] = set()
        self.calls: Counter[str] = Counter()
        self.address = ""

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._upstream, options=OPTIONS)
        self._server = grpc.aio.server(options=OPTIONS)
        handlers = {name: self._unary(name) for name in UNARY}
        handlers |= {name: self._streaming(name) for name in STREAMING}
        service = SERVICE.strip("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)
        for task in self._going:
            task.cancel()
        await asyncio.gather(*self._going, return_exceptions=True)
        await self._channel.close()

    # --- faults ---------------------------------------------------------------------------------

    def hold(self, method: str, matches: Matches = anything, *, answers: bool = True) -> Held:
        """Keeps the next such call until it is released; then it reaches Firestore, whatever
        became of the caller. `answers=False`: the caller never hears of it."""
        held = Held(answers=answers)
        self._faults.append(_Fault(method, matches, 1, held=held))
        return held

    def lose_request(self, method: str, times: int = 1, matches: Matches = anything) -> None:
        """Calls end with UNAVAILABLE and never reach Firestore."""
        self._faults.append(_Fault(method, matches, times, before=True))

    def lose_answer(self, method: str, times: int = 1, matches: Matches = anything) -> None:
        """Calls are done, and their callers hear UNAVAILABLE."""
        self._faults.append(_Fault(method, matches, times, after=True))

    def delay(
        self, method: str, seconds: float, times: int = 1_000_000, matches: Matches = anything
    ) -> None:
        self._faults.append(_Fault(method, matches, times, seconds=seconds))

    def heal(self) -> None:
        """No fault for calls to come; what is held stays so."""
        self._faults.clear()

    def _next(self, method: str, request: bytes) -> "_Fault":
        self.calls[method] += 1
        for fault in self._faults:
            if fault.method == method and fault.left and fault.matches(request):
                fault.left -= 1
                return fault
        return _Fault(method, anything, 0)

    # --- calls ----------------------------------------------------------------------------------

    def _unary(self, name: str) -> Any:
        call: Any = self._channel.unary_unary(SERVICE + name)

        async def handle(request: bytes, context: Any) -> bytes:
            return await self._meet(
                name, request, context, lambda **options: _one(call, request, options)
            )

        return grpc.unary_unary_rpc_method_handler(handle)

    def _streaming(self, name: str) -> Any:
        call: Any = self._channel.unary_stream(SERVICE + name)

        async def handle(request: bytes, context: Any) -> AsyncIterator[bytes]:
            frames = await self._meet(
                name, request, context, lambda **options: _all(call, request, options)
            )
            for frame in frames:
                yield frame

        return grpc.unary_stream_rpc_method_handler(handle)

    async def _meet(
        self, name: str, request: bytes, context: Any, send: Callable[..., Awaitable[Any]]
    ) -> Any:
        """The call's answer, after what it meets on its way."""
        fault = self._next(name, request)
        metadata = tuple(context.invocation_metadata() or ())

        async def go() -> Any:
            if fault.held is not None:
                await fault.held.wait()
            await asyncio.sleep(fault.seconds)
            try:
                answer = await send(timeout=SECONDS, metadata=_passed_on(metadata))
            except grpc.aio.AioRpcError as error:
                if fault.held is not None:
                    fault.held.code = error.code().name
                raise
            finally:
                if fault.held is not None:
                    fault.held.code = fault.held.code or "OK"
                    fault.held.ended.set()
            return answer

        if fault.before:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the proxy lost the request")
        task = asyncio.ensure_future(go())
        self._going.add(task)
        task.add_done_callback(self._forget)
        try:
            answer = await asyncio.shield(task)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        if fault.after or (fault.held is not None and not fault.held.answers):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the proxy lost the answer")
        return answer

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._going.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone


class _Fault:
    def __init__(
        self,
        method: str,
        matches: Matches,
        left: int,
        *,
        held: Held | None = None,
        before: bool = False,
        after: bool = False,
        seconds: float = 0.0,
    ) -> None:
        self.method, self.matches, self.left = method, matches, left
        self.held, self.before, self.after, self.seconds = held, before, after, seconds


def _passed_on(metadata: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    kept = ("authorization", "google-cloud-resource-prefix", "x-goog-request-params")
    return tuple((key, value) for key, value in metadata if key in kept)


async def _one(call: Any, request: bytes, options: dict[str, Any]) -> bytes:
    return await call(request, **options)


async def _all(call: Any, request: bytes, options: dict[str, Any]) -> list[bytes]:
    return [frame async for frame in call(request, **options)]
