"""/metrics: what Prometheus fetches, from OpenTelemetry's meter provider.

The exporter's own rules of naming differ from the collector's (units of "1", names that hold
their unit already), and alerts and dashboards know only one name. So metrics come to it under
the names of prometheus.py, and without a unit that it could append. Exemplars, which it leaves
out, are added again; Prometheus asks for the format that has them (OpenMetrics) by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from threading import Lock
from typing import Any, Literal, TypeAlias

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    Histogram,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import format_trace_id
from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar
from prometheus_client.core import Metric as PrometheusMetric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from crossfade import prometheus

Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]
"""The name of a series, and its labels."""


class Scrape:
    """`reader` is what the provider is given. `histograms` are added to what it collects."""

    def __init__(self, histograms: Callable[[], list[Metric]]) -> None:
        collected = CollectorRegistry(auto_describe=False)
        self._registry = CollectorRegistry(auto_describe=False)
        self._lock = Lock()
        self.reader = _Reader(collected, histograms)
        self._registry.register(_WithExemplars(collected, self.reader))

    def text(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, in the format that the caller likes best."""
        encode, kind = choose_encoder(accept)
        with self._lock:  # two scrapes at a time would share what was collected
            return encode(self._registry), kind


class _Reader(PrometheusMetricReader):
    def __init__(self, registry: CollectorRegistry, histograms: Callable[[], list[Metric]]) -> None:
        # Before the base: registering collects once.
        self._made = histograms
        self.exemplars: dict[Series, list[Exemplar]] = {}
        """Of the last collection, by bucket series without its bound."""
        super().__init__(registry=registry, scope_info_enabled=False)

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        made = ScopeMetrics(InstrumentationScope("crossfade.durations"), self._made(), "")
        whole = [
            ResourceMetrics(
                each.resource,
                [
                    ScopeMetrics(scope.scope, [_named(item) for item in scope.metrics], "")
                    for scope in (*each.scope_metrics, made)
                ],
                each.schema_url,
            )
            for each in metrics_data.resource_metrics
        ]
        self.exemplars = {
            series: found
            for each in whole
            for scope in each.scope_metrics
            for metric in scope.metrics
            for series, found in _exemplars(metric)
        }
        super()._receive_metrics(MetricsData(whole), timeout_millis, **kwargs)


class _WithExemplars(Collector):
    """What was collected, with the exemplars that the exporter leaves out."""

    def __init__(self, collected: CollectorRegistry, reader: _Reader) -> None:
        self._collected, self._reader = collected, reader

    def collect(self) -> Iterator[PrometheusMetric]:
        for family in self._collected.collect():
            below = -inf
            for index, sample in enumerate(family.samples):
                if "le" not in sample.labels:
                    below = -inf
                    continue
                bound = float(sample.labels["le"])
                if bound <= below:
                    below = -inf  # the next series begins
                for exemplar in self._reader.exemplars.get(_series(sample), ()):
                    if below < exemplar.value <= bound:
                        family.samples[index] = sample._replace(exemplar=exemplar)
                below = bound
            yield family


def _series(sample: Sample) -> Series:
    return sample.name, frozenset(item for item in sample.labels.items() if item[0] != "le")


def _exemplars(metric: Metric) -> Iterator[tuple[Series, list[Exemplar]]]:
    if not isinstance(metric.data, Histogram):
        return
    for point in metric.data.data_points:
        labels = {
            prometheus.label(name): str(value) for name, value in (point.attributes or {}).items()
        }
        yield (
            (f"{metric.name}_bucket", frozenset(labels.items())),
            [
                Exemplar(
                    {"trace_id": format_trace_id(each.trace_id)},
                    each.value,
                    each.time_unix_nano / 1e9,
                )
                for each in point.exemplars
                if each.trace_id
            ],
        )


def _named(metric: Metric) -> Metric:
    kind: Literal["counter", "gauge", "histogram"] = "gauge"
    if isinstance(metric.data, Sum):
        kind = "counter"
    elif isinstance(metric.data, Histogram):
        kind = "histogram"
    name = prometheus.family(metric.name, metric.unit or "", kind)
    return replace(metric, name=name, unit="")
