"""Requests of google.firestore.v1 as data, and what a server answers as plain values.

The same bytes go to two servers over real sockets. Of what may differ between them, times
become the names of the requests that made them, and page tokens only say whether there
is another page. All else must be equal, to the last bit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
from google.cloud.firestore_v1 import types
from google.rpc.code_pb2 import Code

from crossfade import wire
from crossfade.aggregate import Aggregation, AggregationKind
from crossfade.document import Database, FieldPath, Value, format_field_path, to_micros
from crossfade.errors import CrossfadeError
from crossfade.query import Query
from crossfade.write import TransformKind, Write

SECONDS = 30.0
MAX_PAGES = 50
_SERVICE = "/google.firestore.v1.Firestore/"
_MESSAGE_BYTES = 11 * 1_048_576
_METADATA = (("authorization", "Bearer owner"),)

REAL, STALE, FUTURE = 1, 2, 3
"""update_times of preconditions: the document's own, an older one, one that is to come."""
_HOUR = 3_600_000_000
_UNKNOWN = 1_700_000_000_000_000


# --- requests ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    writes: Sequence[Write]


@dataclass(frozen=True)
class BatchWrite:
    writes: Sequence[Write]


@dataclass(frozen=True)
class Create:
    """CreateDocument: `write` has no mask and no precondition. `mask`: of the answer."""

    write: Write
    mask: tuple[FieldPath, ...] | None = None


@dataclass(frozen=True)
class Update:
    """UpdateDocument, of a write without transforms."""

    write: Write
    mask: tuple[FieldPath, ...] | None = None


@dataclass(frozen=True)
class Delete:
    write: Write


@dataclass(frozen=True)
class Get:
    path: str
    mask: tuple[FieldPath, ...] | None = None


@dataclass(frozen=True)
class BatchGet:
    paths: Sequence[str]
    mask: tuple[FieldPath, ...] | None = None


@dataclass(frozen=True)
class RunQuery:
    query: Query


@dataclass(frozen=True)
class Aggregate:
    query: Query
    aggregations: Sequence[Aggregation]


@dataclass(frozen=True)
class ListDocuments:
    """All pages."""

    parent: str
    collection: str
    page_size: int = 0
    mask: tuple[FieldPath, ...] | None = None
    order_by: str = ""
    missing: bool = False


@dataclass(frozen=True)
class ListCollections:
    """All pages."""

    parent: str
    page_size: int = 0


Reads: TypeAlias = Get | BatchGet | RunQuery | Aggregate | ListDocuments | ListCollections
Changes: TypeAlias = Commit | BatchWrite | Create | Update | Delete
Request: TypeAlias = Reads | Changes


# --- a server ----------------------------------------------------------------------------------


@dataclass
class Answer:
    """`error` is a gRPC status's name; `values` are plain and can be compared."""

    error: str = ""
    values: list[Any] = field(default_factory=list)
    message: str = ""


class Transport(Protocol):
    """What requests go through. Raises AioRpcError, or an error of ours."""

    name: str

    async def unary(self, method: str, request: Any) -> bytes: ...

    async def stream(self, method: str, request: Any) -> list[bytes]: ...


class Server:
    """A channel to a server. Bytes in, bytes out."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        options = (
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
        )
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._methods: dict[str, Any] = {}

    async def unary(self, method: str, request: Any) -> bytes:
        call = self._methods.get(method)
        if call is None:
            call = self._methods[method] = self._channel.unary_unary(_SERVICE + method)
        data: bytes = await call(request.SerializeToString(), timeout=SECONDS, metadata=_METADATA)
        return data

    async def stream(self, method: str, request: Any) -> list[bytes]:
        call = self._methods.get(method)
        if call is None:
            call = self._methods[method] = self._channel.unary_stream(_SERVICE + method)
        frames = call(request.SerializeToString(), timeout=SECONDS, metadata=_METADATA)
        return [frame async for frame in frames]

    async def close(self) -> None:
        await self._channel.close()


class Session:
    """One database on one server, from its beginning: knows which of its times is which."""

    def __init__(self, server: Transport, database: Database) -> None:
        self.server = server
        self.database = database
        self._steps = 0
        self._times: dict[int, str] = {}
        self._moments: dict[int, str] = {}
        self._versions: dict[str, list[int]] = {}

    async def ask(self, request: Request) -> Answer:
        if isinstance(request, Changes):
            self._steps += 1
        try:
            return Answer(values=await _ASK[type(request)](self, request))
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, [], error.details() or "")
        except CrossfadeError as error:
            return Answer(error.code, [], str(error))

    # --- each request --------------------------------------------------------------------------

    async def _commit(self, asked: Commit) -> list[Any]:
        request = types.CommitRequest.pb()(database=self.database.name)
        request.writes.extend(self._messages(asked.writes))
        data = await self.server.unary("Commit", request)
        reply = types.CommitResponse.pb().FromString(data)
        self._learn(reply.commit_time, f"commit {self._steps}")
        return [
            self._result(write, result)
            for write, result in zip(asked.writes, reply.write_results, strict=True)
        ]

    async def _batch_write(self, asked: BatchWrite) -> list[Any]:
        request = types.BatchWriteRequest.pb()(database=self.database.name)
        request.writes.extend(self._messages(asked.writes))
        data = await self.server.unary("BatchWrite", request)
        reply = types.BatchWriteResponse.pb().FromString(data)
        values: list[Any] = []
        for index, (write, result, status) in enumerate(
            zip(asked.writes, reply.write_results, reply.status, strict=True)
        ):
            if result.HasField("update_time"):
                self._learn(result.update_time, f"write {self._steps}.{index}")
            values.append([Code.Name(status.code), *self._result(write, result)])
        return values

    async def _create(self, asked: Create) -> list[Any]:
        collection, _, name = asked.write.path.rpartition("/")
        parent, _, collection_id = collection.rpartition("/")
        request = types.CreateDocumentRequest.pb()(
            parent=self.database.full(parent), collection_id=collection_id, document_id=name
        )
        wire.encode_fields(asked.write.fields or {}, request.document.fields)
        _fill_mask(asked.mask, request)
        return self._written(asked.write, await self.server.unary("CreateDocument", request))

    async def _update(self, asked: Update) -> list[Any]:
        (message,) = self._messages([asked.write])
        request = types.UpdateDocumentRequest.pb()(document=message.update)
        if message.HasField("update_mask"):
            request.update_mask.CopyFrom(message.update_mask)
        if message.HasField("current_document"):
            request.current_document.CopyFrom(message.current_document)
        _fill_mask(asked.mask, request)
        return self._written(asked.write, await self.server.unary("UpdateDocument", request))

    def _written(self, write: Write, data: bytes) -> list[Any]:
        """A document that a write left."""
        message = types.Document.pb().FromString(data)
        self._learn(message.update_time, f"write {self._steps}")
        self._remember(write.path, message.update_time)
        return self._document(message)

    async def _delete(self, asked: Delete) -> list[Any]:
        (message,) = self._messages([asked.write])
        request = types.DeleteDocumentRequest.pb()(name=message.delete)
        if message.HasField("current_document"):
            request.current_document.CopyFrom(message.current_document)
        await self.server.unary("DeleteDocument", request)
        return []

    async def _get(self, asked: Get) -> list[Any]:
        request = types.GetDocumentRequest.pb()(name=self.database.full(asked.path))
        _fill_mask(asked.mask, request)
        data = await self.server.unary("GetDocument", request)
        return self._document(types.Document.pb().FromString(data))

    async def _batch_get(self, asked: BatchGet) -> list[Any]:
        """In the order of names: that of the answers is not defined."""
        request = types.BatchGetDocumentsRequest.pb()(database=self.database.name)
        request.documents.extend(map(self.database.full, asked.paths))
        _fill_mask(asked.mask, request)
        values: list[Any] = []
        for data in await self.server.stream("BatchGetDocuments", request):
            frame = types.BatchGetDocumentsResponse.pb().FromString(data)
            if frame.HasField("found"):
                values.append(self._document(frame.found))
            elif frame.missing:
                values.append([self.database.relative(frame.missing)])
        return sorted(values, key=lambda value: value[0])

    async def _run_query(self, asked: RunQuery) -> list[Any]:
        request = types.RunQueryRequest.pb()(parent=self.database.full(asked.query.parent))
        self._fill_query(asked.query, request.structured_query)
        documents: list[Any] = []
        for data in await self.server.stream("RunQuery", request):
            frame = types.RunQueryResponse.pb().FromString(data)
            if frame.HasField("document"):
                documents.append(self._document(frame.document))
        return documents

    async def _aggregate(self, asked: Aggregate) -> list[Any]:
        request = types.RunAggregationQueryRequest.pb()(
            parent=self.database.full(asked.query.parent)
        )
        message = request.structured_aggregation_query
        self._fill_query(asked.query, message.structured_query)
        for aggregation in asked.aggregations:
            fill_aggregation(aggregation, message.aggregations.add())
        values: dict[str, Value] = {}
        for data in await self.server.stream("RunAggregationQuery", request):
            frame = types.RunAggregationQueryResponse.pb().FromString(data)
            values |= wire.decode_fields(frame.result.aggregate_fields)
        return [values]

    async def _list_documents(self, asked: ListDocuments) -> list[Any]:
        request = types.ListDocumentsRequest.pb()(
            parent=self.database.full(asked.parent),
            collection_id=asked.collection,
            page_size=asked.page_size,
            order_by=asked.order_by,
            show_missing=asked.missing,
        )
        _fill_mask(asked.mask, request)
        pages: list[list[Any]] = []
        while len(pages) < MAX_PAGES:
            data = await self.server.unary("ListDocuments", request)
            reply = types.ListDocumentsResponse.pb().FromString(data)
            pages.append([self._document(document) for document in reply.documents])
            request.page_token = reply.next_page_token
            if not reply.next_page_token:
                break
        return _without_last_empty(pages)

    async def _list_collections(self, asked: ListCollections) -> list[Any]:
        request = types.ListCollectionIdsRequest.pb()(
            parent=self.database.full(asked.parent), page_size=asked.page_size
        )
        pages: list[list[str]] = []
        while len(pages) < MAX_PAGES:
            data = await self.server.unary("ListCollectionIds", request)
            reply = types.ListCollectionIdsResponse.pb().FromString(data)
            pages.append(list(reply.collection_ids))
            request.page_token = reply.next_page_token
            if not reply.next_page_token:
                break
        return _without_last_empty(pages)

    # --- messages ------------------------------------------------------------------------------

    def _messages(self, writes: Iterable[Write]) -> list[Any]:
        messages = []
        for write in writes:
            message, when = types.Write.pb()(), write.update_time
            if when is not None:
                write = replace(write, update_time=self._condition(write.path, when))  # noqa: PLW2901
            wire.encode_write(write, self.database, message)
            messages.append(message)
        return messages

    def _condition(self, path: str, when: int) -> int:
        """The update_time that this server knows by the name."""
        known = self._versions.get(path, [])
        real = known[-1] if known else _UNKNOWN
        if when == STALE:
            return known[-2] if len(known) > 1 else real - 1
        return real if when == REAL else real + _HOUR

    def _fill_query(self, query: Query, into: Any) -> None:
        into.ParseFromString(wire.encode_query(query, self.database))

    def _result(self, write: Write, result: Any) -> list[Any]:
        if result.HasField("update_time"):
            self._remember(write.path, result.update_time)
        for transform, value in zip(write.transforms, result.transform_results, strict=False):
            if transform.kind is TransformKind.REQUEST_TIME:
                moment = wire.decode_time(value.timestamp_value)
                self._moments.setdefault(moment, f"moment of {self._steps}")
        return [
            self._time(result, "update_time"),
            *(self._plain(wire.decode_value(value)) for value in result.transform_results),
        ]

    def _remember(self, path: str, message: Any) -> None:
        time = wire.decode_time(message)
        known = self._versions.setdefault(path, [])
        if time not in known:
            known.append(time)

    def _learn(self, message: Any, name: str) -> None:
        self._times.setdefault(wire.decode_time(message), name)

    def _time(self, message: Any, name: str) -> str:
        if not message.HasField(name):
            return "none"
        return self._times.get(wire.decode_time(getattr(message, name)), "unknown")

    def _document(self, message: Any) -> list[Any]:
        return [
            self.database.relative(message.name),
            self._plain(wire.decode_fields(message.fields)),
            self._time(message, "create_time"),
            self._time(message, "update_time"),
        ]

    def _plain(self, value: Any) -> Any:
        """The value, with the moments of transforms by name."""
        if not self._moments:
            return value
        if isinstance(value, dict):
            return {name: self._plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if isinstance(value, datetime):
            return self._moments.get(to_micros(value), value)
        return value


_ASK: dict[type, Any] = {
    Commit: Session._commit,
    BatchWrite: Session._batch_write,
    Create: Session._create,
    Update: Session._update,
    Delete: Session._delete,
    Get: Session._get,
    BatchGet: Session._batch_get,
    RunQuery: Session._run_query,
    Aggregate: Session._aggregate,
    ListDocuments: Session._list_documents,
    ListCollections: Session._list_collections,
}


def _fill_mask(mask: tuple[FieldPath, ...] | None, request: Any) -> None:
    if mask is not None:
        request.mask.field_paths.extend(map(format_field_path, mask))
        request.mask.SetInParent()


def fill_aggregation(aggregation: Aggregation, into: Any) -> None:
    into.alias = aggregation.alias
    if aggregation.path is not None:
        getattr(into, aggregation.kind).field.field_path = format_field_path(aggregation.path)
    elif aggregation.kind is AggregationKind.COUNT:
        into.count.SetInParent()
        if aggregation.up_to is not None:
            into.count.up_to.value = aggregation.up_to


def _without_last_empty(pages: list[list[Any]]) -> list[list[Any]]:
    """A page that is just full may or may not promise another, which is then empty."""
    return pages[:-1] if len(pages) > 1 and not pages[-1] else pages
