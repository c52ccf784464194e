"""Spans as bytes: the same that OpenTelemetry's own encoder makes; and the queue before them."""

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from crossfade.otlp import SCHEMA, SCOPE, Spans
from crossfade.otlp_spans import BATCH, MOST, SpanQueue, encode_request
from crossfade.tracing import SpanData

RESOURCE = {"service.name": "here", "service.instance.id": "1"}
IDS = st.integers(1, 2**64 - 1)
TRACE_IDS = st.integers(1, 2**128 - 1)
TIMES = st.integers(0, 2**63)
SPANS = st.builds(
    SpanData,
    name=st.text(max_size=20),
    kind=st.sampled_from([SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL]),
    trace_id=TRACE_IDS,
    span_id=IDS,
    parent_id=st.just(0) | IDS,
    attributes=st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers(0, 2**62)),
    start_ns=TIMES,
    end_ns=TIMES,
    error=st.none() | st.text(min_size=1, max_size=9),
    links=st.lists(st.tuples(TRACE_IDS, IDS), max_size=2),
    remote_parent=st.just(False),
)


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_end(self, span) -> None:
        self.spans.append(span)

    def export(self, spans):
        return SpanExportResult.SUCCESS


def as_opentelemetry_has_it(spans: list[SpanData]) -> ExportTraceServiceRequest:
    kept = Kept()
    sink = Spans([kept], Resource(RESOURCE))  # type: ignore[list-item]
    for span in spans:
        sink(span)
    return encode_spans(kept.spans)


@given(st.lists(SPANS, min_size=1, max_size=3))
def test_the_bytes_are_those_of_opentelemetry(spans):
    theirs = as_opentelemetry_has_it(spans)
    version = theirs.resource_spans[0].scope_spans[0].scope.version
    data = encode_request(spans, RESOURCE, (SCOPE, version), SCHEMA)
    assert ExportTraceServiceRequest.FromString(data) == theirs


def test_a_parent_in_another_process_is_marked():
    span = SpanData("m", SpanKind.SERVER, 7, 8, 9, {}, 1, 2, remote_parent=True)
    theirs = as_opentelemetry_has_it([span])
    version = theirs.resource_spans[0].scope_spans[0].scope.version
    data = encode_request([span], RESOURCE, (SCOPE, version), SCHEMA)
    assert ExportTraceServiceRequest.FromString(data) == theirs
    assert theirs.resource_spans[0].scope_spans[0].spans[0].flags & 0x200


# --- the queue ---------------------------------------------------------------------------------


def span(number: int = 1) -> SpanData:
    return SpanData("m", SpanKind.SERVER, 7, number, 0, {}, 1, 2)


def test_what_is_taken_is_sent_in_order_and_in_batches():
    sent: list[Any] = []
    queue = SpanQueue(sent.append)
    for number in range(2 * BATCH + 5):
        queue(span(number + 1))
    queue.shutdown()
    assert [each.span_id for batch in sent for each in batch] == list(range(1, 2 * BATCH + 6))
    assert max(map(len, sent)) <= BATCH


def test_it_is_sent_without_being_asked_for():
    came = threading.Event()
    queue = SpanQueue(lambda _: came.set())
    queue(span())
    assert came.wait(10)
    queue.shutdown()


@pytest.mark.parametrize("kind", ["hangs", "fails"])
def test_a_collector_of_no_use_costs_a_bounded_queue_and_no_time(kind):
    asked, go_on = threading.Event(), threading.Event()

    def send(_):
        asked.set()
        if kind == "fails":
            raise ConnectionError("away")
        go_on.wait(30)

    queue = SpanQueue(send)
    queue(span())
    assert asked.wait(10)
    slowest = 0.0
    for _ in range(3 * MOST):
        began = time.perf_counter()
        queue(span())
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 5  # as long as a process may stand still, not as long as a collector
    assert kind == "fails" or queue.dropped >= 2 * MOST
    go_on.set()
    queue.shutdown()
