"""Firestore over raw protobuf: the documents' bytes pass through undecoded.

The client library's high-level classes cost many times the CPU, and its defaults
retry Commit, which can apply an increment twice. So only its channel with its
credentials is used here; every call has its own deadline, reads are tried twice
at most, a commit once.
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote_plus

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from crossfade import wire
from crossfade.aggregate import Aggregation
from crossfade.document import Database, Document, Fields, Value
from crossfade.errors import (
    Aborted,
    AlreadyExists,
    CrossfadeError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from crossfade.groups import DEFAULT
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.store import (
    NOW,
    PAGE_BYTES,
    PAGE_DOCUMENTS,
    Aggregated,
    At,
    CommitOutcome,
    Intent,
    Page,
    Reading,
    Stored,
    Version,
    WriteOutcome,
)
from crossfade.turns import Turns
from crossfade.write import Write
from crossfade_api.v1 import crossfade_pb2 as api
from crossfade_api.v1 import document_pb2 as pb

INTENTS = "_crossfade_intents"
MAX_MESSAGE_BYTES = 16 * 1_048_576
EXPIRY = "expire_at"
"""Field of an intent document for a TTL policy: it is needed no longer than a request may
be repeated, and than a commit may be under way."""
UNMIRRORED = "unmirrored"
"""Field of an intent document that was written in stage off, when nothing told PostgreSQL of it."""
MAX_PATHS_BYTES = 262_144
"""An intent document names its paths up to here: a commit that Firestore takes must not be
refused for its proof. The pending rows have all of them."""
REVOKED_SECONDS = 7 * 86_400.0
FIRST_PAGE_DOCUMENTS = 30
"""The first page goes out early, so that a reader starts while the rest arrives."""

_HOST = "firestore.googleapis.com"
_SCOPES = (
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/datastore",
)
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # "Not found" quotes the name, of 6 KiB at most; encoded, it is over the default of 8 KiB.
    ("grpc.max_metadata_size", 65_536),
    # A retry policy that DNS hands out could repeat a commit.
    ("grpc.service_config_disable_resolution", 1),
)
_SERVICE = "/google.firestore.v1.Firestore/"
_MESSAGE_CHARACTERS = 300

T = TypeVar("T")
Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
Stream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]"
Duplex: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"
Metadata: TypeAlias = tuple[tuple[str, str], ...]


class IntentExists(CrossfadeError):
    """The commit was refused because its intent document is there already.

    `state`: "applied" (at `commit_time`, microseconds: the same commit was done
    before) or "revoked" (it can never be done). `update_times`, one per write, are known
    of a commit that PostgreSQL did. Never leaves the sidecar.
    """

    code = "ALREADY_EXISTS"

    def __init__(
        self, state: str, commit_time: int, update_times: Sequence[int | None] = ()
    ) -> None:
        super().__init__(f"the intent was {state} before")
        self.state = state
        self.commit_time = commit_time
        self.update_times = update_times


def connect(
    database: Database,
    emulator: str | None = None,
    credentials: Any = None,
    request_window: float = 86_400.0,
) -> "FirestoreStore":
    """A store on a new channel. `emulator`: "host:port"; else Google's service.

    `request_window`: seconds that intent documents are kept at least.

    `credentials` are those of google.auth; None finds the environment's. Raises
    Unauthenticated when there are none. To be called with a running event loop.
    """
    if emulator is not None:
        channel = grpc.aio.insecure_channel(emulator, options=CHANNEL_OPTIONS)
        owner = (("authorization", "Bearer owner"),)
        return FirestoreStore(database, channel, owner, request_window)
    from google.api_core import grpc_helpers_async  # late: an emulator needs none of it
    from google.auth.exceptions import GoogleAuthError

    try:
        channel = grpc_helpers_async.create_channel(
            f"{_HOST}:443",
            credentials=credentials,
            default_scopes=_SCOPES,
            default_host=_HOST,
            options=CHANNEL_OPTIONS,
        )
    except GoogleAuthError as error:
        raise Unauthenticated(f"Firestore: {error}"[:_MESSAGE_CHARACTERS]) from error
    return FirestoreStore(database, channel, request_window=request_window)


class FirestoreStore:
    """Firestore, or whatever speaks its protocol, on a grpc.aio channel that it then owns."""

    name = StoreName.FIRESTORE

    def __init__(
        self,
        database: Database,
        channel: grpc.aio.Channel,
        metadata: Metadata = (),
        request_window: float = 86_400.0,
    ) -> None:
        self.database = database
        self._request_window = request_window
        self._channel = channel
        # Without serialisers: bytes out, bytes in.
        self._get: Unary = channel.unary_unary(_SERVICE + "GetDocument")
        self._commit: Unary = channel.unary_unary(_SERVICE + "Commit")
        self._batch_get: Stream = channel.unary_stream(_SERVICE + "BatchGetDocuments")
        self._run_query: Stream = channel.unary_stream(_SERVICE + "RunQuery")
        self._run_aggregation: Stream = channel.unary_stream(_SERVICE + "RunAggregationQuery")
        self._begin: Unary = channel.unary_unary(_SERVICE + "BeginTransaction")
        self._rollback: Unary = channel.unary_unary(_SERVICE + "Rollback")
        self._listen: Duplex = channel.stream_stream(_SERVICE + "Listen")
        self._metadata = (("google-cloud-resource-prefix", database.name), *metadata)
        self._root = quote_plus(database.root, safe="/")
        self._by_database = self._routed(f"database={quote_plus(database.name, safe='/')}")

    def _routed(self, params: str) -> Metadata:
        """The metadata of a call; Google's front ends route it by `params`."""
        return (("x-goog-request-params", params), *self._metadata)

    def _quoted(self, path: str) -> str:
        return f"{self._root}/{quote_plus(path, safe='/')}" if path else self._root

    # --- reads ---------------------------------------------------------------------------------

    async def get(
        self,
        paths: Sequence[str],
        *,
        timeout: float,
        exact_times: bool = False,
        at: At = NOW,
        turns: Turns | None = None,
    ) -> Reading:
        """The documents at the paths, now or at another moment. Several come one by one, taken
        in `turns` where nobody waits for them.

        One path alone is asked for by GetDocument, which is cheapest but says no
        read_time: that of the reading is then the local clock's, and a missing
        document has no version. `exact_times` always gives Firestore's own.
        """
        deadline = time.monotonic() + timeout
        if len(paths) == 1 and not exact_times and at is NOW:
            reading = await _twice(lambda: self._get_one(paths[0], deadline))
            if reading is not None:
                return reading
        return await _twice(lambda: self._get_all(paths, deadline, at, turns=turns))

    async def _get_one(self, path: str, deadline: float) -> Reading | None:
        """None: NOT_FOUND, but of something else (of the database) or not clearly of this."""
        name = self.database.full(path)
        metadata = self._routed(f"name={self._quoted(path)}")
        read_time = time.time_ns() // 1_000
        version = None
        try:
            with _translated():
                data: bytes | None = await self._get(
                    wire.field_bytes(1, name.encode()), timeout=_left(deadline), metadata=metadata
                )
                version = _version(data or b"")
        except NotFound as error:
            if name not in str(error):
                return None
            data = None
        return Reading((Stored(path, data, version),), read_time)

    async def identities(self, paths: Sequence[str], *, timeout: float) -> Sequence[Stored]:
        """As `get`, of documents without their fields: what is billed is the same, what is sent
        is less."""
        deadline = time.monotonic() + timeout
        nothing = wire.field_bytes(3, wire.field_bytes(1, b"__name__"))
        return (await _twice(lambda: self._get_all(paths, deadline, NOW, nothing))).documents

    async def _get_all(
        self,
        paths: Sequence[str],
        deadline: float,
        at: At = NOW,
        mask: bytes = b"",
        turns: Turns | None = None,
    ) -> Reading:
        wanted = {self.database.full(path): path for path in paths}
        request = wire.field_bytes(1, self.database.name.encode()) + b"".join(
            wire.field_bytes(2, name.encode()) for name in wanted
        )
        request += mask + at_bytes(at, 4, 7)
        found: dict[str, Stored] = {}
        last = 0
        call = self._batch_get(request, timeout=_left(deadline), metadata=self._by_database)
        try:
            with _translated(not_found=FailedPrecondition):
                async for frame in call:
                    stored, read_time = _batch_frame(frame, wanted)
                    last = max(last, read_time)
                    if stored is not None:
                        found[stored.path] = stored
                    if turns is not None:
                        await turns.over()
        finally:
            call.cancel()
        if len(found) < len(wanted):
            raise Unavailable(
                f"Firestore answered for {len(found)} of {len(wanted)} documents and ended"
            )
        return Reading(tuple(found[path] for path in paths), last or time.time_ns() // 1_000)

    async def query(self, query: Query, *, timeout: float, at: At = NOW) -> AsyncIterator[Page]:
        """The frames as they come, joined. Asked again only while nothing was handed out."""
        deadline = time.monotonic() + timeout
        request = wire.field_bytes(1, self.database.full(query.parent).encode()) + (
            wire.field_bytes(2, wire.encode_query(query, self.database)) + at_bytes(at, 5, 7)
        )
        metadata = self._routed(f"parent={self._quoted(query.parent)}")
        for last_attempt in (False, True):
            started = False
            try:
                async for page in self._pages(request, metadata, deadline):
                    started = True
                    yield page
            except Unavailable:
                if started or last_attempt:
                    raise
            else:
                return

    async def _pages(
        self, request: bytes, metadata: Metadata, deadline: float
    ) -> AsyncIterator[Page]:
        call = self._run_query(request, timeout=_left(deadline), metadata=metadata)
        most, pages = FIRST_PAGE_DOCUMENTS, 0
        try:
            while True:
                frames, ended = await _some(call.read, most)
                if frames or not pages:
                    yield Page(b"".join(frames))
                if ended:
                    return
                most, pages = PAGE_DOCUMENTS, pages + 1
        finally:
            call.cancel()

    async def aggregate(
        self,
        query: Query,
        aggregations: Sequence[Aggregation],
        *,
        timeout: float,
        at: At = NOW,
    ) -> Aggregated:
        """The aggregations over what the query finds, computed by Firestore."""
        deadline = time.monotonic() + timeout
        asked = wire.field_bytes(1, wire.encode_query(query, self.database))
        request = (
            wire.field_bytes(1, self.database.full(query.parent).encode())
            + wire.field_bytes(2, asked + wire.encode_aggregations(aggregations))
            + at_bytes(at, 4, 6)
        )
        return await _twice(lambda: self._aggregated(request, query.parent, deadline))

    async def _aggregated(self, request: bytes, parent: str, deadline: float) -> Aggregated:
        metadata = self._routed(f"parent={self._quoted(parent)}")
        call = self._run_aggregation(request, timeout=_left(deadline), metadata=metadata)
        values: dict[str, Value] = {}
        read_time = 0
        try:
            with _translated(not_found=FailedPrecondition):
                async for frame in call:
                    reply = api.AggregateReply.FromString(frame)
                    for alias, value in reply.result.aggregate_fields.items():
                        values[alias] = wire.decode_value(value)
                    if reply.HasField("read_time"):
                        read_time = wire.decode_time(reply.read_time)
        finally:
            call.cancel()
        return Aggregated(values, read_time or time.time_ns() // 1_000)

    # --- other methods -----------------------------------------------------------------------

    async def ask(self, method: str, request: bytes, parent: str, *, timeout: float) -> bytes:
        """The answer of a unary method that changes nothing and is of what lies below `parent`
        (a document path, "" for the root)."""
        asked: Unary = self._channel.unary_unary(_SERVICE + method)
        metadata = self._routed(f"parent={self._quoted(parent)}")
        deadline = time.monotonic() + timeout

        async def once() -> bytes:
            with _translated(not_found=FailedPrecondition):
                return await asked(request, timeout=_left(deadline), metadata=metadata)

        return await _twice(once)

    # --- transactions --------------------------------------------------------------------------

    async def begin(
        self,
        *,
        timeout: float,
        read_only: bool = False,
        read_time: int | None = None,
        retry: bytes | None = None,
    ) -> bytes:
        """A transaction: what it reads stays as it is, or its commit is Aborted. `retry`: the
        one whose place it takes."""
        request = wire.field_bytes(1, self.database.name.encode())
        if read_only:
            moment = at_bytes(At(read_time=read_time), 0, 2)
            request += wire.field_bytes(2, wire.field_bytes(2, moment))
        elif retry is not None:
            request += wire.field_bytes(2, wire.field_bytes(3, wire.field_bytes(1, retry)))
        with _translated(not_found=FailedPrecondition):
            reply = await self._begin(request, timeout=timeout, metadata=self._by_database)
            for number, value in wire.scan(reply):
                if number == 1 and isinstance(value, bytes):
                    return value
        raise Unavailable("Firestore began a transaction without a name")

    async def begin_reading(self, path: str, *, timeout: float) -> tuple[bytes, Stored]:
        """A transaction that has read one document: both in one call."""
        wanted = {self.database.full(path): path}
        read_write = wire.field_bytes(3, b"")
        request = (
            wire.field_bytes(1, self.database.name.encode())
            + b"".join(wire.field_bytes(2, name.encode()) for name in wanted)
            + wire.field_bytes(5, read_write)
        )
        transaction, found = b"", None
        call = self._batch_get(request, timeout=timeout, metadata=self._by_database)
        try:
            with _translated(not_found=FailedPrecondition):
                async for frame in call:
                    for number, value in wire.scan(frame):
                        if number == 3 and isinstance(value, bytes):
                            transaction = value
                    stored, _ = _batch_frame(frame, wanted)
                    found = stored or found
        finally:
            call.cancel()
        if not transaction or found is None:
            raise Unavailable("Firestore did not begin a transaction with a read")
        return transaction, found

    async def rollback(self, transaction: bytes, *, timeout: float) -> None:
        request = wire.field_bytes(1, self.database.name.encode()) + wire.field_bytes(
            2, transaction
        )
        with _translated():
            await self._rollback(request, timeout=timeout, metadata=self._by_database)

    async def get_in(
        self, transaction: bytes, paths: Sequence[str], *, timeout: float
    ) -> Sequence[Stored]:
        """The documents as the transaction sees them."""
        deadline = time.monotonic() + timeout
        return (await self._get_all(paths, deadline, At(transaction))).documents

    async def find(
        self, query: Query, *, timeout: float, transaction: bytes | None = None
    ) -> list[Document]:
        """A query's documents, all at once: for results that are known to be short."""
        deadline = time.monotonic() + timeout
        request = wire.field_bytes(1, self.database.full(query.parent).encode()) + (
            wire.field_bytes(2, wire.encode_query(query, self.database))
        )
        request += at_bytes(At(transaction), 5, 7)
        metadata = self._routed(f"parent={self._quoted(query.parent)}")
        found: list[Document] = []
        async for page in self._pages(request, metadata, deadline):
            reply = api.QueryReply.FromString(page.frames)
            found += [wire.decode_document(data, self.database) for data in reply.documents]
        return found

    async def listen(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The frames of a Listen stream, which has no deadline: close it to end it."""
        call = self._listen(requests, metadata=self._by_database)
        try:
            with _translated(not_found=FailedPrecondition):
                async for frame in call:
                    yield frame
        finally:
            call.cancel()

    # --- commits -------------------------------------------------------------------------------

    async def commit(
        self,
        writes: Sequence[Write],
        *,
        timeout: float,
        intent: Intent | None = None,
        transaction: bytes | None = None,
    ) -> CommitOutcome:
        """One attempt. With an intent, its document is created by the same commit.

        Raises IntentExists, too, when that document is there already; nothing was
        done then by this attempt. With a transaction, Aborted when what it read has changed.
        """
        deadline = time.monotonic() + timeout
        if intent is None:
            return await self._send(map(self._write_bytes, writes), deadline, transaction)
        # The intent's write comes first, so that a commit that is repeated is refused
        # for its intent and not for what its first attempt did to the documents.
        fences = [self._fence(intent, *share) for share in _shares(writes, intent)]
        for number, fence in enumerate(fences[1:], 1):
            fences[number] = replace(fence, path=f"{fence.path}~{number}")
        try:
            outcome = await self._send(
                map(self._write_bytes, (*fences, *writes)), deadline, transaction
            )
        except (AlreadyExists, FailedPrecondition, NotFound):
            if (before := await self._intent(intent.id, deadline)) is not None:
                raise before from None
            raise
        return CommitOutcome(outcome.writes[len(fences) :], outcome.commit_time)

    def _fence(self, intent: Intent, paths: Sequence[str], mark: Value = False) -> Write:
        fields: Fields = {
            "epoch": intent.epoch,
            "paths": list(paths),
            "outbox": mark,
            "state": "applied",
        }
        if not intent.mirrored:
            fields[UNMIRRORED] = True
        if not intent.outbox:  # nothing else remembers its paths, so it stays until it is drained
            fields[EXPIRY] = self.expiry()
        return Write(f"{INTENTS}/{intent.id}", fields, exists=False)

    def expiry(self) -> datetime:
        """When an intent document that is written now may go."""
        return _after(self._request_window)

    async def revoke(self, intent_id: str, timeout: float) -> bool:
        """True: the intent's commit was not applied and never will be. False: it was applied.

        Can be asked again when it fails with an InfrastructureError.
        """
        deadline = time.monotonic() + timeout
        fields: Fields = {
            "epoch": 0,
            "paths": [],
            "outbox": False,
            "state": "revoked",
            EXPIRY: _after(max(REVOKED_SECONDS, self._request_window)),
        }
        fence = Write(f"{INTENTS}/{intent_id}", fields, exists=False)
        try:
            await self._send([self._write_bytes(fence)], deadline)
        except AlreadyExists:
            before = await self._intent(intent_id, deadline)
            if before is None:
                raise Unavailable(f"the intent document {intent_id} came and went") from None
            return before.state != "applied"
        return True

    async def intent_outcome(
        self, intent_id: str, size: int, timeout: float
    ) -> CommitOutcome | None:
        """The outcome of an intent's commit of `size` writes; None if it was revoked.

        The intent document knows the commit's time but neither what a write that
        changed nothing kept nor what transforms made, so every update_time is the commit's;
        of a commit that PostgreSQL did while it was the authority it knows those, too.
        Raises Unavailable when there is no such document.
        """
        before = await self._intent(intent_id, time.monotonic() + timeout)
        if before is None:
            raise Unavailable(f"there is no intent document {intent_id}")
        if before.state != "applied":
            return None
        known = len(before.update_times) == size
        times = before.update_times if known else (before.commit_time,) * size
        return CommitOutcome(tuple(map(WriteOutcome, times)), before.commit_time, replayed=True)

    async def intent_states(self, intent_ids: Sequence[str], *, timeout: float) -> list[str | None]:
        """What each intent's document says, "applied" or "revoked"; None without one."""
        paths = [f"{INTENTS}/{identity}" for identity in intent_ids]
        reading = await self.get(paths, timeout=timeout, exact_times=True)
        return [
            None
            if stored.data is None
            else str(wire.parse_document(stored.data, self.database).fields.get("state"))
            for stored in reading.documents
        ]

    async def _intent(self, intent_id: str, deadline: float) -> IntentExists | None:
        """What the intent's document says, if there is one."""
        path = f"{INTENTS}/{intent_id}"
        reading = await _twice(lambda: self._get_all([path], deadline))
        data = reading.documents[0].data
        if data is None:
            return None
        document = wire.parse_document(data, self.database)
        fields = document.fields
        # Created by the commit itself, or afterwards for one that PostgreSQL did.
        commit_time, times = fields.get("commit_time"), fields.get("update_times")
        return IntentExists(
            str(fields.get("state")),
            commit_time if isinstance(commit_time, int) else document.create_time,
            [time if isinstance(time, int) else None for time in times]
            if isinstance(times, list)
            else (),
        )

    def _write_bytes(self, write: Write) -> bytes:
        if write.raw is not None:
            return write.raw
        message = pb.Write()
        try:
            wire.encode_write(write, self.database, message)
        except UnicodeEncodeError:  # it holds the value, so it is not passed on
            raise InvalidArgument("writes: a text is not valid Unicode") from None
        return message.SerializeToString()

    async def _send(
        self, writes: Iterable[bytes], deadline: float, transaction: bytes | None = None
    ) -> CommitOutcome:
        request = wire.field_bytes(1, self.database.name.encode()) + b"".join(
            wire.field_bytes(2, data) for data in writes
        )
        if transaction is not None:
            request += wire.field_bytes(3, transaction)
        with _translated():
            data = await self._commit(request, timeout=_left(deadline), metadata=self._by_database)
        try:
            return _outcome(api.CommitReply.FromString(data))
        except (DecodeError, InvalidArgument) as error:
            # Not InvalidArgument, which would say that nothing was done.
            raise Unavailable("Firestore's answer to a commit cannot be read") from error

    async def close(self) -> None:
        await self._channel.close()


def at_bytes(at: At, transaction: int, read_time: int) -> bytes:
    """The moment of a read, as fields of these numbers."""
    if at.transaction is not None:
        return wire.field_bytes(transaction, at.transaction)
    if at.read_time is not None:
        return wire.field_bytes(read_time, wire.time_bytes(at.read_time))
    return b""


# --- answers -----------------------------------------------------------------------------------


def _version(data: bytes) -> Version:
    return (0, wire.decode_time(pb.Document.FromString(data).update_time))


def _shares(writes: Sequence[Write], intent: Intent) -> list[tuple[list[str], Value]]:
    """The paths as the intent's documents name them, and the mark of each: those of an outbox
    all, in as many documents as that takes; else there are pending rows, which have them, and
    one document names them where they fit into it."""
    if not intent.outbox:
        [*shares] = _parted(dict.fromkeys(write.path for write in writes))
        return [(shares[0] if len(shares) == 1 else [], False)]
    return [
        (share, outbox_mark(group))
        for group, paths in intent.outbox.items()
        for share in _parted(paths)
    ]


def outbox_mark(group: str) -> Value:
    """What an entry of a group's outbox is found by."""
    return True if group == DEFAULT else group


def _parted(paths: Iterable[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    size = 0
    for path in paths:
        size += len(path.encode())
        if size > MAX_PATHS_BYTES:
            parts.append([])
            size = len(path.encode())
        parts[-1].append(path)
    return parts


def _batch_frame(frame: bytes, wanted: Mapping[str, str]) -> tuple[Stored | None, int]:
    """What a BatchGetDocumentsResponse says of a document, and its read_time (0: none)."""
    data: bytes | None = None
    missing: str | None = None
    read_time = 0
    for number, value in wire.scan(frame):
        if isinstance(value, int):
            continue
        if number == 1:
            data = value
        elif number == 2:
            missing = value.decode()
        elif number == 4:
            read_time = wire.parse_time(value)
    if data is not None:
        document = pb.Document.FromString(data)
        version = (0, wire.decode_time(document.update_time))
        return Stored(wanted[document.name], data, version), read_time
    if missing is not None:
        return Stored(wanted[missing], None, (0, read_time) if read_time else None), read_time
    return None, read_time


def _outcome(reply: api.CommitReply) -> CommitOutcome:
    return CommitOutcome(
        tuple(
            WriteOutcome(
                wire.decode_time(result.update_time) if result.HasField("update_time") else None,
                tuple(map(wire.decode_value, result.transform_results)),
            )
            for result in reply.write_results
        ),
        wire.decode_time(reply.commit_time),
    )


async def _some(read: Callable[[], Awaitable[Any]], most: int) -> tuple[list[bytes], bool]:
    """The next frames of a query, a page's worth, and whether they were the last ones."""
    frames: list[bytes] = []
    size = 0
    with _translated(not_found=FailedPrecondition):  # once a page: it is called per document
        while size < PAGE_BYTES and len(frames) < most:
            frame = await read()
            if not isinstance(frame, bytes):  # grpc.aio.EOF
                return frames, True
            frames.append(frame)
            size += len(frame)
    return frames, False


# --- deadlines and errors ----------------------------------------------------------------------


async def _twice(read: Callable[[], Awaitable[T]]) -> T:
    """A read changes nothing, so it is tried again once, within its deadline."""
    try:
        return await read()
    except Unavailable:
        return await read()


def _after(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("no time was left to ask Firestore")
    return left


@contextmanager
def _translated(not_found: type[CrossfadeError] = NotFound) -> Iterator[None]:
    """Errors of the call as our own. A read's NOT_FOUND is not said of a document but of
    the database, so it gets another class."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        translated = from_rpc_error(error)
        if isinstance(translated, NotFound):
            translated = not_found(str(translated))
        raise translated from error
    except asyncio.CancelledError:
        # grpc.aio raises this too when it was the server that answered CANCELLED.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise DeadlineExceeded("Firestore cancelled the call") from None
    except grpc.aio.UsageError as error:
        raise Unavailable("the channel to Firestore is closed") from error
    except (DecodeError, UnicodeDecodeError, KeyError) as error:
        raise Unavailable("Firestore's answer cannot be read") from error


_ERRORS: Mapping[grpc.StatusCode, type[CrossfadeError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.INTERNAL: Unavailable,
    grpc.StatusCode.UNKNOWN: Unavailable,
    grpc.StatusCode.DATA_LOSS: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: DeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}


def from_rpc_error(error: grpc.aio.AioRpcError) -> CrossfadeError:
    """The one translation of Firestore's errors. What leaves the outcome open
    (INTERNAL, UNKNOWN) is an InfrastructureError; the message is kept, cut short."""
    which = _ERRORS.get(error.code(), Unavailable)
    return which((error.details() or error.code().name)[:_MESSAGE_CHARACTERS])
