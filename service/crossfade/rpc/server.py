"""crossfade.v1 over the heart: bytes in, bytes out.

One wrapper around every method does what interceptors would (deadline, trace,
errors, metrics): an aio interceptor, even an empty one, costs a tenth of a call.
Requests are parsed in the handler, so that bytes that are no message are
INVALID_ARGUMENT and not INTERNAL.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from crossfade import wire
from crossfade.call import Call
from crossfade.document import MAX_DOCUMENT_BYTES, Database, check_document_path, is_own
from crossfade.errors import InvalidArgument, NotFound, PermissionDenied
from crossfade.migrator import Documents
from crossfade.plan import StoreName
from crossfade.rpc.gate import Gate
from crossfade.rpc.methods import Needs, needs_of
from crossfade.rpc.status import refuse
from crossfade.telemetry import Telemetry
from crossfade.tracing import current
from crossfade.write import MAX_COMMIT_BYTES, Write, check
from crossfade_api.v1 import crossfade_pb2, document_pb2

M = TypeVar("M", bound=Message)
SERVICE = "crossfade.v1.Crossfade"
MAX_BATCH = 1_000
OWN_METADATA = "x-crossfade-"
STORE_METADATA = "x-crossfade-store"
"""The store that is to answer a read, as it is."""
EXPLAIN_METADATA = "x-crossfade-explain"
"""With "1" the answer's trailing metadata say which store answered."""
SERVED_METADATA = "x-crossfade-served-by"
MAX_REQUEST_ID_BYTES = 128
NONE: Mapping[str, grpc.GenericRpcHandler] = {}

Unary = Callable[[bytes, Call], Awaitable[bytes]]
Streaming = Callable[[bytes, Call], AsyncIterator[bytes]]
BothWays = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]


class Front:
    """The methods of the service, from request bytes to reply bytes."""

    def __init__(self, migrator: Documents, database: Database) -> None:
        self._migrator = migrator
        self._database = database

    async def get_document(self, data: bytes, call: Call) -> bytes:
        request = parse(crossfade_pb2.GetDocumentRequest, data)
        path = self._path(request.name, "name")
        reading = await self._migrator.read((path,), call)
        found = reading.documents[0].data
        if found is None:
            raise NotFound(f"document {path} does not exist")
        return wire.field_bytes(1, found)

    async def batch_get_documents(self, data: bytes, call: Call) -> AsyncIterator[bytes]:
        request = parse(crossfade_pb2.BatchGetDocumentsRequest, data)
        if not request.names:
            raise InvalidArgument("names: at least one document must be asked for")
        if len(request.names) > MAX_BATCH:
            raise InvalidArgument(
                f"names: {len(request.names)} documents, the limit is {MAX_BATCH}"
            )
        paths = tuple(dict.fromkeys(self._path(name, "names") for name in request.names))
        reading = await self._migrator.read(paths, call)
        frame = bytearray()
        for stored in reading.documents:
            if stored.data is None:
                frame += wire.field_bytes(2, self._database.full(stored.path).encode())
            else:
                frame += wire.field_bytes(1, stored.data)
            if len(frame) > MAX_DOCUMENT_BYTES:
                yield bytes(frame)
                frame = bytearray()
        tail = crossfade_pb2.BatchGetDocumentsReply()
        wire.encode_time(reading.read_time, tail.read_time)
        yield bytes(frame) + tail.SerializeToString()

    async def query(self, data: bytes, call: Call) -> AsyncIterator[bytes]:
        request = parse(crossfade_pb2.QueryRequest, data)
        parent = self._database.relative(request.parent, "parent")
        query = wire.decode_query(request.query, parent, self._database)
        check_visible(parent, "parent")
        check_visible(query.collection_path or query.collection or "", "query.from.collection_id")
        async for page in self._migrator.query(query, call):
            yield page.frames

    async def aggregate(self, data: bytes, call: Call) -> bytes:
        request = parse(crossfade_pb2.AggregateRequest, data)
        parent = self._database.relative(request.parent, "parent")
        query = wire.decode_query(request.query.structured_query, parent, self._database)
        check_visible(parent, "parent")
        check_visible(query.collection_path or query.collection or "", "query.from.collection_id")
        aggregations = wire.decode_aggregations(request.query)
        found = await self._migrator.aggregate(query, aggregations, call)
        reply = crossfade_pb2.AggregateReply()
        reply.result.SetInParent()
        for alias, value in found.values.items():
            wire.encode_value(value, reply.result.aggregate_fields[alias])
        wire.encode_time(found.read_time, reply.read_time)
        return reply.SerializeToString()

    async def commit(self, data: bytes, call: Call) -> bytes:
        request = parse(crossfade_pb2.CommitRequest, data)
        if len(data) > MAX_COMMIT_BYTES:
            raise InvalidArgument(
                f"commit: its size of {len(data)} bytes is over the limit of {MAX_COMMIT_BYTES}"
            )
        request_id = _request_id(request)
        writes = self._writes(request.writes)
        outcome = await self._migrator.commit(writes, call, request_id)
        reply = crossfade_pb2.CommitReply(replayed=outcome.replayed)
        for result in outcome.writes:
            item = reply.write_results.add()
            if result.update_time is not None:
                wire.encode_time(result.update_time, item.update_time)
            for value in result.results:
                wire.encode_value(value, item.transform_results.add())
        wire.encode_time(outcome.commit_time, reply.commit_time)
        return reply.SerializeToString()

    def _writes(self, messages: Sequence[document_pb2.Write]) -> list[Write]:
        if not messages:
            raise InvalidArgument("writes: a commit needs at least one write")
        writes = []
        for index, message in enumerate(messages):
            write = wire.decode_write(message, self._database, f"writes[{index}]")
            check(write)
            check_visible(write.path, f"writes[{index}].name")
            writes.append(write)
        return writes

    def _path(self, name: str, field: str) -> str:
        path = check_document_path(self._database.relative(name, field), field)
        check_visible(path, field)
        return path


def check_visible(path: str, field: str) -> None:
    """Raises InvalidArgument for collections of Crossfade's own."""
    if is_own(path):
        raise InvalidArgument(f"{field}: {path.partition('/')[0][:60]} is Crossfade's own")


def _request_id(request: crossfade_pb2.CommitRequest) -> str | None:
    size = len(request.request_id.encode())
    if size > MAX_REQUEST_ID_BYTES:
        raise InvalidArgument(
            f"request_id: {size} bytes are over the limit of {MAX_REQUEST_ID_BYTES} bytes"
        )
    return request.request_id or None


def parse(kind: type[M], data: bytes) -> M:
    """The request. Raises InvalidArgument for bytes that are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(
            f"the request is not a {kind.DESCRIPTOR.full_name} message, "
            f"or nests deeper than protobuf reads"
        ) from error


# --- the wrapper -------------------------------------------------------------------------------


class Wrapper:
    """Deadline, trace, errors and metrics around a method. Names are those of the protocol:
    "crossfade.v1.Crossfade/GetDocument". `allow_pin`: callers may choose the store. `gate`:
    who may call, and how much; a method that is given no `needs` has those of the table."""

    def __init__(
        self,
        telemetry: Telemetry,
        default_timeout: float,
        *,
        allow_pin: bool = False,
        gate: Gate | None = None,
    ) -> None:
        self._telemetry = telemetry
        self._default_timeout = default_timeout
        self._allow_pin = allow_pin
        self._gate = gate

    def unary(
        self, name: str, method: Unary, needs: Needs | None = None
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        gate, needs = self._gate, needs or needs_of(name)

        async def handle(data: bytes, context: Any) -> bytes:
            call = self._call(name, context)
            started, status, passage = time.perf_counter_ns(), "OK", None
            try:
                if gate is not None:
                    passage = gate.enter(name, needs, context, call)
                    passage.asked(len(data))
                if call.asked:
                    self._ask(call, needs)
                answer = await method(data, call)
                if passage is not None:
                    passage.answers(answer)
            except asyncio.CancelledError:
                status = _gone(call)
                raise
            except Exception as error:  # noqa: BLE001 - the last line of defence
                status = refuse(context, name, passage.judged(error) if passage else error)
                return b""
            else:
                return answer
            finally:
                if passage is not None:
                    passage.leave()
                self._ended(name, call, status, started, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def streaming(
        self,
        name: str,
        method: Streaming,
        needs: Needs | None = None,
        *,
        lasting: bool = False,
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """`lasting`: it goes on for as long as the caller likes."""
        gate, needs = self._gate, needs or needs_of(name)

        async def handle(data: bytes, context: Any) -> AsyncIterator[bytes]:
            call = self._call(name, context)
            started, status, passage = time.perf_counter_ns(), "OK", None
            try:
                if gate is not None:
                    passage = gate.enter(name, needs, context, call)
                    passage.asked(len(data))
                if call.asked:
                    self._ask(call, needs)
                async for frame in method(data, call):
                    if passage is not None:
                        passage.answers(frame)
                    yield frame
            except (asyncio.CancelledError, GeneratorExit):
                status = _gone(call)
                raise
            except Exception as error:  # noqa: BLE001 - the last line of defence
                status = refuse(context, name, passage.judged(error) if passage else error)
            finally:
                if passage is not None:
                    passage.leave()
                self._ended(name, call, status, started, context, lasting=lasting)

        return grpc.unary_stream_rpc_method_handler(handle)

    def both_ways(
        self, name: str, method: BothWays, needs: Needs | None = None
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """For streams that last as long as the caller likes."""
        gate, needs = self._gate, needs or needs_of(name)

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            call = self._call(name, context)
            started, status, passage = time.perf_counter_ns(), "OK", None
            try:
                if gate is not None:
                    passage = gate.enter(name, needs, context, call)
                    requests = passage.requests(requests)
                if call.asked:
                    self._ask(call, needs)
                async with aclosing(method(requests)) as frames:
                    async for frame in frames:
                        if passage is not None:
                            passage.check()
                        yield frame
                if passage is not None:
                    passage.check()
            except (asyncio.CancelledError, GeneratorExit):
                status = "CANCELLED"
                raise
            except Exception as error:  # noqa: BLE001 - the last line of defence
                status = refuse(context, name, error)
            finally:
                if passage is not None:
                    passage.leave()
                self._ended(name, call, status, started, context, lasting=True)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _call(self, name: str, context: Any) -> Call:
        left = context.time_remaining()
        timeout = self._default_timeout if left is None else left
        traceparent, asked = None, None
        for key, value in context.invocation_metadata() or ():
            if key == "traceparent":
                traceparent = value
            elif key.startswith(OWN_METADATA):
                asked = {**(asked or {}), key: value}
        trace = self._telemetry.start(name, traceparent)
        if trace is not None:
            current.set(trace)  # each call is handled in a context of its own
        return Call(self._telemetry, time.monotonic() + timeout, trace, asked)

    def _ask(self, call: Call, needs: Needs) -> None:
        """What the caller's metadata ask for. Raises InvalidArgument, PermissionDenied."""
        for key, value in (call.asked or {}).items():
            if key == STORE_METADATA:
                try:
                    call.pin = StoreName(value)
                except ValueError:
                    raise InvalidArgument(f"{key}: it is one of {', '.join(StoreName)}") from None
                if not self._allow_pin:
                    raise PermissionDenied(
                        f"{key}: callers may not choose the store; [migration] allow_pin lets them"
                    )
                if not needs.choice:
                    call.check_unpinned()
            elif key != EXPLAIN_METADATA:
                raise InvalidArgument(
                    f"{key}: unknown; there are {STORE_METADATA} and {EXPLAIN_METADATA}"
                )

    def _ended(
        self,
        name: str,
        call: Call,
        status: str,
        started: int,
        context: Any,
        *,
        lasting: bool = False,
    ) -> None:
        if call.asked and call.asked.get(EXPLAIN_METADATA) == "1" and call.served_by:
            context.set_trailing_metadata(((SERVED_METADATA, call.served_by),))
        self._telemetry.record_rpc(name, status, (time.perf_counter_ns() - started) / 1e9)
        if call.trace is not None:
            call.trace.end(status, lasting=lasting)


def _gone(call: Call) -> str:
    """The status of a call whose caller does not wait any more."""
    return "CANCELLED" if time.monotonic() < call.deadline else "DEADLINE_EXCEEDED"


# --- health ------------------------------------------------------------------------------------


class Health(health.HealthServicer):
    """Everything serves from the start of the server to `enter_graceful_shutdown`.

    Watches then say NOT_SERVING and end: the library's never end, so that one of them
    holds up every stop to the end of its grace.
    """

    def __init__(self, services: Sequence[str]) -> None:
        super().__init__()
        serving = health_pb2.HealthCheckResponse.SERVING
        self._server_status.update(dict.fromkeys(services, serving))
        self._stopping = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        for _ in range(2):
            status = self._server_status.get(request.service, unknown)
            await context.write(health_pb2.HealthCheckResponse(status=status))
            await self._stopping.wait()

    async def enter_graceful_shutdown(self) -> None:
        await super().enter_graceful_shutdown()
        self._stopping.set()


# --- the server --------------------------------------------------------------------------------


def build(
    front: Front,
    admin: grpc.GenericRpcHandler,
    wrap: Wrapper,
    *,
    max_message_bytes: int,
    watch: Streaming | None = None,
    services: Mapping[str, grpc.GenericRpcHandler] = NONE,
) -> tuple[grpc.aio.Server, Health]:
    """A server with the API, the admin service, health and reflection; not yet bound.

    `services`: what an application's own package adds, by the services' full names.
    """
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a surprise
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # A genuine client's routing header holds the document's name: 6 KiB, encoded.
            ("grpc.max_metadata_size", 65_536),
            # Callers may ask whether it is there while a stream of theirs is quiet; at what gRPC
            # allows of itself, one in five minutes, they would be cut off for it.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        )
    )
    handlers = {
        "GetDocument": wrap.unary(f"{SERVICE}/GetDocument", front.get_document),
        "BatchGetDocuments": wrap.streaming(
            f"{SERVICE}/BatchGetDocuments", front.batch_get_documents
        ),
        "Query": wrap.streaming(f"{SERVICE}/Query", front.query),
        "Aggregate": wrap.unary(f"{SERVICE}/Aggregate", front.aggregate),
        "Commit": wrap.unary(f"{SERVICE}/Commit", front.commit),
    }
    if watch is not None:
        handlers["Watch"] = wrap.streaming(f"{SERVICE}/Watch", watch, lasting=True)
    checker = Health((SERVICE, "crossfade.v1.Admin", *services))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, handlers), admin, *services.values())
    )
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)  # type: ignore[no-untyped-call]
    names = (
        SERVICE,
        "crossfade.v1.Admin",
        *services,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    reflection.enable_server_reflection(names, server)  # type: ignore[no-untyped-call]
    return server, checker
