"""Traces: which calls are kept, and what is known of a call until that is decided.

Two decisions. When a call begins: its caller's flag, else a share of the calls. When it has
ended, of those that were not chosen: one that failed, was slow, or whose comparison found
the stores to differ is kept all the same. So every call's spans are held as plain tuples
until its end (a microsecond or two), and become spans only when they are kept.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from random import getrandbits, random
from typing import NamedTuple, Protocol

from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, format_span_id, format_trace_id

MAX_HELD = 128
"""Calls of stores held for one call that is not kept: a stream may last for days."""

Attributes = Mapping[str, str | int]

# Statuses that are the server's fault (the semantic conventions of gRPC servers).
SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class SpanData(NamedTuple):
    """A finished span. `parent_id` 0: there is none. Times are `time.time_ns()`; `error`: a
    status name, never a message, which might quote what a span must not hold. `links` are pairs
    of trace id and span id."""

    name: str
    kind: SpanKind
    trace_id: int
    span_id: int
    parent_id: int
    attributes: Attributes
    start_ns: int
    end_ns: int
    error: str | None = None
    links: Sequence[tuple[int, int]] = ()
    remote_parent: bool = False


class Sink(Protocol):
    """Where finished spans go. It never raises and never waits."""

    def __call__(self, span: SpanData) -> None: ...


def parse_traceparent(text: str | None) -> SpanContext | None:
    """The caller's span of a W3C traceparent header; None for none, or one that is malformed."""
    if text is None or len(text) < 55 or text[2] + text[35] + text[52] != "---":
        return None
    try:
        parent = SpanContext(
            trace_id=int(text[3:35], 16),
            span_id=int(text[36:52], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(text[53:55], 16)),
        )
    except ValueError:
        return None
    return parent if parent.is_valid and text[:2] != "ff" else None


StoreCall = tuple[str, str, str, str, str, int, int, str | None]
"""operation, store, role, collection, stage, start and end, error."""


class Trace:
    """One call, from its begin on. `kept`: its spans are sent; they are while they come, and
    those from before at once when it is decided later."""

    __slots__ = (
        "_dropped",
        "_held",
        "_name",
        "_parent",
        "_tracing",
        "_why",
        "ended_ns",
        "kept",
        "span_id",
        "started_ns",
        "status",
        "trace_id",
    )

    def __init__(
        self, tracing: "Tracing", name: str, parent: SpanContext | None, *, kept: bool
    ) -> None:
        self._tracing = tracing
        self._name = name
        self._parent = parent
        self.kept = kept
        self.trace_id = (getrandbits(128) or 1) if parent is None else parent.trace_id
        self.span_id = getrandbits(64) or 1
        self.started_ns = time.time_ns()
        self.ended_ns = 0
        self.status = ""
        self._held: list[StoreCall] = []
        self._dropped = 0
        self._why = ""

    @property
    def id(self) -> str:
        """The trace id, 32 hexadecimal digits."""
        return format_trace_id(self.trace_id)

    def store_call(
        self,
        operation: str,
        store: str,
        role: str,
        collection: str,
        stage: str,
        start_ns: int,
        end_ns: int,
        error: str | None = None,
    ) -> None:
        """A finished call of a store. `error`: a status name, never a message."""
        made = (operation, store, role, collection, stage, start_ns, end_ns, error)
        if self.kept:
            self._send(made)
        elif len(self._held) < MAX_HELD:
            self._held.append(made)
        else:
            self._dropped += 1
        if error in SERVER_ERRORS:
            self.keep("error")

    def end(self, status: str, *, lasting: bool = False) -> None:
        """The call is answered with a gRPC status name ("OK", "NOT_FOUND", ...). `lasting`: it
        was a stream that goes on as long as its caller likes, and so is never slow."""
        self.status, self.ended_ns = status, time.time_ns()
        if self.kept:
            self._send_call()
        elif status in SERVER_ERRORS:
            self.keep("error")
        elif not lasting and self.ended_ns - self.started_ns >= self._tracing.slow_ns:
            self.keep("slow")

    def keep(self, why: str) -> None:
        """Sends what was held, and all that is still to come. `why`: error, slow, mismatch."""
        if self.kept:
            return
        self.kept, self._why = True, why
        held, self._held = self._held, []
        for made in held:
            self._send(made)
        if self.ended_ns:
            self._send_call()

    def _send(self, made: StoreCall) -> None:
        operation, store, role, collection, stage, start_ns, end_ns, error = made
        tracing = self._tracing
        attributes: Attributes = tracing.attributes(operation, store, role, collection, stage)
        tracing.sink(
            SpanData(
                f"{operation} {collection}",
                SpanKind.CLIENT,
                self.trace_id,
                getrandbits(64) or 1,
                self.span_id,
                attributes if error is None else {**attributes, "error.type": error},
                start_ns,
                end_ns,
                error,
            )
        )

    def _send_call(self) -> None:
        attributes: dict[str, str | int] = {
            "rpc.system.name": "grpc",
            "rpc.method": self._name,
            "rpc.response.status_code": self.status,
        }
        if self._why:
            attributes["crossfade.kept"] = self._why
        if self._dropped:
            attributes["crossfade.spans.dropped"] = self._dropped
        error = self.status if self.status in SERVER_ERRORS else None
        if error is not None:
            attributes["error.type"] = error
        self._tracing.sink(
            SpanData(
                self._name,
                SpanKind.SERVER,
                self.trace_id,
                self.span_id,
                0 if self._parent is None else self._parent.span_id,
                attributes,
                self.started_ns,
                self.ended_ns,
                error,
                remote_parent=self._parent is not None,
            )
        )


class Tracing:
    """`ratio`: the share of the calls that is kept, of those whose caller says nothing of it;
    `slow`: seconds from which on a call is kept in any case. `store_attributes`: those of a
    store's call, by operation, store, role, collection and stage."""

    def __init__(
        self,
        sink: Sink,
        ratio: float,
        slow: float,
        store_attributes: Callable[[str, str, str, str, str], dict[str, str | int]],
    ) -> None:
        self.sink = sink
        self.slow_ns = round(slow * 1e9)
        self._ratio = ratio
        self.attributes = store_attributes

    def start(self, name: str, traceparent: str | None = None) -> Trace:
        parent = parse_traceparent(traceparent) if traceparent else None
        kept = random() < self._ratio if parent is None else parent.trace_flags.sampled  # noqa: S311
        return Trace(self, name, parent, kept=kept)

    def shadow(
        self,
        call: Trace,
        *,
        operation: str,
        store: str,
        collection: str,
        stage: str,
        verdict: str,
        start_ns: int,
        end_ns: int,
        bad: bool,
        documents: int = 1,
        error: str | None = None,
    ) -> None:
        """A shadow read, as a trace of its own that points to the call it followed. `bad`: it is
        kept, and the call with it. `documents`: how many were read by the same call.

        Not a child: it begins after its parent has ended, and must not lengthen it.
        """
        if bad:
            call.keep("mismatch" if error is None else "error")
        if not call.kept:
            return
        attributes = {
            **self.attributes(operation, store, "shadow", collection, stage),
            "crossfade.verdict": verdict,
        }
        if documents > 1:
            attributes["db.operation.batch.size"] = documents
        if error is not None:
            attributes["error.type"] = error
        self.sink(
            SpanData(
                f"shadow {operation} {collection}",
                SpanKind.CLIENT,
                getrandbits(128) or 1,
                getrandbits(64) or 1,
                0,
                attributes,
                start_ns,
                end_ns,
                error,
                ((call.trace_id, call.span_id),),
            )
        )


current: ContextVar[Trace | None] = ContextVar("crossfade_trace", default=None)
"""The call that is being answered, or compared: log lines bear its ids."""


def log_ids() -> dict[str, str]:
    """What a log line says of the call that it belongs to."""
    trace = current.get()
    if trace is None:
        return {}
    return {"trace_id": trace.id, "span_id": format_span_id(trace.span_id)}
