"""Every instrument in one file, and the recorder that they are kept in.

A recorder of our own (about 0.25 µs a record; the SDK's takes 7), which the status
reads too. otlp.py hands what it holds to OpenTelemetry, and only when it is exported.
Nothing here raises into a request or holds a value of a document: labels are collection
ids, names of operations and codes, fields that a mapping names.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import structlog

from crossfade.durations import BUCKETS, Distribution, Durations, quantile
from crossfade.paired import Paired
from crossfade.settings import TelemetrySettings
from crossfade.tracing import Trace, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace import SpanProcessor

    from crossfade.otlp import Exporters, Series
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
    """Durations in seconds, or differences of two."""

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

PAIRED_DURATION = Latency(
    "crossfade.paired.duration",
    "s",
    "Reads of which both stores were timed, the answered one and the one compared with it",
    (COLLECTION, "db.operation.name", STORE),
)
PAIRED_DIFFERENCE = Latency(
    "crossfade.paired.difference",
    "s",
    "How much longer PostgreSQL took for such a read than Firestore; negative: less",
    (COLLECTION, "db.operation.name"),
)
MIRROR_LAG = Latency(
    "crossfade.mirror.lag",
    "s",
    "From the authority's commit to the mirror's having it, by way: put or recopy",
    ("crossfade.way",),
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
    "Shadow reads not made, by cause: queue, memory, rate, age, load, budget or gate",
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
JOB_PROGRESS = Gauge(
    "crossfade.job.progress",
    "%",
    "Parts that are done of a job that has not ended: a backfill, a validation",
    ("crossfade.job", GROUP),
)
JOB_DOCUMENTS = Gauge(
    "crossfade.job.documents",
    "{document}",
    "Documents that a job which has not ended has done, by what came of them",
    ("crossfade.job", GROUP, "crossfade.result"),
)
JOB_PROCESSES = Gauge(
    "crossfade.job.processes",
    "{process}",
    "Processes that work on a job that has not ended",
    ("crossfade.job", GROUP),
)
JOB_PAGES = Counter(
    "crossfade.job.pages", "{page}", "Pages that this process has done", ("crossfade.job", GROUP)
)
JOB_RETRIES = Counter(
    "crossfade.job.retries",
    "{error}",
    "Pages that this process reads anew, because a store refused them or did not answer",
    ("crossfade.job", GROUP, "error.type"),
)
JOB_WAITING = Gauge(
    "crossfade.job.waiting",
    "1",
    "1 while this process does nothing: for the day's budget, a store, or to be resumed",
    ("crossfade.job", GROUP, "crossfade.reason"),
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

# --- latencies ---------------------------------------------------------------------------------


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
        self._started_ns = time.time_ns()
        self._stores: dict[tuple[str, str, str, str], Durations] = {}
        self._rpcs: dict[tuple[str, str], Durations] = {}
        self._lags: dict[tuple[str], Durations] = {}
        self.paired = Paired()
        self._located: dict[str, dict[str, str | int]] = {}
        self._known: dict[tuple[str, ...], dict[str, str | int]] = {}
        self._counts: dict[Counter, dict[Labels, int]] = {
            item: {} for item in INSTRUMENTS if isinstance(item, Counter)
        }
        self._gauges: dict[Gauge, GaugeSource] = {}
        self.gauge(UPTIME, lambda: (time.time_ns() - self._started_ns) / 1e9)
        self._tracing: Tracing | None = None
        self._exporters: Exporters | None = None
        if self._settings.otlp_endpoint or span_processors or metric_exporter:
            # A late import: without a collector nobody waits for the SDK to load.
            from crossfade import otlp

            self._exporters = otlp.Exporters(
                self._series(), self._settings, span_processors, metric_exporter, metric_interval
            )
            if self._exporters.spans is not None:
                self._tracing = Tracing(
                    self._exporters.spans,
                    self._settings.sample_ratio,
                    self._settings.slow,
                    self._store_attributes,
                )

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

    def record_lag(self, way: str, seconds: float) -> None:
        """What the authority has committed is in the mirror. `way`: put or recopy."""
        series = self._lags.get((way,))
        if series is None:
            series = self._lags[way,] = Durations()
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
        merged = [0] * (BUCKETS + 1)
        for key, series in list(self._stores.items()):
            if all(want is None or want == have for want, have in zip(wanted, key, strict=True)):
                merged = [a + b for a, b in zip(merged, series.buckets, strict=True)]
        return merged

    def lags(self) -> list[int]:
        """Counts of the mirror's lag by bucket, of both ways: as `buckets`."""
        merged = [0] * (BUCKETS + 1)
        for series in list(self._lags.values()):
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

    def locate(self, store: str, address: str, namespace: str) -> None:
        """Where a store is, HOST:PORT or a socket's path, and the database: for its spans."""
        host, _, port = address.rpartition(":")
        where: dict[str, str | int] = {"server.address": host or address}
        if host and port.isdecimal():
            where["server.port"] = int(port)
        self._located[store] = where | {"db.namespace": namespace}
        self._known.clear()

    def _store_attributes(
        self, operation: str, store: str, role: str, collection: str, stage: str
    ) -> dict[str, str | int]:
        """The same for equal ones: nobody changes them."""
        key = (operation, store, role, collection, stage)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = {
                STORE: SYSTEMS.get(store, store),
                "db.operation.name": operation,
                COLLECTION: collection,
                ROLE: role,
                "crossfade.stage": stage,
                **self._located.get(store, {}),
            }
        return found

    def start(self, rpc_name: str, traceparent: str | None = None) -> Trace | None:
        """The trace of a call that begins; None where spans go nowhere."""
        return None if self._tracing is None else self._tracing.start(rpc_name, traceparent)

    @property
    def tracing(self) -> Tracing | None:
        return self._tracing

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
        if item is PAIRED_DURATION:
            return self._paired_durations()
        if item is PAIRED_DIFFERENCE:
            pairs = list(self.paired.since_start.items())
            return {key: each.difference.distribution(signed=True) for key, each in pairs}
        recorded: dict[Instrument, Mapping[Any, Durations]] = {
            STORE_DURATION: self._stores,
            RPC_DURATION: self._rpcs,
            MIRROR_LAG: self._lags,
        }
        held = recorded[item]
        return {labels: series.distribution() for labels, series in list(held.items())}

    def _paired_durations(self) -> dict[Labels, Distribution]:
        return {
            (*key, store): spread.distribution(signed=False)
            for key, pairs in list(self.paired.since_start.items())
            for store, spread in (("firestore", pairs.firestore), ("postgresql", pairs.postgresql))
        }

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
        exporters, self._exporters, self._tracing = self._exporters, None, None
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
