"""Both ends of a Listen stream for tests: a client's view of it, and ways to hold one.

`View` does with the frames what a client library does: it folds them into the documents
of each target, and a frame that says that the stream is consistent makes a snapshot.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc.aio
from google.cloud.firestore_v1 import types

from crossfade.document import Database
from crossfade.rpc.firestore_v1.listen import Listen

METHOD = "/google.firestore.v1.Firestore/Listen"
Kind = types.TargetChange.TargetChangeType
SECONDS = 20.0


class Ended(Exception):
    """The stream is over. `code` is the status's name, OK for a plain end."""

    def __init__(self, code: str, details: str | None = "") -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details


class Line(Protocol):
    """One stream, whatever carries it."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes:
        """The next frame. Raises Ended."""
        ...

    async def close(self) -> None:
        """Ends the stream from the client's side, at once."""
        ...

    async def done(self) -> None:
        """Closes the client's half."""
        ...


class Wire:
    """A stream over a channel."""

    def __init__(self, channel: grpc.aio.Channel, database: Database) -> None:
        metadata = (("google-cloud-resource-prefix", database.name),)
        self._call: Any = channel.stream_stream(METHOD)(metadata=metadata)

    async def send(self, data: bytes) -> None:
        await self._call.write(data)

    async def receive(self) -> bytes:
        try:
            data = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise Ended(error.code().name, error.details()) from error
        if data is grpc.aio.EOF:
            raise Ended((await self._call.code()).name)
        return data

    async def close(self) -> None:
        self._call.cancel()

    async def done(self) -> None:
        await self._call.done_writing()


class Direct:
    """A stream of the method itself, without gRPC: what is not received is not sent."""

    def __init__(self, listen: Listen) -> None:
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._frames = listen.serve(self._sent())

    async def _sent(self) -> AsyncIterator[bytes]:
        while (data := await self._requests.get()) is not None:
            yield data

    async def send(self, data: bytes) -> None:
        self._requests.put_nowait(data)

    async def receive(self) -> bytes:
        try:
            return await anext(self._frames)
        except StopAsyncIteration:
            raise Ended("OK") from None

    async def close(self) -> None:
        await self._frames.aclose()

    async def done(self) -> None:
        self._requests.put_nowait(None)


@dataclass
class View:
    """What a client knows. Documents by target and path: update_time and the field n."""

    targets: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)
    missing: dict[int, set[str]] = field(default_factory=dict)
    current: set[int] = field(default_factory=set)
    refused: dict[int, tuple[int, str]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    token: bytes = b""
    read_time: int = 0

    def apply(self, frame: Any) -> bool:
        """Whether the stream is consistent with this frame."""
        which = frame.WhichOneof("response_type")
        if which == "target_change":
            return self._target_change(frame.target_change)
        if which == "document_change":
            change = frame.document_change
            path = relative(change.document.name)
            known = change.document.update_time.ToMicroseconds(), number_of(change.document)
            for number in change.target_ids:
                self.targets[number][path] = known
                self.missing[number].discard(path)
            for number in change.removed_target_ids:
                self.targets[number].pop(path, None)
        elif which == "filter":
            self.counts[frame.filter.target_id] = frame.filter.count
        else:
            gone = getattr(frame, which)
            path = relative(gone.document)
            for number in gone.removed_target_ids:
                self.targets[number].pop(path, None)
                if which == "document_delete":
                    self.missing[number].add(path)
        return False

    def _target_change(self, change: Any) -> bool:
        kind = change.target_change_type
        numbers = list(change.target_ids) or list(self.targets)
        for number in numbers:
            if kind == Kind.ADD:
                self.targets.setdefault(number, {})
                self.missing.setdefault(number, set())
            elif kind == Kind.REMOVE:
                self.targets.pop(number, None)
                self.missing.pop(number, None)
                self.current.discard(number)
                if change.HasField("cause"):
                    self.refused[number] = (change.cause.code, change.cause.message)
            elif kind == Kind.RESET:
                self.targets[number].clear()
                self.missing[number].clear()
                self.current.discard(number)
            elif kind == Kind.CURRENT:
                self.current.add(number)
        if kind != Kind.NO_CHANGE or change.target_ids:
            return False
        assert change.read_time.ToMicroseconds() >= self.read_time, "time goes backwards"
        self.read_time = change.read_time.ToMicroseconds()
        self.token = change.resume_token
        return True

    def ids(self, number: int) -> dict[str, int]:
        """The documents of a target: last segment of the path to the field n."""
        return {path.rpartition("/")[2]: n for path, (_, n) in self.targets.get(number, {}).items()}


def number_of(document: Any) -> int:
    """The field n; 0 without one. (Reading a map's missing key would make it.)"""
    return document.fields["n"].integer_value if "n" in document.fields else 0


def relative(name: str) -> str:
    return name.partition("/documents/")[2]


class Conversation:
    """A stream with a view of it. `frames` are all that were received."""

    def __init__(self, line: Line, database: Database, view: View | None = None) -> None:
        self.line = line
        self.database = database
        self.view = view or View()
        self.frames: list[Any] = []
        self._pending: asyncio.Task[bytes] | None = None

    async def ask(self, **request: Any) -> None:
        message = types.ListenRequest(database=self.database.name, **request)
        await self.line.send(types.ListenRequest.pb(message).SerializeToString())

    async def follow(self, number: int, /, query: Any = None, **target: Any) -> None:
        """Adds a target: a query's StructuredQuery as a dictionary, or `documents` by path."""
        if query is not None:
            target["query"] = {"parent": self.database.root, "structured_query": query}
        if "documents" in target:
            names = [self.database.full(path) for path in target["documents"]]
            target["documents"] = {"documents": names}
        await self.ask(add_target={"target_id": number, **target})

    async def next(self, seconds: float = SECONDS) -> Any:
        """The next frame, applied to the view. Raises Ended, TimeoutError."""
        # A receive that is cancelled would end the stream, so it outlives a timeout.
        if self._pending is None:
            self._pending = asyncio.ensure_future(self.line.receive())
        done, _ = await asyncio.wait([self._pending], timeout=seconds)
        if not done:
            raise TimeoutError
        received, self._pending = self._pending, None
        frame = types.ListenResponse.pb().FromString(received.result())
        self.frames.append(frame)
        self.view.apply(frame)
        return frame

    async def snapshot(self) -> View:
        """Receives until the stream is consistent."""
        while not is_consistent(await self.next()):
            pass
        return self.view

    async def quiet(self, seconds: float = 0.3) -> list[str]:
        """Receives until nothing has come for a while; what came."""
        start, waits = len(self.frames), 0
        while waits < 2:  # two, for a process that sleeps for a moment is not quiet
            try:
                await self.next(seconds / 2)
            except TimeoutError:
                waits += 1
            else:
                waits = 0
        return [described(frame) for frame in self.frames[start:]]

    async def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait([self._pending])
            self._pending = None
        await self.line.close()

    async def removed(self, number: int) -> tuple[int, str]:
        """Receives until a target is removed; the code and message of the cause."""
        while True:
            change = (await self.next()).target_change
            if change.target_change_type == Kind.REMOVE and number in change.target_ids:
                return change.cause.code, change.cause.message

    async def until(self, number: int, expected: dict[str, int]) -> View:
        """Receives snapshots until a target holds what is expected."""
        while (await self.snapshot()).ids(number) != expected:
            pass
        return self.view

    async def ended(self) -> Ended:
        """Receives until the end."""
        try:
            while True:
                await self.next()
        except Ended as end:
            return end


def is_consistent(frame: Any) -> bool:
    change = frame.target_change
    return (
        frame.WhichOneof("response_type") == "target_change"
        and change.target_change_type == Kind.NO_CHANGE
        and not change.target_ids
    )


def described(frame: Any) -> str:
    """A frame in a few words: `ADD 2`, `CHANGE c/a=1 2`, `DELETE c/a 2`, `NO_CHANGE`."""
    which = frame.WhichOneof("response_type")
    if which == "target_change":
        change = frame.target_change
        numbers = "".join(f" {number}" for number in change.target_ids)
        return f"{Kind(change.target_change_type).name}{numbers}"
    if which == "filter":
        return f"FILTER {frame.filter.target_id} count={frame.filter.count}"
    part = getattr(frame, which)
    numbers = "".join(f" {n}" for n in [*getattr(part, "target_ids", ()), *part.removed_target_ids])
    if which == "document_change":
        return f"CHANGE {relative(part.document.name)}={number_of(part.document)}{numbers}"
    return f"{which.removeprefix('document_').upper()} {relative(part.document)}{numbers}"


# --- queries -----------------------------------------------------------------------------------


def collection(name: str = "c", **query: Any) -> dict[str, Any]:
    return {"from_": [{"collection_id": name}], **query}


def where(op: str, value: int) -> dict[str, Any]:
    """A filter of the field n."""
    return {
        "field_filter": {
            "field": {"field_path": "n"},
            "op": getattr(types.StructuredQuery.FieldFilter.Operator, op),
            "value": {"integer_value": value},
        }
    }


def by(name: str = "n", direction: str = "ASCENDING") -> list[dict[str, Any]]:
    chosen = getattr(types.StructuredQuery.Direction, direction)
    return [{"field": {"field_path": name}, "direction": chosen}]
