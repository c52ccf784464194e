"""Recorded numbers and spans in OpenTelemetry's shapes, on their way out of the process.

Counters and gauges are observable instruments of the SDK. The SDK has no observable
histogram: counters with an attribute `le` in its place would be understood by nothing
but hand-made queries, so the exporter is wrapped, and adds ordinary histograms to
what the SDK collected.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from time import time_ns
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from crossfade.durations import Exemplar
from crossfade.otlp_spans import SpanQueue, encode_request
from crossfade.settings import TelemetrySettings
from crossfade.tracing import SpanData

if TYPE_CHECKING:
    from crossfade.scraping import Scrape

SCOPE = "crossfade"
SCHEMA = Schemas.V1_40_0.value
"""The semantic conventions that the names of spans, attributes and instruments follow."""
EXPORT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """An instrument, and where its numbers (or distributions) are read, by attributes."""

    name: str
    unit: str
    description: str
    kind: Literal["counter", "gauge", "histogram"]
    read: Callable[[], Sequence[tuple[dict[str, str], Any]]]


class Spans:
    """Where finished spans become the SDK's and go to processors of somebody's own.

    They are made as they are read and not begun and ended by a tracer: what is kept is known
    only when the call is over, and then its ids have been told already.
    """

    def __init__(self, processors: Sequence[SpanProcessor], resource: Resource) -> None:
        self._processors = processors
        self._resource = resource
        self._scope = InstrumentationScope(SCOPE, version("crossfade"), SCHEMA)

    def __call__(self, span: SpanData) -> None:
        made = ReadableSpan(
            span.name,
            context=_context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_id, remote=span.remote_parent)
            if span.parent_id
            else None,
            resource=self._resource,
            attributes=span.attributes,
            links=[Link(_context(*each)) for each in span.links],
            kind=span.kind,
            status=_UNSET if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )
        for processor in self._processors:
            with suppress(Exception):
                processor.on_end(made)

    def force_flush(self) -> None:
        for processor in self._processors:
            with suppress(Exception):
                processor.force_flush()

    def shutdown(self) -> None:
        for processor in self._processors:
            with suppress(Exception):
                processor.shutdown()


_UNSET = Status(StatusCode.UNSET)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def _context(trace_id: int, span_id: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=remote, trace_flags=_SAMPLED)


def _sender(endpoint: str, resource: Resource) -> SpanQueue:
    """OpenTelemetry's exporter (its connection, headers, TLS, repetitions), with bytes that are
    encoded here."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    attributes = {name: str(value) for name, value in resource.attributes.items()}
    scope = (SCOPE, version("crossfade"))

    class Exporter(OTLPSpanExporter):
        def _translate_data(self, data: Any) -> Any:
            return ExportTraceServiceRequest.FromString(
                encode_request(data, attributes, scope, SCHEMA)
            )

    return SpanQueue(Exporter(endpoint, timeout=EXPORT_SECONDS).export)  # type: ignore[arg-type]


class Exporters:
    """The SDK's exporters, fed by a `Telemetry`. `spans` is None where spans go nowhere."""

    def __init__(
        self,
        series: Sequence[Series],
        settings: TelemetrySettings,
        span_processors: Sequence[SpanProcessor],
        metric_exporter: MetricExporter | None,
        interval: float,
    ) -> None:
        if settings.otlp_endpoint is not None and settings.push_metrics:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

            endpoint = settings.otlp_endpoint
            metric_exporter = metric_exporter or OTLPMetricExporter(
                endpoint, timeout=EXPORT_SECONDS
            )
        resource = Resource.create(
            {
                "service.name": settings.service_name,
                "service.version": version("crossfade"),
                "service.instance.id": str(uuid4()),
            }
        )
        self._series = series
        self._started_ns = time_ns()
        self._resource = resource
        self._meters: MeterProvider | None = None
        self._providers: list[Spans | SpanQueue | MeterProvider] = []
        self.spans: Spans | SpanQueue | None = None
        if span_processors:
            self.spans = Spans(span_processors, resource)
        elif settings.otlp_endpoint is not None:
            self.spans = _sender(settings.otlp_endpoint, resource)
        if self.spans is not None:
            self._providers.append(self.spans)
        if metric_exporter is not None:
            reader = PeriodicExportingMetricReader(
                _WithHistograms(metric_exporter, self._histograms),
                interval * 1000,
                EXPORT_SECONDS * 1000,
            )
            self._metered(reader)

    def _metered(self, *readers: MetricReader) -> MeterProvider:
        """The provider of everything that reads metrics. It flushes, and closes, only the
        readers that it is made with."""
        if self._meters is None:
            self._meters = MeterProvider(readers, self._resource, shutdown_on_exit=False)
            self._providers.append(self._meters)
            self._observe(self._meters.get_meter(SCOPE))
        return self._meters

    def scraped(self) -> "Scrape":
        """What Prometheus fetches; from the first call on it can be."""
        from crossfade.scraping import Scrape

        scrape = Scrape(self._histograms)
        self._metered().add_metric_reader(scrape.reader)
        return scrape

    def _observe(self, meter: Any) -> None:
        make = {
            "counter": meter.create_observable_counter,
            "gauge": meter.create_observable_gauge,
        }
        for item in self._series:
            if item.kind in make:
                observe = partial(_observations, item)
                make[item.kind](item.name, [observe], item.unit, item.description)

    def _histograms(self) -> list[Metric]:
        now = time_ns()
        return [
            Metric(
                item.name,
                item.description,
                item.unit,
                Histogram(
                    [
                        HistogramDataPoint(
                            attributes=attributes,
                            start_time_unix_nano=self._started_ns,
                            time_unix_nano=now,
                            count=sum(found.counts),
                            # None is left out of the message, as it should be of values
                            # that may be negative.
                            sum=found.sum,
                            bucket_counts=found.counts,
                            explicit_bounds=found.bounds,
                            min=found.low,
                            max=found.high,
                            exemplars=[_exemplar(each) for each in found.exemplars],
                        )
                        for attributes, found in points
                    ],
                    AggregationTemporality.CUMULATIVE,
                ),
            )
            for item in self._series
            if item.kind == "histogram" and (points := item.read())
        ]

    def flush(self) -> None:
        for provider in self._providers:
            with suppress(Exception):
                provider.force_flush()

    def close(self) -> None:
        for provider in self._providers:
            with suppress(Exception):
                provider.shutdown()


def _exemplar(found: Exemplar) -> SdkExemplar:
    return SdkExemplar({}, found.value, found.time_ns, found.span_id, found.trace_id)


def _observations(item: Series, _: CallbackOptions) -> list[Observation]:
    return [Observation(value, attributes) for attributes, value in item.read()]


class _WithHistograms(MetricExporter):
    """An exporter that sends the recorder's histograms with whatever else it sends."""

    def __init__(self, inner: MetricExporter, histograms: Callable[[], list[Metric]]) -> None:
        super().__init__()
        self._inner, self._made = inner, histograms

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        # In a scope of their own: of two scopes with one name, OTLP's encoder sends the last.
        ours = ScopeMetrics(
            InstrumentationScope(f"{SCOPE}.durations", schema_url=SCHEMA), self._made(), SCHEMA
        )
        whole = MetricsData(
            [
                ResourceMetrics(item.resource, [*item.scope_metrics, ours], item.schema_url)
                for item in metrics_data.resource_metrics
            ]
        )
        return self._inner.export(whole, timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._inner.shutdown(timeout_millis, **kwargs)
