"""/metrics: what Prometheus fetches, from OpenTelemetry's meter provider.

The exporter's own rules of naming differ from the collector's (units of "1", names that hold
their unit already), and alerts and dashboards know only one name. So metrics come to it under
the names of prometheus.py, and without a unit that it could append.
"""

from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Any, Literal

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
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from crossfade import prometheus


class Scrape:
    """`reader` is what the provider is given. `histograms` are added to what it collects."""

    def __init__(self, histograms: Callable[[], list[Metric]]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._lock = Lock()
        self.reader = _Reader(self._registry, histograms)

    def text(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, in the format that the caller likes best."""
        encode, kind = choose_encoder(accept)
        with self._lock:  # two scrapes at a time would share what was collected
            return encode(self._registry), kind


class _Reader(PrometheusMetricReader):
    def __init__(self, registry: CollectorRegistry, histograms: Callable[[], list[Metric]]) -> None:
        # Before the base: registering collects once.
        self._made = histograms
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
        super()._receive_metrics(MetricsData(whole), timeout_millis, **kwargs)


def _named(metric: Metric) -> Metric:
    kind: Literal["counter", "gauge", "histogram"] = "gauge"
    if isinstance(metric.data, Sum):
        kind = "counter"
    elif isinstance(metric.data, Histogram):
        kind = "histogram"
    name = prometheus.family(metric.name, metric.unit or "", kind)
    return replace(metric, name=name, unit="")
