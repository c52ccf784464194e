"""google.firestore.v1, Firestore's own protocol, over any document store.

The front holds protocol only: which frames in which order. What a query matches and
what a write makes of a document is the store's. Documents are spliced into the
frames as bytes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.cloud.firestore_v1 import types
from google.protobuf.message import DecodeError

from crossfade import wire
from crossfade.document import Database, FieldPath, check_document_path, parse_field_path
from crossfade.errors import InvalidArgument, NotFound, Unimplemented
from crossfade.query import project
from crossfade.rpc.firestore_v1_faults import Faults
from crossfade.rpc.status import refuse
from crossfade.store import CommitOutcome, DocumentStore
from crossfade.write import MAX_COMMIT_BYTES

SERVICE = "google.firestore.v1.Firestore"
MAX_MESSAGE_BYTES = 11 * 1_048_576
MAX_METADATA_BYTES = 65_536
"""A caller's routing header holds the document's name: 6 KiB, three times that when encoded."""
DEFAULT_SECONDS = 60.0
"""For calls that come without a deadline."""

LATER = (
    "BatchWrite",
    "BeginTransaction",
    "CreateDocument",
    "DeleteDocument",
    "ListCollectionIds",
    "ListDocuments",
    "PartitionQuery",
    "Rollback",
    "UpdateDocument",
)
LATER_STREAMS = ("ExecutePipeline", "RunAggregationQuery")
LATER_BOTH_WAYS = ("Listen", "Write")

Stores: TypeAlias = Callable[[Database], DocumentStore]
Unary: TypeAlias = Callable[[bytes, float], Awaitable[bytes]]
Streaming: TypeAlias = Callable[[bytes, float], AsyncIterator[bytes]]

_DONE = b"\x30\x01"


class Front:
    """Request bytes to frames, against the store of the database that a request names.

    Every method takes the seconds that are left, too.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def get_document(self, data: bytes, left: float) -> bytes:
        request = _parse(types.GetDocumentRequest, data)
        _no_transaction(request)
        database, path = _document(request.name, "name")
        reading = await self._stores(database).get((path,), timeout=left)
        found = reading.documents[0].data
        if found is None:
            raise NotFound(f'Document "{request.name}" not found.')
        return _masked(found, _mask(request), database)

    async def batch_get_documents(self, data: bytes, left: float) -> AsyncIterator[bytes]:
        """Found documents before missing ones, each once, all of one moment."""
        request = _parse(types.BatchGetDocumentsRequest, data)
        _no_transaction(request)
        database = _database(request.database)
        mask = _mask(request)
        paths = tuple(
            _path(name, database, "documents") for name in dict.fromkeys(request.documents)
        )
        reading = await self._stores(database).get(paths, timeout=left)
        now = wire.field_bytes(4, wire.time_bytes(reading.read_time))
        for stored in reading.documents:
            if stored.data is not None:
                yield wire.field_bytes(1, _masked(stored.data, mask, database)) + now
        for stored in reading.documents:
            if stored.data is None:
                yield wire.field_bytes(2, database.full(stored.path).encode()) + now

    async def run_query(self, data: bytes, left: float) -> AsyncIterator[bytes]:
        """One frame per document; the last one says `done`, the first what was skipped."""
        request = _parse(types.RunQueryRequest, data)
        _no_transaction(request)
        message = request.structured_query
        if not request.HasField("structured_query"):
            raise InvalidArgument("structured_query: it must be set")
        if request.HasField("explain_options") or message.HasField("find_nearest"):
            raise Unimplemented("explain_options and find_nearest are not served here yet")
        database, parent = _parent(request.parent)
        query = wire.decode_query(message, parent, database)
        frame, now = b"", b""
        skipped = b"\x20" + wire.varint(query.offset) if query.offset > 0 else b""
        async for page in self._stores(database).query(query, timeout=left):
            fields = list(wire.scan(page.frames))
            for number, value in fields:
                if number == 3 and isinstance(value, bytes):
                    now = wire.field_bytes(3, value)
            for number, value in fields:
                if number != 1 or not isinstance(value, bytes):
                    continue
                if frame:
                    yield frame + now
                frame, skipped = wire.field_bytes(1, value) + skipped, b""
        yield frame + now + _DONE

    async def commit(self, data: bytes, left: float) -> bytes:
        if len(data) > MAX_COMMIT_BYTES:
            raise InvalidArgument(
                f"commit: its size of {len(data)} bytes is over the limit of {MAX_COMMIT_BYTES}"
            )
        request = _parse(types.CommitRequest, data)
        if request.transaction:
            raise Unimplemented("transaction: transactions are not served here yet")
        database = _database(request.database)
        writes = []
        for index, message in enumerate(request.writes):
            field = f"writes[{index}]"
            name = message.update.name or message.delete or message.transform.document
            _path(name, database, f"{field}.name")
            writes.append(wire.decode_write(message, database, field))
        outcome = await self._stores(database).commit(writes, timeout=left)
        return _commit_response(outcome)


async def _later(_: bytes, __: float) -> bytes:
    raise Unimplemented("this method is not served here yet")


async def _later_stream(_: bytes, __: float) -> AsyncIterator[bytes]:
    raise Unimplemented("this method is not served here yet")
    yield b""  # makes it a generator


# --- requests and responses --------------------------------------------------------------------


def _parse(kind: Any, data: bytes) -> Any:
    """The request as protobuf message. Raises InvalidArgument for bytes that are none."""
    try:
        return kind.pb().FromString(data)
    except DecodeError as error:
        raise InvalidArgument(
            f"the request is not a {kind.__name__} message, or nests deeper than protobuf reads"
        ) from error


def _no_transaction(request: Any) -> None:
    selector = request.WhichOneof("consistency_selector")
    if selector is not None:
        raise Unimplemented(f"{selector}: transactions and read times are not served here yet")


def _database(name: str, field: str = "database") -> Database:
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != "databases" or not all(parts):
        raise InvalidArgument(f'{field}: "{name[:120]}" is not projects/PROJECT/databases/DATABASE')
    return Database(parts[1], parts[3])


def _parent(name: str) -> tuple[Database, str]:
    """The database and the document, "" for the root, below which is queried."""
    start, separator, path = name.partition("/documents")
    if not separator or (path and not path.startswith("/")):
        raise InvalidArgument(f'parent: "{name[:120]}" is not .../documents or a document name')
    return _database(start, "parent"), path[1:]


def _document(name: str, field: str) -> tuple[Database, str]:
    database = _database("/".join(name.split("/", 4)[:4]), field)
    return database, _path(name, database, field)


def _path(name: str, database: Database, field: str) -> str:
    """The relative path of a full name. The protocol knows no relative ones."""
    if not name.startswith("projects/"):
        raise InvalidArgument(f'{field}: "{name[:120]}" is not a full document name')
    return check_document_path(database.relative(name, field), field)


def _mask(request: Any) -> tuple[FieldPath, ...] | None:
    if not request.HasField("mask"):
        return None
    return tuple(parse_field_path(text, "mask") for text in request.mask.field_paths)


def _masked(data: bytes, mask: tuple[FieldPath, ...] | None, database: Database) -> bytes:
    if mask is None:
        return data
    return wire.document_bytes(project(wire.parse_document(data, database), mask), database)


def _commit_response(outcome: CommitOutcome) -> bytes:
    reply = types.CommitResponse.pb()()
    for result in outcome.writes:
        item = reply.write_results.add()
        if result.update_time is not None:
            wire.encode_time(result.update_time, item.update_time)
        for value in result.results:
            wire.encode_value(value, item.transform_results.add())
    wire.encode_time(outcome.commit_time, reply.commit_time)
    data: bytes = reply.SerializeToString()
    return data


# --- the server --------------------------------------------------------------------------------


def _left(context: Any) -> float:
    left: float | None = context.time_remaining()
    return DEFAULT_SECONDS if left is None else left


def _unary(name: str, method: Unary, faults: Faults | None) -> Any:
    if faults is not None:
        method = faults.unary(method)

    async def handle(data: bytes, context: Any) -> bytes:
        try:
            return await method(data, _left(context))
        except Exception as error:  # noqa: BLE001 - every error is an answer
            refuse(context, name, error)
            return b""

    return grpc.unary_unary_rpc_method_handler(handle)


def _stream(name: str, method: Streaming, faults: Faults | None) -> Any:
    if faults is not None:
        method = faults.streaming(method)

    async def handle(data: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            async for frame in method(data, _left(context)):
                yield frame
        except Exception as error:  # noqa: BLE001 - every error is an answer
            refuse(context, name, error)

    return grpc.unary_stream_rpc_method_handler(handle)


def _both_ways(name: str) -> Any:
    async def handle(_: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        refuse(context, name, Unimplemented("this method is not served here yet"))
        return
        yield b""  # makes it a generator

    return grpc.stream_stream_rpc_method_handler(handle)


def handlers(front: Front, faults: Faults | None = None) -> grpc.GenericRpcHandler:
    """Every method of the service, to be added to a server."""
    methods = {
        "GetDocument": _unary("GetDocument", front.get_document, faults),
        "Commit": _unary("Commit", front.commit, faults),
        "BatchGetDocuments": _stream("BatchGetDocuments", front.batch_get_documents, faults),
        "RunQuery": _stream("RunQuery", front.run_query, faults),
    }
    methods |= {name: _unary(name, _later, faults) for name in LATER}
    methods |= {name: _stream(name, _later_stream, faults) for name in LATER_STREAMS}
    methods |= {name: _both_ways(name) for name in LATER_BOTH_WAYS}
    return grpc.method_handlers_generic_handler(SERVICE, methods)


@dataclass(slots=True)
class Server:
    """`address` is host:port."""

    address: str
    _server: grpc.aio.Server

    async def stop(self, grace: float) -> None:
        """No new calls; those under way have `grace` seconds."""
        await self._server.stop(grace)


async def serve(stores: Stores, host: str, port: int, faults: Faults | None = None) -> Server:
    """A running server. Port 0 takes a free one. Raises OSError for one that is taken."""
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a surprise
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        )
    )
    server.add_generic_rpc_handlers((handlers(Front(stores), faults),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(
            f"port {port} of {host} is taken or not allowed; choose another with --port"
        ) from error
    await server.start()
    return Server(f"{host}:{bound}", server)
