"""Every instrument in one file: metrics and traces.

Metrics go into a recorder of our own (about 0.25 µs a record; the SDK's takes 7), which
the status reads too. otlp.py hands what it holds to OpenTelemetry, and only when it is
exported. Whether a call is traced is decided before anything of OpenTelemetry is
touched (0.1 µs against 17). Nothing here raises into a request or holds a value of a
document: labels are collection ids, names of operations and codes, fields that a mapping names.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from math import log2
from random import random
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import structlog
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_trace_id,
    set_span_in_context,
)

from crossfade.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace import SpanProcessor

    from crossfade.otlp import Distribution, Exporters, Series
    from crossfade.scraping import Scrape

log = structlog.get_logger(__name__)

# --- the instruments ---------------------------------------------------------------------------

Labels: TypeAlias = tuple[str, ...]
GaugeSource: TypeAlias = Callable[[], float | Mapping[Labels, float]]


@dataclass(frozen=True, eq=False, slots=True)
class Instrument:
    """One line of the table. `labels` are the attributes, in the order they are recorded."""

    name: str
    unit: str
    description: str
    labels: Labels = ()
    kind: ClassVar[Literal["counter", "gauge", "histogram"]]


class Counter(Instrument):
    """Rises only, and counts from the start of the process."""

    kind = "counter"


class Gauge(Instrument):
    """Read from a callback when somebody looks."""

    kind = "gauge"


class Latency(Instrument):
    """Durations in seconds."""

    kind = "histogram"


COLLECTION, STORE, ROLE = "db.collection.name", "db.system.name", "crossfade.role"
GROUP = "crossfade.group"

STORE_DURATION = Latency(
    "db.client.operation.duration",
    "s",
    "Calls of the two stores",
    (COLLECTION, "db.operation.name", STORE, ROLE),
)
RPC_DURATION = Latency(
    "rpc.server.call.duration",
    "s",
    "Calls that the sidecar answered",
    ("rpc.method", "rpc.response.status_code"),
)

STORE_ERRORS = Counter(
    "crossfade.store.errors",
    "{error}",
    "Calls of a store that failed, also counted in the durations",
    (COLLECTION, "db.operation.name", STORE, ROLE, "error.type"),
)
READS = Counter("crossfade.reads", "{read}", "Reads answered, by store", (COLLECTION, STORE))
COMMITS = Counter("crossfade.commits", "{commit}", "Commits, by outcome", ("crossfade.outcome",))
MISFITS = Counter(
    "crossfade.misfits",
    "{value}",
    "Values written that their column does not take, and that were kept beside it",
    (COLLECTION, "crossfade.field", "crossfade.cause"),
)
VERDICTS = Counter(
    "crossfade.verdicts", "{verdict}", "Shadow reads compared", (COLLECTION, "crossfade.verdict")
)
SHADOW_DROPPED = Counter(
    "crossfade.shadow.dropped",
    "{read}",
    "Shadow reads not made, by cause: queue, memory, rate, age, load or budget",
    (COLLECTION, "crossfade.reason"),
)
RULED_OUT = Counter(
    "crossfade.shadow.ruled_out",
    "{difference}",
    "Differences that a named rule took away",
    (COLLECTION, "crossfade.rule"),
)
FALLBACK_READS = Counter(
    "crossfade.reads.fallback",
    "{read}",
    "Reads that the other store answered because the first could not",
    (COLLECTION, STORE),
)
RETURNED_READS = Counter(
    "crossfade.reads.returned",
    "{read}",
    "Reads that the percent sent to the mirror and that went to the authority after all",
    (COLLECTION, "crossfade.reason"),
)
MIRROR_PUTS = Counter(
    "crossfade.mirror.puts", "{put}", "Commits put into the mirror", ("crossfade.outcome",)
)
RECOPIES = Counter(
    "crossfade.recopies", "{document}", "Documents recopied, by outcome", ("crossfade.outcome",)
)
REPAIRS = Counter(
    "crossfade.repairs",
    "{repair}",
    "Recopies queued because of a verdict",
    (COLLECTION, "crossfade.verdict"),
)
REPAIRS_GIVEN_UP = Counter(
    "crossfade.repairs.given_up",
    "{repair}",
    "Recopies not queued because the document was repaired too often in a row",
    (COLLECTION,),
)
MISMATCHES_DROPPED = Counter(
    "crossfade.mismatches.dropped",
    "{sample}",
    "Samples of mismatches not kept: too many, or PostgreSQL could not take them",
    (COLLECTION,),
)
OUTBOX = Counter(
    "crossfade.outbox",
    "{commit}",
    "Commits past PostgreSQL while it was away or slow, their becoming pending rows, and how often "
    "it became slow",
    ("crossfade.outcome",),
)
FOLLOWED = Counter(
    "crossfade.follower.marked",
    "{document}",
    "Documents that somebody wrote around the sidecars, found in Firestore's change stream",
    (COLLECTION,),
)
PRUNED = Counter("crossfade.tombstones.pruned", "{document}", "Tombstones that nothing needs")
RAMP_MOVES = Counter(
    "crossfade.ramp.moves",
    "{move}",
    "Percents that a ramp (advance, back) or the guard changed",
    (COLLECTION, "crossfade.move"),
)
REVOKED = Counter("crossfade.intents.revoked", "{intent}", "Intents in doubt that were revoked")

PENDING = Gauge(
    "crossfade.pending", "{document}", "Documents whose mirror copy may be behind", (GROUP,)
)
OLDEST_PENDING = Gauge("crossfade.pending.oldest", "s", "Age of the oldest pending row", (GROUP,))
DEAD_LETTERS = Gauge(
    "crossfade.dead_letters", "{document}", "Documents that failed too often", (GROUP,)
)
FOREIGN = Gauge(
    "crossfade.dead_letters.foreign",
    "{document}",
    "Dead letters for which Firestore holds what nobody here wrote",
    (GROUP,),
)
FOLLOWER_LAG = Gauge(
    "crossfade.follower.lag", "s", "How far following Firestore's change stream is behind"
)
STAGE = Gauge(
    "crossfade.stage", "1", "1 for the current stage of a group", ("crossfade.stage", GROUP)
)
EPOCH = Gauge("crossfade.epoch", "1", "Rises with every change of authority", (GROUP,))
EFFECTIVE_PERCENT = Gauge(
    "crossfade.read_percent.effective",
    "%",
    "Reads that PostgreSQL answered in the last minute",
    (COLLECTION,),
)
GATE_OPEN = Gauge(
    "crossfade.gate.open",
    "1",
    "0 while commits may be in the outbox, and the mirror answers nothing",
    (GROUP,),
)
READ_PERCENT = Gauge(
    "crossfade.read_percent", "%", "Share of reads that PostgreSQL answers", (COLLECTION,)
)
ROLLBACK_LOSES = Gauge(
    "crossfade.rollback.loses",
    "{write}",
    "Acknowledged writes that a rollback would lose now",
    ("crossfade.rollback", GROUP),
)
BUDGET_LEFT = Gauge(
    "crossfade.budget.left",
    "{read}",
    "Billed reads of Firestore that the day's budget has left, as far as this sidecar knows",
)
BUDGET_SPENT = Counter(
    "crossfade.budget.spent", "{read}", "Billed reads of Firestore made for comparing"
)
SETTINGS_REFUSED = Gauge(
    "crossfade.settings.refused", "1", "1 while the settings file cannot be used as it is"
)
TOKENS_REFUSED = Gauge(
    "crossfade.access.refused", "1", "1 while the tokens file cannot be used as it is"
)
CERTIFICATE_REFUSED = Gauge(
    "crossfade.certificate.refused",
    "1",
    "1 while the certificate's files cannot be used",
)
DENIED = Counter(
    "crossfade.access.denied",
    "{call}",
    "Calls refused because of who called: no token, an unknown or expired one, too small a role",
    ("rpc.method", "rpc.response.status_code"),
)
LIMITED = Counter(
    "crossfade.limits.refused",
    "{call}",
    "Calls refused by a limit, by its name and whose it is: all, or the name of a token",
    ("crossfade.limit", "crossfade.caller"),
)
UNDER_WAY = Gauge("crossfade.calls.under_way", "{call}", "Calls that are being answered")
SHADOW_QUEUE = Gauge("crossfade.shadow.queue", "{read}", "Shadow reads that wait")
UPTIME = Gauge("process.uptime", "s", "Time since the sidecar's start")

INSTRUMENTS: tuple[Instrument, ...] = tuple(
    item for item in list(globals().values()) if isinstance(item, Instrument)
)

# Attribute values as OpenTelemetry names them.
SYSTEMS = {"firestore": "gcp.firestore", "postgresql": "postgresql"}
# Statuses that are the server's fault (the semantic conventions of gRPC servers).
SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


# --- latencies ---------------------------------------------------------------------------------

# Four buckets to an octave: each bound is 2^(1/4) times the last, so a quantile is known
# to about ±9 % even where interpolation tells nothing. 2^-20 s (1 µs) to 2^9 s.
_PER_OCTAVE, _LOWEST, _HIGHEST = 4, -20, 9
_BUCKETS = (_HIGHEST - _LOWEST) * _PER_OCTAVE
_OFFSET = 1 - _LOWEST * _PER_OCTAVE
_TINY = 2.0**_LOWEST


def bound(index: int) -> float:
    """The upper bound of a bucket, in seconds. Bucket 0 holds all that is below 2^-20 s."""
    return float(2.0 ** (_LOWEST + index / _PER_OCTAVE))


# 61 µs to 32 s: a series costs a backend 20 numbers, not 116.
_EXPORTED = range(-14, 6)
EXPORTED_BOUNDS = tuple(2.0**octave for octave in _EXPORTED)
_CUTS = [(octave - _LOWEST) * _PER_OCTAVE + 1 for octave in _EXPORTED]


class Durations:
    """Counts of one series. `sum` in seconds."""

    __slots__ = ("buckets", "errors", "sum")

    def __init__(self) -> None:
        self.buckets = [0] * (_BUCKETS + 1)
        self.sum = 0.0
        self.errors = 0

    def add(self, seconds: float) -> None:
        index = int(log2(seconds) * _PER_OCTAVE + _OFFSET) if seconds > _TINY else 0
        self.buckets[index if index < _BUCKETS else _BUCKETS] += 1  # noqa: FURB136 - faster
        self.sum += seconds

    def distribution(self) -> "Distribution":
        """The counts with a bucket to an octave; the fine ones fit into them exactly."""
        from crossfade.otlp import Distribution

        fine = list(self.buckets)
        held = [index for index, count in enumerate(fine) if count]
        return Distribution(
            bounds=EXPORTED_BOUNDS,
            counts=[sum(fine[a:b]) for a, b in pairwise((0, *_CUTS, len(fine)))],
            sum=self.sum,
            low=bound(held[0] - 1) if held and held[0] else 0.0,
            high=bound(held[-1]) if held else 0.0,
        )


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """The q-th quantile in seconds, interpolated in its bucket; None without a record."""
    total = sum(buckets)
    if not total:
        return None
    reached = list(accumulate(buckets))
    index = bisect_left(reached, max(q * total, 1e-9))
    low = bound(index - 1) if index else 0.0
    share = (q * total - (reached[index] - buckets[index])) / buckets[index]
    return low + (bound(index) - low) * share


@dataclass(frozen=True, slots=True)
class StoreLatency:
    """One series of the stores' calls since the start; quantiles in seconds."""

    collection: str
    operation: str
    store: str
    role: str
    count: int
    errors: int
    p50: float
    p95: float
    p99: float


# --- traces ------------------------------------------------------------------------------------


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


def _store_attributes(
    operation: str, store: str, role: str, collection: str, stage: str
) -> dict[str, str]:
    return {
        STORE: SYSTEMS.get(store, store),
        "db.operation.name": operation,
        COLLECTION: collection,
        ROLE: role,
        "crossfade.stage": stage,
    }


def _fail(span: Span, error: str) -> None:
    """Errors travel as their code: a message might quote what a span must not hold."""
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR, error))


@dataclass(frozen=True, slots=True)
class Trace:
    """A call that is traced. Times are `time.time_ns()`."""

    _tracer: Any
    _span: Span
    _context: Any

    @property
    def id(self) -> str:
        """The trace id, 32 hexadecimal digits."""
        return format_trace_id(self._span.get_span_context().trace_id)

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
        span = self._tracer.start_span(
            f"{operation} {collection}",
            self._context,
            SpanKind.CLIENT,
            _store_attributes(operation, store, role, collection, stage),
            start_time=start_ns,
        )
        if error is not None:
            _fail(span, error)
        span.end(end_ns)

    def end(self, status_code: str) -> None:
        """The call is answered with a gRPC status name ("OK", "NOT_FOUND", ...)."""
        self._span.set_attribute("rpc.response.status_code", status_code)
        if status_code in SERVER_ERRORS:
            _fail(self._span, status_code)
        self._span.end()

    def link(self) -> SpanContext:
        """What `Telemetry.shadow_span` needs to point back to this call."""
        return self._span.get_span_context()


# --- the recorder ------------------------------------------------------------------------------


class Telemetry:
    """The process's recorder and tracer: one per sidecar, passed to whoever records.

    `span_processors` and `metric_exporter` take the place of OTLP where they are given.
    `metric_interval`: seconds between two exports.
    """

    def __init__(
        self,
        settings: TelemetrySettings | None = None,
        *,
        span_processors: "Sequence[SpanProcessor]" = (),
        metric_exporter: "MetricExporter | None" = None,
        metric_interval: float = 15.0,
    ) -> None:
        self._settings = settings or TelemetrySettings()
        self._ratio = self._settings.sample_ratio
        self._started_ns = time.time_ns()
        self._stores: dict[tuple[str, str, str, str], Durations] = {}
        self._rpcs: dict[tuple[str, str], Durations] = {}
        self._counts: dict[Counter, dict[Labels, int]] = {
            item: {} for item in INSTRUMENTS if isinstance(item, Counter)
        }
        self._gauges: dict[Gauge, GaugeSource] = {}
        self.gauge(UPTIME, lambda: (time.time_ns() - self._started_ns) / 1e9)
        self._tracer: Any = None
        self._exporters: Exporters | None = None
        if self._settings.otlp_endpoint or span_processors or metric_exporter:
            # A late import: without a collector nobody waits for the SDK to load.
            from crossfade import otlp

            self._exporters = otlp.Exporters(
                self._series(), self._settings, span_processors, metric_exporter, metric_interval
            )
            self._tracer = self._exporters.tracer

    def record_store(
        self,
        collection: str,
        operation: str,
        store: str,
        role: str,
        seconds: float,
        error: str | None = None,
    ) -> None:
        """A call of a store. `role`: answered, shadow or mirror; `error`: a status name."""
        key = (collection, operation, store, role)
        series = self._stores.get(key)
        if series is None:
            series = self._stores[key] = Durations()
        series.add(seconds)
        if error is not None:
            series.errors += 1
            self.count(STORE_ERRORS, *key, error)

    def record_rpc(self, method: str, status_code: str, seconds: float) -> None:
        """A call that was answered. `method`: "crossfade.v1.Crossfade/GetDocument"."""
        key = (method, status_code)
        series = self._rpcs.get(key)
        if series is None:
            series = self._rpcs[key] = Durations()
        series.add(seconds)

    def count(self, counter: Counter, *labels: str, by: int = 1) -> None:
        """Adds to a counter. Raises TypeError when the labels are not those of the table."""
        counts = self._counts[counter]
        held = counts.get(labels)
        if held is None:
            if len(labels) != len(counter.labels):
                raise TypeError(f"{counter.name} takes the labels {counter.labels}")
            held = 0
        counts[labels] = held + by

    def gauge(self, gauge: Gauge, read: GaugeSource) -> None:
        """Sets where a gauge is read: a number, or numbers by labels.

        `read` is called from the exporter's thread: it returns what is known and asks nobody.
        """
        self._gauges[gauge] = read

    # --- what was recorded

    def counts(self, counter: Counter) -> dict[Labels, int]:
        """A counter's numbers by labels."""
        return dict(self._counts[counter])

    def total(self, counter: Counter) -> int:
        return sum(list(self._counts[counter].values()))

    def buckets(
        self,
        *,
        collection: str | None = None,
        operation: str | None = None,
        store: str | None = None,
        role: str | None = None,
    ) -> list[int]:
        """Counts by bucket over every series that fits: what `quantile` takes. Two of them
        subtracted are those of the time between."""
        wanted = (collection, operation, store, role)
        merged = [0] * (_BUCKETS + 1)
        for key, series in list(self._stores.items()):
            if all(want is None or want == have for want, have in zip(wanted, key, strict=True)):
                merged = [a + b for a, b in zip(merged, series.buckets, strict=True)]
        return merged

    def quantiles(self, *qs: float, **wanted: str | None) -> tuple[float | None, ...]:
        """Quantiles (0..1) in seconds over every series that fits (see `buckets`); None
        without a record."""
        merged = self.buckets(**wanted)
        return tuple(quantile(merged, q) for q in qs)

    def latencies(self) -> list[StoreLatency]:
        """Every series of the stores' calls, sorted."""
        return [
            StoreLatency(
                *key,
                count=sum(series.buckets),
                errors=series.errors,
                p50=quantile(series.buckets, 0.5) or 0.0,
                p95=quantile(series.buckets, 0.95) or 0.0,
                p99=quantile(series.buckets, 0.99) or 0.0,
            )
            for key, series in sorted(self._stores.items())
        ]

    # --- traces

    def start(self, rpc_name: str, traceparent: str | None = None) -> Trace | None:
        """The trace of a call, or None: not sampled, or nowhere to send it.

        A caller that sends a traceparent has decided; else the sample ratio does.
        """
        if self._tracer is None:
            return None
        parent = parse_traceparent(traceparent) if traceparent else None
        if not (random() < self._ratio if parent is None else parent.trace_flags.sampled):  # noqa: S311
            return None
        span = self._tracer.start_span(
            rpc_name,
            set_span_in_context(NonRecordingSpan(parent)) if parent else None,
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": rpc_name},
        )
        return Trace(self._tracer, span, set_span_in_context(span))

    def shadow_span(
        self,
        link: SpanContext,
        *,
        operation: str,
        store: str,
        collection: str,
        stage: str,
        verdict: str,
        start_ns: int,
        end_ns: int,
        error: str | None = None,
    ) -> None:
        """A shadow read, as a trace of its own that points to the call it followed.

        Not a child: it begins after its parent has ended, and must not lengthen it.
        """
        if self._tracer is None:
            return
        span = self._tracer.start_span(
            f"shadow {operation} {collection}",
            None,
            SpanKind.CLIENT,
            _store_attributes(operation, store, "shadow", collection, stage)
            | {"crossfade.verdict": verdict},
            [Link(link)],
            start_time=start_ns,
        )
        if error is not None:
            _fail(span, error)
        span.end(end_ns)

    # --- export

    def _series(self) -> list["Series"]:
        """The whole table, each line with where its numbers are read."""
        from crossfade.otlp import Series

        return [
            Series(
                item.name,
                item.unit,
                item.description,
                item.kind,
                partial(_attributed, item, partial(self._numbers, item)),
            )
            for item in INSTRUMENTS
        ]

    def _numbers(self, item: Instrument) -> Mapping[Labels, "float | Distribution"]:
        if isinstance(item, Counter):
            return self.counts(item)
        if isinstance(item, Gauge):
            return self.read_gauge(item)
        held = self._stores if item is STORE_DURATION else self._rpcs
        return {labels: series.distribution() for labels, series in list(held.items())}

    def read_gauge(self, gauge: Gauge) -> dict[Labels, float]:
        """A gauge's numbers now; none where nobody feeds it, or where reading fails."""
        read = self._gauges.get(gauge)
        if read is None:
            return {}
        try:
            value = read()
        except Exception:
            log.exception("a gauge could not be read", action="gauge_failed", gauge=gauge.name)
            return {}
        return dict(value) if isinstance(value, Mapping) else {(): value}

    def scraped(self) -> "Scrape":
        """What Prometheus fetches. Loads OpenTelemetry's SDK, so ask for it from a thread."""
        from crossfade import otlp

        if self._exporters is None:
            self._exporters = otlp.Exporters(self._series(), self._settings, (), None, 0.0)
        return self._exporters.scraped()

    def flush(self) -> None:
        """Sends what is there. Blocks; failures are the exporters' own log lines."""
        if self._exporters is not None:
            self._exporters.flush()

    def close(self, timeout: float = 2.0) -> None:
        """Sends what is left and ends the exporters. Blocks up to `timeout` seconds: a
        collector that is away does not hold up the end of the process."""
        exporters, self._exporters, self._tracer = self._exporters, None, None
        if exporters is not None:
            thread = Thread(target=exporters.close, name="telemetry-close", daemon=True)
            thread.start()
            thread.join(timeout)


def _attributed(
    item: Instrument, read: Callable[[], Mapping[Labels, Any]]
) -> list[tuple[dict[str, str], Any]]:
    """Numbers by labels, as numbers by attributes."""
    return [
        (
            {
                name: SYSTEMS.get(value, value) if name == STORE else str(value)
                for name, value in zip(item.labels, labels, strict=True)
            },
            number,
        )
        for labels, number in read().items()
    ]
