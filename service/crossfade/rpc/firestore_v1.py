"""google.firestore.v1: Firestore's own protocol, served over the in-memory store.

The front holds protocol only: which frames in which order. What a query matches and
what a write makes of a document is the pure core's. Documents are spliced into the
frames as bytes.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog
from google.cloud.firestore_v1 import types
from google.protobuf.message import DecodeError

from crossfade import wire
from crossfade.document import Database, check_document_path
from crossfade.errors import CrossfadeError, InvalidArgument, NotFound, Unimplemented
from crossfade.rpc.status import code_of
from crossfade.stores.memory import MemoryStore, MemoryStores
from crossfade.write import MAX_COMMIT_BYTES

log = structlog.get_logger(__name__)

SERVICE = "google.firestore.v1.Firestore"
MAX_MESSAGE_BYTES = 11 * 1_048_576
LATER = (
    "CreateDocument",
    "UpdateDocument",
    "DeleteDocument",
    "ListDocuments",
    "ListCollectionIds",
    "BatchWrite",
    "BeginTransaction",
    "Rollback",
)
LATER_STREAMS = ("RunAggregationQuery", "PartitionQuery")


class Front:
    """Request bytes to frames, against the store of the database that a request names."""

    def __init__(self, stores: MemoryStores) -> None:
        self._stores = stores

    def get_document(self, data: bytes) -> Iterator[bytes]:
        request = _parse(types.GetDocumentRequest, data)
        store, path = self._at(request.name, "name")
        check_document_path(path)
        found = store.read_bytes(path)
        if found is None:
            raise NotFound(f'Document "{request.name}" not found.')
        yield found

    def batch_get_documents(self, data: bytes) -> Iterator[bytes]:
        request = _parse(types.BatchGetDocumentsRequest, data)
        _no_transaction(request)
        store = self._stores(_database(request.database))
        now = wire.field_bytes(4, wire.time_bytes(store.now()))
        missing = []
        for name in dict.fromkeys(request.documents):
            path = check_document_path(store.database.relative(name, "documents"), "documents")
            found = store.read_bytes(path)
            if found is None:
                missing.append(name)
            else:
                yield wire.field_bytes(1, found) + now
        for name in missing:
            yield wire.field_bytes(2, name.encode()) + now

    def run_query(self, data: bytes) -> Iterator[bytes]:
        request = _parse(types.RunQueryRequest, data)
        _no_transaction(request)
        store, parent = self._at(request.parent, "parent")
        query = wire.decode_query(request.structured_query, parent, store.database)
        found = store.run(query)
        now = wire.field_bytes(3, wire.time_bytes(store.now()))
        done = b"\x30\x01" if query.limit is not None else b""
        # All bytes are taken before the first frame goes: a commit in between is not in this result.
        whole = query.select is None
        frames = [
            (store.read_bytes(document.path) if whole else None)
            or wire.document_bytes(document, store.database)
            for document in found
        ]
        for index, data in enumerate(frames):
            last = done if index == len(frames) - 1 else b""
            yield wire.field_bytes(1, data) + now + last
        if not found:
            yield now + done

    def commit(self, data: bytes) -> Iterator[bytes]:
        if len(data) > MAX_COMMIT_BYTES:
            raise InvalidArgument(f"commit: over the limit of {MAX_COMMIT_BYTES} bytes")
        request = _parse(types.CommitRequest, data)
        if request.transaction:
            raise Unimplemented("transactions are not served by the embedded Firestore yet")
        store = self._stores(_database(request.database))
        writes = [
            wire.decode_write(message, store.database, f"writes[{index}]")
            for index, message in enumerate(request.writes)
        ]
        outcome = store.apply_commit(writes)
        reply = types.CommitResponse.pb()()
        for result in outcome.writes:
            item = reply.write_results.add()
            if result.update_time is not None:
                wire.encode_time(result.update_time, item.update_time)
            for value in result.results:
                wire.encode_value(value, item.transform_results.add())
        wire.encode_time(outcome.commit_time, reply.commit_time)
        yield reply.SerializeToString()

    def later(self, _: bytes) -> Iterator[bytes]:
        raise Unimplemented("this method is not served by the embedded Firestore yet")

    def _at(self, name: str, field: str) -> tuple[MemoryStore, str]:
        database = _database(name.partition("/documents")[0], field)
        return self._stores(database), database.relative(name, field)


def _database(name: str, field: str = "database") -> Database:
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != "databases" or not all(parts):
        raise InvalidArgument(f'{field}: "{name[:120]}" is not projects/P/databases/D')
    return Database(parts[1], parts[3])


def _no_transaction(request: Any) -> None:
    if request.WhichOneof("consistency_selector") is not None:
        raise Unimplemented(
            "transactions and read_time are not served by the embedded Firestore yet"
        )


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.pb().FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"the request is not a {kind.__name__} message") from error


Method = Callable[[bytes], Iterator[bytes]]


def _unary(name: str, method: Method) -> Any:
    async def handle(data: bytes, context: Any) -> bytes:
        try:
            return next(method(data))
        except Exception as error:  # noqa: BLE001 - every error is an answer
            _fail(name, error, context)
            return b""

    return grpc.unary_unary_rpc_method_handler(handle)


def _stream(name: str, method: Method) -> Any:
    async def handle(data: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            for frame in method(data):
                yield frame
        except Exception as error:  # noqa: BLE001
            _fail(name, error, context)

    return grpc.unary_stream_rpc_method_handler(handle)


def _fail(name: str, error: Exception, context: Any) -> None:
    if isinstance(error, CrossfadeError):
        context.set_code(code_of(error))
        context.set_details(str(error))
    else:
        log.error("a request failed by a defect", rpc=name, exc_info=error)
        context.set_code(grpc.StatusCode.INTERNAL)
        context.set_details(f"{type(error).__name__} in the embedded Firestore")


@dataclass(slots=True)
class Server:
    """`address` is host:port."""

    address: str
    _server: grpc.aio.Server

    async def stop(self, grace: float) -> None:
        await self._server.stop(grace)


async def serve(stores: MemoryStores, host: str, port: int) -> Server:
    """A running server. Port 0 takes a free one. Raises OSError for one that is taken."""
    front = Front(stores)
    handlers = {
        "GetDocument": _unary("GetDocument", front.get_document),
        "Commit": _unary("Commit", front.commit),
        "BatchGetDocuments": _stream("BatchGetDocuments", front.batch_get_documents),
        "RunQuery": _stream("RunQuery", front.run_query),
    }
    handlers |= {name: _unary(name, front.later) for name in LATER}
    handlers |= {name: _stream(name, front.later) for name in LATER_STREAMS}
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        )
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(
            f"port {port} of {host} is taken or not allowed; choose another with --port"
        ) from error
    await server.start()
    return Server(f"{host}:{bound}", server)
