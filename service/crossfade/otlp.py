"""What telemetry.py recorded, in OpenTelemetry's shapes, on its way out of the process.

Counters and gauges are observable instruments of the SDK. The SDK has no observable
histogram: counters with an attribute `le` in its place would be understood by nothing
but hand-made queries, so the exporter is wrapped, and adds ordinary histograms to
what the SDK collected.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from time import time_ns
from typing import Any
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
from crossfade.telemetry import (
    INSTRUMENTS,
    LOWEST,
    PER_OCTAVE,
    STORE,
    SYSTEMS,
    Counter,
    Durations,
    Gauge,
    Instrument,
    Labels,
    Telemetry,
    bound,
)

SCOPE = "crossfade"
EXPORT_SECONDS = 5
# 61 µs to 32 s, a bucket to an octave: a series costs a backend 20 numbers, not 116.
_OCTAVES = range(-14, 6)
BOUNDS = tuple(2.0**octave for octave in _OCTAVES)
_CUTS = [(octave - LOWEST) * PER_OCTAVE + 1 for octave in _OCTAVES]


class Exporters:
    """The SDK's providers, fed by a `Telemetry`. `tracer` is None where spans go nowhere."""

    def __init__(
        self,
        telemetry: Telemetry,
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
        self._telemetry = telemetry
        self._providers: list[TracerProvider | MeterProvider] = []
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
            meters = MeterProvider([reader], resource, shutdown_on_exit=False)
            self._providers.append(meters)
            self._observe(meters.get_meter(SCOPE))

    def _observe(self, meter: Any) -> None:
        read: Callable[[], Mapping[Labels, float]]
        for item in INSTRUMENTS:
            if isinstance(item, Counter):
                make, read = meter.create_observable_counter, partial(self._telemetry.counts, item)
            elif isinstance(item, Gauge):
                make, read = (
                    meter.create_observable_gauge,
                    partial(self._telemetry.read_gauge, item),
                )
            else:
                continue
            make(item.name, [partial(_observations, item, read)], item.unit, item.description)

    def _histograms(self) -> list[Metric]:
        start, now = self._telemetry.started_ns, time_ns()
        return [
            Metric(
                item.name,
                item.description,
                item.unit,
                Histogram(
                    [
                        _point(_attributes(item, labels), durations, start, now)
                        for labels, durations in held.items()
                    ],
                    AggregationTemporality.CUMULATIVE,
                ),
            )
            for item, held in self._telemetry.latency_series()
            if held
        ]

    def flush(self) -> None:
        for provider in self._providers:
            with suppress(Exception):
                provider.force_flush()

    def close(self) -> None:
        for provider in self._providers:
            with suppress(Exception):
                provider.shutdown()


def _attributes(item: Instrument, labels: Labels) -> dict[str, str]:
    return {
        name: SYSTEMS.get(value, value) if name == STORE else str(value)
        for name, value in zip(item.labels, labels, strict=True)
    }


def _observations(
    item: Instrument, read: Callable[[], Mapping[Labels, float]], _: CallbackOptions
) -> Iterable[Observation]:
    return [Observation(value, _attributes(item, labels)) for labels, value in read().items()]


def _point(
    attributes: dict[str, str], durations: Durations, start_ns: int, now_ns: int
) -> HistogramDataPoint:
    """The series with a bucket to an octave; the fine ones fit into them exactly."""
    fine = list(durations.buckets)
    held = [index for index, count in enumerate(fine) if count]
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=start_ns,
        time_unix_nano=now_ns,
        count=sum(fine),
        sum=durations.sum,
        bucket_counts=[sum(fine[a:b]) for a, b in pairwise((0, *_CUTS, len(fine)))],
        explicit_bounds=BOUNDS,
        min=bound(held[0] - 1) if held and held[0] else 0.0,
        max=bound(held[-1]) if held else 0.0,
    )


class _WithHistograms(MetricExporter):
    """An exporter that sends the recorder's histograms with whatever else it sends."""

    def __init__(self, inner: MetricExporter, histograms: Callable[[], list[Metric]]) -> None:
        super().__init__()
        self._inner, self._made = inner, histograms

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        ours = ScopeMetrics(InstrumentationScope(SCOPE), self._made(), "")
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
