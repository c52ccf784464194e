"""Calls of raw bytes: how a conversation is held, broken off, and what came of it."""

import asyncio
import enum
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tests.fuzz import legal
from tests.fuzz.methods import Kind, Method, methods
from tests.fuzz.tree import Leaf, Tree, places, write

DEADLINE_SECONDS = 10.0
"""No call may take longer, whatever it asks."""
PATIENCE_SECONDS = 0.2
"""How long a stream's next message waits for an answer to the one before."""
METADATA = (
    ("authorization", "Bearer owner"),
    ("google-cloud-resource-prefix", legal.DATABASE),
)
"""What the client library sends along; the official emulator does not answer without."""
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Ending(enum.StrEnum):
    """How a caller leaves."""

    PROPER = "proper"
    """It reads to the end; a stream of its own is half-closed first."""
    CANCELLED = "cancelled"
    """It hangs up after the first answer."""
    AT_ONCE = "at once"
    """It hangs up when it has asked."""


class Tokens:
    """What the server handed out in this conversation, by placeholder."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def learn(self, response: Any) -> None:
        """Takes the tokens of a response message."""
        for name, placeholder in _HANDED_OUT.items():
            for holder in (response, getattr(response, "target_change", None)):
                if token := getattr(holder, name, None):
                    data = token.encode() if isinstance(token, str) else token
                    self._known[placeholder] = data

    def fill(self, tree: Tree) -> Tree:
        """The tree with tokens where the placeholders of known ones are."""
        if not self._known:
            return tree
        filled = tree.copy()
        for place in places(filled):
            content = place.field.content
            if isinstance(content, Leaf) and isinstance(content.value, bytes):
                content.value = self._known.get(content.value, content.value)
        return filled


_HANDED_OUT = {
    "transaction": legal.TRANSACTION,
    "stream_token": legal.STREAM_TOKEN,
    "resume_token": legal.RESUME_TOKEN,
    "next_page_token": legal.PAGE_TOKEN,
}


@dataclass(frozen=True, slots=True)
class Message:
    """A tree, or bytes that are none; `edits` change its bytes when it is sent."""

    content: Tree | bytes
    edits: tuple["Edit", ...] = ()

    def data(self, tokens: Tokens) -> bytes:
        content = self.content
        made = write(tokens.fill(content)) if isinstance(content, Tree) else content
        for edit in self.edits:
            made = edit.apply(made)
        return made


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of bytes: `at` and `size` are taken modulo what there is."""

    kind: str
    at: int
    size: int

    def apply(self, data: bytes) -> bytes:
        at = self.at % (len(data) + 1)
        end = min(len(data), at + self.size)
        if self.kind == "cut":
            return data[:at]
        if self.kind == "remove":
            return data[:at] + data[end:]
        if self.kind == "double":
            return data[:end] + data[at:]
        if self.kind == "insert":
            return data[:at] + bytes((self.size,)) + data[at:]
        changed = bytearray(data)
        for index in range(at, end):
            changed[index] = 0xFF if self.kind == "fill" else changed[index] ^ 1 << self.size % 8
        return bytes(changed)


EDITS = ("cut", "remove", "double", "insert", "fill", "flip")


@dataclass(slots=True)
class Outcome:
    """`code` None: the caller hung up before there was one."""

    method: Method
    code: grpc.StatusCode | None = None
    details: str = ""
    sent: list[bytes] = field(default_factory=list)
    answers: int = 0
    unreadable: bytes | None = None
    """An answer that is not of the method's response type."""


async def ask(
    channel: grpc.aio.Channel,
    method: Method,
    messages: Sequence[Message],
    tokens: Tokens,
    ending: Ending = Ending.PROPER,
) -> Outcome:
    """Makes one call. What it is answered is the outcome; nothing is raised."""
    outcome = Outcome(method)
    talk = _both_ways if method.kind is Kind.BOTH_WAYS else _one_request
    try:
        await talk(channel, messages, tokens, ending, outcome)
    except grpc.aio.AioRpcError as error:
        _end(outcome, error.code(), error.details())
    except asyncio.CancelledError:
        if ending is Ending.PROPER:
            raise
    return outcome


async def asked(channel: grpc.aio.Channel, method: str, *messages: dict[str, Any]) -> Outcome:
    """Makes a call of messages given as fields."""
    kind = methods()[method]
    sent = [Message(kind.request(**fields).SerializeToString()) for fields in messages]
    return await ask(channel, kind, sent, Tokens())


async def _one_request(
    channel: grpc.aio.Channel,
    messages: Sequence[Message],
    tokens: Tokens,
    ending: Ending,
    outcome: Outcome,
) -> None:
    data = messages[0].data(tokens)
    outcome.sent.append(data)
    call = getattr(channel, outcome.method.kind)(outcome.method.path)(
        data, timeout=DEADLINE_SECONDS, metadata=METADATA
    )
    if ending is Ending.AT_ONCE:
        await asyncio.sleep(0)
        call.cancel()
    if outcome.method.kind is Kind.UNARY:
        _take(await call, tokens, outcome)
    else:
        async for answer in call:
            _take(answer, tokens, outcome)
            if ending is Ending.CANCELLED:
                call.cancel()
                return
    outcome.code = await call.code()


async def _both_ways(
    channel: grpc.aio.Channel,
    messages: Sequence[Message],
    tokens: Tokens,
    ending: Ending,
    outcome: Outcome,
) -> None:
    call = channel.stream_stream(outcome.method.path)(timeout=DEADLINE_SECONDS, metadata=METADATA)
    heard = asyncio.Event()

    async def listen() -> None:
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                _take(answer, tokens, outcome)
                heard.set()
        finally:
            heard.set()

    listening = asyncio.ensure_future(listen())
    try:
        # A stream that the server has ended takes no more; its status is what counts.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                heard.clear()
                data = message.data(tokens)
                outcome.sent.append(data)
                await call.write(data)
                if ending is Ending.AT_ONCE:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), PATIENCE_SECONDS)
                if listening.done() or (ending is Ending.CANCELLED and outcome.answers):
                    break
            if ending is Ending.PROPER:
                await call.done_writing()
        if ending is not Ending.PROPER:
            call.cancel()
        await listening
        _end(outcome, await call.code(), await call.details())
    finally:
        listening.cancel()
        call.cancel()


def _end(outcome: Outcome, code: grpc.StatusCode, details: str | None) -> None:
    """Unless the status is of gRPC's client itself, for a message that met an ended call."""
    if details != "Internal error from Core":
        outcome.code, outcome.details = code, details or ""


def _take(answer: bytes, tokens: Tokens, outcome: Outcome) -> None:
    outcome.answers += 1
    try:
        tokens.learn(outcome.method.response.FromString(answer))
    except DecodeError:
        outcome.unreadable = answer
