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
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from crossfade.settings import TelemetrySettings

if TYPE_CHECKING:
    from crossfade.scraping import Scrape

SCOPE = "crossfade"
EXPORT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram: counts by upper bound (one more than bounds), and what is known of the rest."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """An instrument, and where its numbers (or distributions) are read, by attributes."""

    name: str
    unit: str
    description: str
    kind: Literal["counter", "gauge", "histogram"]
    read: Callable[[], Sequence[tuple[dict[str, str], Any]]]


class Exporters:
    """The SDK's providers, fed by a `Telemetry`. `tracer` is None where spans go nowhere."""

    def __init__(
        self,
        series: Sequence[Series],
        settings: TelemetrySettings,
        span_processors: Sequence[SpanProcessor],
        metric_exporter: MetricExporter | None,
        interval: float,
    ) -> None:
        if settings.otlp_endpoint is not None:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            endpoint = settings.otlp_endpoint
            span_processors = span_processors or (
                BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS)),
            )
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
        self._providers: list[TracerProvider | MeterProvider] = []
        self._resource = resource
        self._meters: MeterProvider | None = None
        self.tracer: Any = None
        if span_processors:
            # telemetry.py has sampled already: the SDK keeps what it is given.
            tracers = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
            for processor in span_processors:
                tracers.add_span_processor(processor)
            self.tracer = tracers.get_tracer(SCOPE)
            self._providers.append(tracers)
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
                            sum=found.sum,
                            bucket_counts=found.counts,
                            explicit_bounds=found.bounds,
                            min=found.low,
                            max=found.high,
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
        ours = ScopeMetrics(InstrumentationScope(f"{SCOPE}.durations"), self._made(), "")
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
