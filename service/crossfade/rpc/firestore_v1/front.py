"""Request bytes to reply bytes, method by method."""

import secrets
import string
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.document import (
    NAME,
    Database,
    FieldPath,
    Reference,
    check_document_path,
    check_id,
    parse_field_path,
)
from crossfade.errors import (
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TooLarge,
    Unimplemented,
)
from crossfade.query import Cursor, Order, Query, project
from crossfade.rpc.firestore_v1 import requests
from crossfade.rpc.firestore_v1.backend import Backend, Backends
from crossfade.rpc.firestore_v1.requests import parse
from crossfade.rpc.status import code_of, details
from crossfade.store import At, WriteOutcome
from crossfade.write import check

MOST_IN_PAGE = 300
"""Documents or names in one answer of the methods that list."""

_GetDocument = types.GetDocumentRequest.pb()
_BatchGetDocuments = types.BatchGetDocumentsRequest.pb()
_ListDocuments = types.ListDocumentsRequest.pb()
_CreateDocument = types.CreateDocumentRequest.pb()
_UpdateDocument = types.UpdateDocumentRequest.pb()
_DeleteDocument = types.DeleteDocumentRequest.pb()
_RunQuery = types.RunQueryRequest.pb()
_RunAggregationQuery = types.RunAggregationQueryRequest.pb()
_PartitionQuery = types.PartitionQueryRequest.pb()
_Commit = types.CommitRequest.pb()
_BatchWrite = types.BatchWriteRequest.pb()
_BeginTransaction = types.BeginTransactionRequest.pb()
_Rollback = types.RollbackRequest.pb()
_ListCollectionIds = types.ListCollectionIdsRequest.pb()

_DONE = b"\x30\x01"
_ID_LETTERS = string.ascii_letters + string.digits


class Front:
    """The methods of the service, against the backend of the database that a request names.

    Every method takes the seconds that are left, too.
    """

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    # --- documents -----------------------------------------------------------------------------

    async def get_document(self, data: bytes, left: float) -> bytes:
        request = parse(_GetDocument, data)
        database, path = requests.document_of(request.name, "name")
        backend = self._backends(database)
        at, _ = await requests.moment_of(request, backend)
        reading = await backend.get((path,), timeout=left, at=at)
        found = reading.documents[0].data
        if found is None:
            raise NotFound(f'Document "{request.name}" not found.')
        return _masked(found, requests.mask_of(request), database)

    async def batch_get_documents(self, data: bytes, left: float) -> AsyncIterator[bytes]:
        """Found documents before missing ones, each once, all of one moment. A transaction
        that begins here is told of in a frame of its own, before them."""
        request = parse(_BatchGetDocuments, data)
        database = requests.database_of(request.database)
        backend = self._backends(database)
        mask = requests.mask_of(request)
        paths = tuple(
            requests.path_of(name, database, "documents")
            for name in dict.fromkeys(request.documents)
        )
        at, began = await requests.moment_of(request, backend)
        if began:
            yield wire.field_bytes(3, began)
        reading = await backend.get(paths, timeout=left, at=at)
        now = wire.field_bytes(4, wire.time_bytes(reading.read_time))
        for stored in reading.documents:
            if stored.data is not None:
                yield wire.field_bytes(1, _masked(stored.data, mask, database)) + now
        for stored in reading.documents:
            if stored.data is None:
                yield wire.field_bytes(2, database.full(stored.path).encode()) + now

    async def list_documents(self, data: bytes, left: float) -> bytes:
        request = parse(_ListDocuments, data)
        if request.show_missing and request.order_by:
            raise InvalidArgument("order_by: cannot specify an order when show_missing is true")
        database, parent = requests.parent_of(request.parent)
        backend = self._backends(database)
        mask = requests.mask_of(request)
        size = requests.page_size(request, MOST_IN_PAGE)
        at, _ = await requests.moment_of(request, backend)
        if request.order_by or not request.collection_id:
            found, token = await self._ordered(request, database, parent, size, at, left)
        else:
            collection = requests.collection_of(parent, request.collection_id)
            found, token = await self._listed(
                backend, collection, request.page_token, size, at, left,
                missing=request.show_missing,
            )  # fmt: skip
        reply = b"".join(
            wire.field_bytes(
                1,
                wire.field_bytes(1, database.full(path).encode())
                if document is None
                else _masked(document, mask, database),
            )
            for path, document in found
        )
        return reply + (wire.field_bytes(2, token.encode()) if token else b"")

    async def _listed(
        self,
        backend: Backend,
        collection: str,
        page_token: str,
        size: int,
        at: At,
        left: float,
        *,
        missing: bool,
    ) -> tuple[list[tuple[str, bytes | None]], str]:
        """A page of a collection by names, with what is stored there, and the next token."""
        after = requests.token_text(page_token)
        if after is not None:
            check_document_path(after, "page_token")
        paths = await backend.list_documents(
            collection, after=after, limit=size + 1, missing=missing, at=at
        )
        page, more = paths[:size], len(paths) > size
        reading = await backend.get(page, timeout=left, at=at)
        found = [(stored.path, stored.data) for stored in reading.documents]
        if not missing:  # deleted between the two reads
            found = [(path, document) for path, document in found if document is not None]
        return found, requests.token(page[-1].encode()) if more else ""

    async def _ordered(
        self, request: Any, database: Database, parent: str, size: int, at: At, left: float
    ) -> tuple[list[tuple[str, bytes | None]], str]:
        """A page in an order of fields, or of all collections below a parent: a query, which
        goes on after the last document of the page before."""
        orders = _order_by(request.order_by)
        if Order(NAME) not in orders and Order(NAME, descending=True) not in orders:
            orders = (*orders, Order(NAME, bool(orders) and orders[-1].descending))
        if request.collection_id:
            check_id(request.collection_id, "collection_id", numeric=False)
        query = Query(
            parent=parent,
            collection=request.collection_id or None,
            order_by=orders,
            limit=size + 1,
            start=_after(request.page_token, database),
        )
        documents = await self._documents(database, query, at, left)
        page, more = documents[:size], len(documents) > size
        found: list[tuple[str, bytes | None]] = [(d.path, data) for d, data in page]
        return found, _token_after(page[-1][0], orders, database) if more else ""

    async def _documents(
        self, database: Database, query: Query, at: At, left: float
    ) -> list[tuple[Any, bytes]]:
        """A query's documents, decoded and as bytes."""
        pages = self._backends(database).query(query, timeout=left, at=at)
        return [
            (wire.parse_document(data, database), data)
            async for page in pages
            for number, data in wire.scan(page.frames)
            if number == 1 and isinstance(data, bytes)
        ]

    async def create_document(self, data: bytes, left: float) -> bytes:
        request = parse(_CreateDocument, data)
        if request.document.name:
            raise InvalidArgument("document.name: it must not be set; document_id names it")
        database, parent = requests.parent_of(request.parent)
        identity = request.document_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(20))
        check_id(identity, "document_id")
        path = f"{requests.collection_of(parent, request.collection_id)}/{identity}"
        message = types.Write.pb()()
        message.update.name = database.full(path)
        message.update.fields.MergeFrom(request.document.fields)
        message.current_document.exists = False
        return await self._written(message, requests.mask_of(request), database, left)

    async def update_document(self, data: bytes, left: float) -> bytes:
        """Creates it, too, unless `current_document` says that it must exist."""
        request = parse(_UpdateDocument, data)
        database, _ = requests.document_of(request.document.name, "document.name")
        message = types.Write.pb()()
        message.update.name = request.document.name
        message.update.fields.MergeFrom(request.document.fields)
        if request.HasField("update_mask"):
            message.update_mask.CopyFrom(request.update_mask)
        if request.HasField("current_document"):
            message.current_document.CopyFrom(request.current_document)
        return await self._written(message, requests.mask_of(request), database, left)

    async def _written(
        self, message: Any, mask: tuple[FieldPath, ...] | None, database: Database, left: float
    ) -> bytes:
        """The document that a write leaves, as it is at the commit."""
        backend = self._backends(database)
        write = wire.decode_write(message, database, "document")
        outcome = await backend.commit([write], timeout=left)
        at = At(read_time=outcome.commit_time)
        try:
            reading = await backend.get((write.path,), timeout=left, at=at)
        except FailedPrecondition:  # changed again, and nothing keeps what it was
            reading = await backend.get((write.path,), timeout=left)
        return _masked(reading.documents[0].data or b"", mask, database)

    async def delete_document(self, data: bytes, left: float) -> bytes:
        request = parse(_DeleteDocument, data)
        database, _ = requests.document_of(request.name, "name")
        message = types.Write.pb()(delete=request.name)
        if request.HasField("current_document"):
            message.current_document.CopyFrom(request.current_document)
        write = wire.decode_write(message, database, "document")
        await self._backends(database).commit([write], timeout=left)
        return b""

    # --- queries -------------------------------------------------------------------------------

    async def run_query(self, data: bytes, left: float) -> AsyncIterator[bytes]:
        """One frame per document; the last one says `done`, the first what was skipped. A
        transaction that begins here is told of in a frame of its own, before them."""
        request = parse(_RunQuery, data)
        database, query = _query(request, request.HasField("structured_query"))
        backend = self._backends(database)
        at, began = await requests.moment_of(request, backend)
        if began:
            yield wire.field_bytes(2, began)
        frame, now = b"", b""
        skipped = b"\x20" + wire.varint(query.offset) if query.offset > 0 else b""
        async for page in backend.query(query, timeout=left, at=at):
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

    async def run_aggregation_query(self, data: bytes, left: float) -> AsyncIterator[bytes]:
        request = parse(_RunAggregationQuery, data)
        aggregation = request.structured_aggregation_query
        named = request.HasField("structured_aggregation_query")
        database, query = _query(
            request,
            named and aggregation.HasField("structured_query"),
            aggregation.structured_query,
        )
        aggregations = wire.decode_aggregations(aggregation)
        backend = self._backends(database)
        at, began = await requests.moment_of(request, backend)
        if began:
            yield wire.field_bytes(2, began)
        results, read_time = await backend.aggregate(query, aggregations, timeout=left, at=at)
        reply = types.RunAggregationQueryResponse.pb()()
        reply.result.SetInParent()
        for alias, value in results.items():
            wire.encode_value(value, reply.result.aggregate_fields[alias])
        wire.encode_time(read_time, reply.read_time)
        yield reply.SerializeToString()

    async def partition_query(self, data: bytes, left: float) -> bytes:  # noqa: ARG002
        """Where a collection group may be cut. Pages are cut from the same points, as long as
        the group does not change or the request names a read_time."""
        request = parse(_PartitionQuery, data)
        database, query = _query(request, request.HasField("structured_query"))
        if request.partition_count < 1:
            raise InvalidArgument("partition_count: it must be positive")
        ordered = all(order == Order(NAME) for order in query.order_by)
        if not query.all_descendants or query.where or query.limit is not None or not ordered:
            raise InvalidArgument(
                "structured_query: only collection groups (all_descendants), ordered by __name__ "
                "and neither filtered nor limited, can be partitioned"
            )
        backend = self._backends(database)
        at, _ = await requests.moment_of(request, backend)
        paths = await backend.partition(query, request.partition_count, at=at)
        size = requests.page_size(request, max(len(paths), 1))
        page, token = _page(paths, request.page_token, size)
        reply = types.PartitionQueryResponse.pb()(next_page_token=token)
        for path in page:
            reply.partitions.add(before=True).values.add(reference_value=database.full(path))
        return _bytes(reply)

    async def list_collection_ids(self, data: bytes, left: float) -> bytes:  # noqa: ARG002
        request = parse(_ListCollectionIds, data)
        database, parent = requests.parent_of(request.parent)
        backend = self._backends(database)
        at, _ = await requests.moment_of(request, backend)
        ids = await backend.list_collection_ids(parent, at=at)
        page, token = _page(ids, request.page_token, requests.page_size(request, MOST_IN_PAGE))
        return _bytes(
            types.ListCollectionIdsResponse.pb()(collection_ids=page, next_page_token=token)
        )

    # --- commits and transactions --------------------------------------------------------------

    async def commit(self, data: bytes, left: float) -> bytes:
        request = parse(_Commit, data)
        requests.check_size(data)
        database = requests.database_of(request.database)
        writes = requests.writes_of(request.writes, database)
        outcome = await self._backends(database).commit(
            writes, timeout=left, transaction=request.transaction or None
        )
        reply = types.CommitResponse.pb()()
        encode_results(outcome.writes, reply.write_results)
        wire.encode_time(outcome.commit_time, reply.commit_time)
        return _bytes(reply)

    async def batch_write(self, data: bytes, left: float) -> bytes:
        """Every write for itself, with a status of its own."""
        request = parse(_BatchWrite, data)
        requests.check_size(data)
        database = requests.database_of(request.database)
        writes = requests.writes_of(request.writes, database)
        if len({write.path for write in writes}) < len(writes):
            raise InvalidArgument(
                "writes: the same document cannot be written more than once in a single request"
            )
        for write in writes:  # what is illegal by itself fails the whole call
            with suppress(TooLarge):
                check(write)
        backend = self._backends(database)
        reply = types.BatchWriteResponse.pb()()
        for write in writes:
            result, status = reply.write_results.add(), reply.status.add()
            try:
                outcome = await backend.commit([write], timeout=left)
            except CrossfadeError as error:
                status.code, status.message = code_of(error).value[0], details(error)
            else:
                encode_result(outcome.writes[0], result)
        return _bytes(reply)

    async def begin_transaction(self, data: bytes, left: float) -> bytes:  # noqa: ARG002
        request = parse(_BeginTransaction, data)
        backend = self._backends(requests.database_of(request.database))
        return wire.field_bytes(1, await requests.begin(request.options, backend))

    async def rollback(self, data: bytes, left: float) -> bytes:  # noqa: ARG002
        request = parse(_Rollback, data)
        backend = self._backends(requests.database_of(request.database))
        if not request.transaction:
            raise InvalidArgument("transaction: it must be set")
        await backend.rollback(request.transaction)
        return b""


# --- requests ----------------------------------------------------------------------------------


def _query(request: Any, given: bool, message: Any = None) -> tuple[Database, Query]:
    """The query of a request and whose it is."""
    if not given:
        raise InvalidArgument(
            "structured_query: only structured queries are supported, and it is not set"
        )
    if "explain_options" in request.DESCRIPTOR.fields_by_name and request.HasField(
        "explain_options"
    ):
        raise Unimplemented("explain_options: queries are not explained here")
    database, parent = requests.parent_of(request.parent)
    message = request.structured_query if message is None else message
    return database, wire.decode_query(message, parent, database)


def _order_by(text: str) -> tuple[Order, ...]:
    """ListDocuments has its orders in words: "priority desc, __name__ desc"."""
    orders = []
    for part in text.split(",") if text.strip() else ():
        path, _, direction = part.strip().partition(" ")
        if direction.strip().lower() not in {"", "asc", "desc"}:
            raise InvalidArgument('order_by: a direction is "asc" or "desc"')
        field = parse_field_path(path, "order_by")
        orders.append(Order(field, direction.strip().lower() == "desc"))
    return tuple(orders)


def _token_after(document: Any, orders: Sequence[Order], database: Database) -> str:
    """Where the next page begins: a cursor's bytes."""
    from crossfade.query import field_value

    message = types.Cursor.pb()()
    for order in orders:
        value = field_value(document, order.path)
        if order.path == NAME and isinstance(value, Reference):
            value = Reference(database.full(value.name))
        wire.encode_value(value, message.values.add())
    return requests.token(message.SerializeToString())


def _after(page_token: str, database: Database) -> Cursor | None:
    if not page_token:
        return None
    message = parse(types.Cursor.pb(), requests.token_bytes(page_token))
    values = [wire.decode_value_at(value, "page_token") for value in message.values]
    last = values[-1] if values else None
    if not isinstance(last, Reference):
        raise InvalidArgument("page_token: it is not one that an earlier answer held")
    values[-1] = Reference(requests.path_of(last.name, database, "page_token"))
    return Cursor(tuple(values), before=False)


def _page(names: Sequence[str], page_token: str, size: int) -> tuple[Sequence[str], str]:
    """The names after the token's, at most `size`, and the next token."""
    after = requests.token_text(page_token)
    if after is not None:
        names = [name for name in names if name > after]
    page = names[:size]
    return page, requests.token(page[-1].encode()) if len(names) > size else ""


# --- replies -----------------------------------------------------------------------------------


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _masked(data: bytes, mask: tuple[FieldPath, ...] | None, database: Database) -> bytes:
    if mask is None:
        return data
    return wire.document_bytes(project(wire.parse_document(data, database), mask), database)


def encode_results(outcomes: Sequence[WriteOutcome], into: Any) -> None:
    """Fills a repeated WriteResult field."""
    for outcome in outcomes:
        encode_result(outcome, into.add())


def encode_result(outcome: WriteOutcome, into: Any) -> None:
    if outcome.update_time is not None:
        wire.encode_time(outcome.update_time, into.update_time)
    for value in outcome.results:
        wire.encode_value(value, into.transform_results.add())
