"""A sidecar of a few lines for tests of what calls one: crossfade.v1 over a dict.

It counts calls, can be told to fail the next ones, and repeats a commit's answer for
a request_id it has seen, which is all that the client's retries rely on.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from crossfade import aggregate as core_aggregate
from crossfade import query as core_query
from crossfade import wire
from crossfade import write as core_write
from crossfade.document import Database, Document
from crossfade.errors import CrossfadeError
from crossfade_api.v1 import crossfade_pb2 as pb
from crossfade_api.v1 import crossfade_pb2_grpc as rpc


@dataclass
class Failure:
    """Fails calls of `method`; `after` says whether the work is done first, `pages` how
    many messages of a stream are sent first."""

    method: str
    code: grpc.StatusCode
    times: int = 1
    after: bool = False
    pages: int = 0


@dataclass
class FakeSidecar(rpc.CrossfadeServicer):
    database: Database = field(default_factory=lambda: Database("fake"))
    documents: dict[str, Document] = field(default_factory=dict)
    replies: dict[str, pb.CommitReply] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    watches: list[list[pb.WatchReply | grpc.StatusCode]] = field(default_factory=list)
    page: int = 3
    target: str = ""
    _now: int = 1_760_000_000_000_000
    _server: grpc.aio.Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> str:
        """The address served."""
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 11 << 20)])
        rpc.add_CrossfadeServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        await self._server.start()
        self.target = f"127.0.0.1:{port}"
        return self.target

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def GetDocument(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter("GetDocument", context)
        path = self.database.relative(request.name)
        if path not in self.documents:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no document {request.name}")
        reply = pb.GetDocumentReply()
        wire.encode_document(self.documents[path], self.database, reply.document)
        return reply

    async def BatchGetDocuments(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._enter("BatchGetDocuments", context)
        for name in dict.fromkeys(request.names):
            path = self.database.relative(name)
            reply = pb.BatchGetDocumentsReply()
            if path in self.documents:
                wire.encode_document(self.documents[path], self.database, reply.found.add())
            else:
                reply.missing.append(self.database.full(path))
            yield reply

    async def Query(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        failure = await self._enter("Query", context)
        try:
            query = wire.decode_query(request.query, request.parent, self.database)
            found = core_query.run(query, self.documents.values())
        except CrossfadeError as error:
            await context.abort(grpc.StatusCode[error.code], str(error))
        for number, begin in enumerate(range(0, len(found) or 1, self.page)):
            if failure is not None and number == failure.pages:
                await context.abort(failure.code, "told to")
            reply = pb.QueryReply()
            for document in found[begin : begin + self.page]:
                wire.encode_document(document, self.database, reply.documents.add())
            yield reply

    async def Aggregate(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter("Aggregate", context)
        try:
            query = wire.decode_query(request.query.structured_query, request.parent, self.database)
            aggregations = wire.decode_aggregations(request.query)
            found = core_aggregate.aggregate(query, self.documents.values(), aggregations)
        except CrossfadeError as error:
            await context.abort(grpc.StatusCode[error.code], str(error))
        reply = pb.AggregateReply()
        for alias, value in found.items():
            wire.encode_value(value, reply.result.aggregate_fields[alias])
        wire.encode_time(self._now, reply.read_time)
        return reply

    async def Commit(self, request: Any, context: Any) -> Any:  # noqa: N802
        failure = await self._enter("Commit", context)
        if request.request_id in self.replies:
            reply = pb.CommitReply(replayed=True)
            reply.MergeFrom(self.replies[request.request_id])
            for result in reply.write_results:
                del result.transform_results[:]
            return reply
        try:
            reply = self._apply(request)
        except CrossfadeError as error:
            await context.abort(grpc.StatusCode[error.code], str(error))
        if request.request_id:
            self.replies[request.request_id] = reply
        if failure is not None:
            await context.abort(failure.code, "told to")
        return reply

    def _apply(self, request: Any) -> pb.CommitReply:
        self._now += 1
        staged = dict(self.documents)
        reply = pb.CommitReply()
        for message in request.writes:
            write = wire.decode_write(message, self.database)
            core_write.check(write)
            current = staged.get(write.path)
            outcome = core_write.apply(write, current, self._now)
            result = reply.write_results.add()
            if outcome.fields is None:
                staged.pop(write.path, None)
                continue
            created = self._now if current is None else current.create_time
            staged[write.path] = Document(write.path, outcome.fields, created, self._now)
            wire.encode_time(self._now, result.update_time)
            for value in outcome.results:
                wire.encode_value(value, result.transform_results.add())
        wire.encode_time(self._now, reply.commit_time)
        self.documents = staged
        return reply

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Plays the next of `watches`; one that ends without a status stays open."""
        await self._enter("Watch", context)
        for reply in self.watches.pop(0):
            if isinstance(reply, grpc.StatusCode):
                await context.abort(reply, "told to")
            yield reply
        await asyncio.Event().wait()

    async def _enter(self, method: str, context: Any) -> Failure | None:
        """Counts the call; aborts it if told to, or returns the failure that comes later."""
        self.calls[method] += 1
        self.metadata = list(context.invocation_metadata())
        for failure in self.failures:
            if failure.method == method and failure.times:
                failure.times -= 1
                if failure.after or failure.pages:
                    return failure
                await context.abort(failure.code, "told to")
        return None
