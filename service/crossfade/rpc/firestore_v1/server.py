"""The gRPC server: every method of the service as a generic handler, bytes in and out."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio

from crossfade.errors import Unimplemented
from crossfade.rpc.firestore_v1.backend import Backends
from crossfade.rpc.firestore_v1.faults import Faults
from crossfade.rpc.firestore_v1.front import Front
from crossfade.rpc.firestore_v1.listen import Listen
from crossfade.rpc.firestore_v1.write_stream import WriteStreams
from crossfade.rpc.status import refuse

SERVICE = "google.firestore.v1.Firestore"
MAX_MESSAGE_BYTES = 11 * 1_048_576
MAX_METADATA_BYTES = 65_536
"""A caller's routing header holds the document's name: 6 KiB, three times that when encoded."""
DEFAULT_SECONDS = 60.0
"""For calls that come without a deadline."""

Unary: TypeAlias = Callable[[bytes, float], Awaitable[bytes]]
Streaming: TypeAlias = Callable[[bytes, float], AsyncIterator[bytes]]
BothWays: TypeAlias = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]


async def _execute_pipeline(_: bytes, __: float) -> AsyncIterator[bytes]:
    raise Unimplemented("pipelines are of Firestore's Enterprise edition and are not served here")
    yield b""  # makes it a generator


def _left(context: Any) -> float:
    left: float | None = context.time_remaining()
    return DEFAULT_SECONDS if left is None else left


def _unary(name: str, method: Unary) -> Any:
    async def handle(data: bytes, context: Any) -> bytes:
        try:
            return await method(data, _left(context))
        except Exception as error:  # noqa: BLE001 - every error is an answer
            refuse(context, name, error)
            return b""

    return grpc.unary_unary_rpc_method_handler(handle)


def _stream(name: str, method: Streaming) -> Any:
    async def handle(data: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            async for frame in method(data, _left(context)):
                yield frame
        except Exception as error:  # noqa: BLE001 - every error is an answer
            refuse(context, name, error)

    return grpc.unary_stream_rpc_method_handler(handle)


def _both_ways(name: str, method: BothWays) -> Any:
    async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            async with aclosing(method(requests)) as frames:
                async for frame in frames:
                    yield frame
        except Exception as error:  # noqa: BLE001 - every error is an answer
            refuse(context, name, error)

    return grpc.stream_stream_rpc_method_handler(handle)


def unary_methods(front: Front) -> dict[str, Unary]:
    """Those that answer once, by name."""
    return {
        "BatchWrite": front.batch_write,
        "BeginTransaction": front.begin_transaction,
        "Commit": front.commit,
        "CreateDocument": front.create_document,
        "DeleteDocument": front.delete_document,
        "GetDocument": front.get_document,
        "ListCollectionIds": front.list_collection_ids,
        "ListDocuments": front.list_documents,
        "PartitionQuery": front.partition_query,
        "Rollback": front.rollback,
        "UpdateDocument": front.update_document,
    }


def streaming_methods(front: Front) -> dict[str, Streaming]:
    """Those that answer in frames."""
    return {
        "BatchGetDocuments": front.batch_get_documents,
        "ExecutePipeline": _execute_pipeline,
        "RunAggregationQuery": front.run_aggregation_query,
        "RunQuery": front.run_query,
    }


def methods(backends: Backends, faults: Faults | None = None) -> dict[str, Any]:
    """A handler for every method of the service, by name."""
    front = Front(backends)
    unary, streaming = unary_methods(front), streaming_methods(front)
    both_ways: dict[str, BothWays] = {
        "Listen": Listen(backends).serve,
        "Write": WriteStreams(backends).serve,
    }
    if faults is not None:
        unary = {name: faults.unary(method) for name, method in unary.items()}
        streaming = {name: faults.streaming(method) for name, method in streaming.items()}
        both_ways = {name: faults.streaming(method) for name, method in both_ways.items()}
    found = {name: _unary(name, method) for name, method in unary.items()}
    found |= {name: _stream(name, method) for name, method in streaming.items()}
    return found | {name: _both_ways(name, method) for name, method in both_ways.items()}


@dataclass(slots=True)
class Server:
    """`address` is host:port."""

    address: str
    _server: grpc.aio.Server

    async def stop(self, grace: float) -> None:
        """No new calls; those under way have `grace` seconds."""
        await self._server.stop(grace)


async def serve(backends: Backends, host: str, port: int, faults: Faults | None = None) -> Server:
    """A running server. Port 0 takes a free one. Raises OSError for one that is taken."""
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a surprise
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        )
    )
    handlers = grpc.method_handlers_generic_handler(SERVICE, methods(backends, faults))
    server.add_generic_rpc_handlers((handlers,))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(
            f"port {port} of {host} is taken or not allowed; choose another with --port"
        ) from error
    await server.start()
    return Server(f"{host}:{bound}", server)
