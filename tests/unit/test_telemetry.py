import ast
import io
import json
import logging
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from crossfade import logs, telemetry
from crossfade.durations import SIGNED_BOUNDS, Durations, Spread
from crossfade.plan import StoreName
from crossfade.settings import LogSettings, TelemetrySettings
from crossfade.telemetry import Counter, Gauge, Instrument, Latency, Telemetry
from crossfade.tracing import MAX_HELD, Trace, current

SERVICE = Path(telemetry.__file__).parent
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"


@pytest.fixture
def recorder():
    return Telemetry()


# --- the table ---------------------------------------------------------------------------------


def test_names_are_unique_and_described():
    names = [item.name for item in telemetry.INSTRUMENTS]

    assert len(set(names)) == len(names)
    assert all(item.description and item.unit for item in telemetry.INSTRUMENTS)


def declared() -> dict[str, Instrument]:
    return {name: value for name, value in vars(telemetry).items() if isinstance(value, Instrument)}


def recorded() -> dict[tuple[str, str], tuple[str, int | None]]:
    """Every `.count(NAME, labels...)` and `.gauge(NAME, ...)` of the service, by place."""
    found = {}
    for file in SERVICE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"count", "gauge"}
                and node.args
                and isinstance(node.args[0], ast.Name)
                and node.args[0].id.isupper()
            ):
                starred = any(isinstance(argument, ast.Starred) for argument in node.args)
                labels = None if starred else len(node.args) - 1
                found[f"{file.name}:{node.lineno}", node.func.attr] = (node.args[0].id, labels)
    return found


def test_every_record_in_the_code_is_that_of_the_table():
    for (place, method), (name, labels) in recorded().items():
        item = declared()[name]
        assert isinstance(item, Counter if method == "count" else Gauge), place
        if method == "count" and labels is not None:
            assert labels == len(item.labels), f"{place}: {item.name} takes {item.labels}"


def test_a_record_with_other_labels_is_refused(recorder):
    with pytest.raises(TypeError, match=r"crossfade\.verdicts"):
        recorder.count(telemetry.VERDICTS, "tasks")


# --- the recorder ------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("median", [0.00008, 0.0012, 0.9])
def test_quantiles_are_good_to_a_tenth(recorder, q, median):
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(math.log(median), 0.6) for _ in range(20_000))
    for value in values:
        recorder.record_store("tasks", "get", "postgresql", "answered", value)

    (found,) = recorder.quantiles(q)

    assert found == pytest.approx(values[int(q * len(values))], rel=0.1)


def test_a_single_duration_is_known_to_its_bucket(recorder):
    recorder.record_store("tasks", "get", "postgresql", "answered", 0.005)

    low, median, high = recorder.quantiles(0.0, 0.5, 1.0)

    assert low < 0.005 <= high
    assert median == pytest.approx(0.005, rel=0.1)
    assert high / low < 1.2


@pytest.mark.parametrize("seconds", [0.0, -0.001, 1e-9, 1e9])
def test_durations_out_of_range_are_counted_at_the_ends(recorder, seconds):
    recorder.record_store("tasks", "get", "postgresql", "answered", seconds)

    assert recorder.latencies()[0].count == 1
    assert recorder.quantiles(0.5)[0] is not None


def test_quantiles_without_a_record_are_none(recorder):
    recorder.record_store("tasks", "get", "postgresql", "answered", 0.001)

    assert recorder.quantiles(0.5, 0.99, store="firestore") == (None, None)


def test_quantiles_are_taken_over_every_series_that_fits(recorder):
    for collection, seconds in (("tasks", 0.001), ("tasks", 0.002), ("users", 1.0)):
        recorder.record_store(collection, "get", "postgresql", "answered", seconds)
    recorder.record_store("tasks", "get", "firestore", "shadow", 5.0)

    assert recorder.quantiles(1.0, collection="tasks", store="postgresql")[0] < 0.01
    assert recorder.quantiles(1.0, store="postgresql")[0] == pytest.approx(1.0, rel=0.2)
    assert recorder.quantiles(1.0, role="shadow")[0] == pytest.approx(5.0, rel=0.2)
    assert sum(recorder.buckets(operation="get")) == 4


def test_the_snapshot_of_latencies(recorder):
    for error in (None, None, "UNAVAILABLE"):
        recorder.record_store("tasks", "get", StoreName.POSTGRESQL, "answered", 0.001, error)
    recorder.record_store("tasks", "get", StoreName.FIRESTORE, "shadow", 0.002)

    shadow, answered = recorder.latencies()

    assert (shadow.store, shadow.role, shadow.count, shadow.errors) == ("firestore", "shadow", 1, 0)
    assert (answered.collection, answered.operation) == ("tasks", "get")
    assert (answered.count, answered.errors) == (3, 1)
    assert answered.p50 <= answered.p95 <= answered.p99
    key = ("tasks", "get", "postgresql", "answered", "UNAVAILABLE")
    assert recorder.counts(telemetry.STORE_ERRORS) == {key: 1}


def test_counters_add_up(recorder):
    recorder.count(telemetry.VERDICTS, "tasks", "match")
    recorder.count(telemetry.VERDICTS, "tasks", "match", by=4)
    recorder.count(telemetry.VERDICTS, "users", "wrong")

    assert recorder.counts(telemetry.VERDICTS) == {("tasks", "match"): 5, ("users", "wrong"): 1}
    assert recorder.total(telemetry.VERDICTS) == 6
    assert recorder.total(telemetry.READS) == 0


def test_a_gauge_that_fails_is_logged_and_left_out(recorder):
    def broken() -> float:
        raise RuntimeError("no")

    recorder.gauge(telemetry.PENDING, broken)
    with structlog.testing.capture_logs() as captured:
        assert recorder.read_gauge(telemetry.PENDING) == {}

    assert captured[0]["gauge"] == "crossfade.pending"
    assert recorder.read_gauge(telemetry.EPOCH) == {}


# --- metrics on their way out ------------------------------------------------------------------


class Collected(MetricExporter):
    """Keeps what it is given; fails on request."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.calls = 0
        self.metrics: dict[str, Any] = {}

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.calls += 1
        if self.fails:
            raise ConnectionError("away")
        for resource in metrics_data.resource_metrics:
            self.resource = resource.resource
            for scope in resource.scope_metrics:
                self.metrics |= {metric.name: metric for metric in scope.metrics}
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=30_000, **kwargs):
        pass


def points(metric) -> dict[Any, float]:
    return {tuple(sorted(p.attributes.items())): p.value for p in metric.data.data_points}


def test_everything_recorded_is_exported():
    exporter = Collected()
    recorder = Telemetry(TelemetrySettings(service_name="here"), metric_exporter=exporter)
    recorder.count(telemetry.VERDICTS, "tasks", "match", by=3)
    recorder.count(telemetry.READS, "tasks", StoreName.POSTGRESQL)
    recorder.gauge(telemetry.PENDING, lambda: {("default",): 7})
    recorder.gauge(telemetry.STAGE, lambda: {("shadow", "default"): 1})
    for seconds in (0.0009, 0.0011, 0.0015, 0.003):
        recorder.record_store("tasks", "get", StoreName.FIRESTORE, "answered", seconds)
    recorder.record_rpc("crossfade.v1.Crossfade/GetDocument", "OK", 0.004)

    recorder.flush()
    recorder.close()

    found = exporter.metrics
    assert exporter.resource.attributes["service.name"] == "here"
    assert points(found["crossfade.verdicts"]) == {
        (("crossfade.verdict", "match"), ("db.collection.name", "tasks")): 3
    }
    assert points(found["crossfade.reads"]) == {
        (("db.collection.name", "tasks"), ("db.system.name", "postgresql")): 1
    }
    assert points(found["crossfade.pending"]) == {(("crossfade.group", "default"),): 7}
    assert points(found["crossfade.stage"]) == {
        (("crossfade.group", "default"), ("crossfade.stage", "shadow")): 1
    }
    assert points(found["process.uptime"])[()] > 0
    (rpc,) = found["rpc.server.call.duration"].data.data_points
    assert rpc.attributes["rpc.response.status_code"] == "OK"
    (series,) = found["db.client.operation.duration"].data.data_points
    assert found["db.client.operation.duration"].unit == "s"
    assert series.attributes == {
        "db.collection.name": "tasks",
        "db.operation.name": "get",
        "db.system.name": "gcp.firestore",
        "crossfade.role": "answered",
    }
    assert (series.count, series.sum) == (4, pytest.approx(0.0065))
    assert series.min <= 0.0009
    assert series.max >= 0.003
    by_bound = dict(zip(series.explicit_bounds, series.bucket_counts, strict=False))
    assert {bound: count for bound, count in by_bound.items() if count} == {
        2.0**-10: 1,  # 0.98 ms
        2.0**-9: 2,  # 1.95 ms
        2.0**-8: 1,  # 3.9 ms
    }
    assert len(series.bucket_counts) == len(series.explicit_bounds) + 1


def test_the_buckets_of_an_export_hold_every_duration_where_it_belongs():
    durations = Durations()
    rng = random.Random(2)
    values = [10 ** rng.uniform(-7, 3) for _ in range(2_000)]
    for value in values:
        durations.add(value)

    found = durations.distribution()

    expected = [0] * (len(found.bounds) + 1)
    for value in values:
        expected[sum(value > bound for bound in found.bounds)] += 1
    assert found.counts == expected
    assert found.low <= min(values)
    assert found.sum == pytest.approx(sum(values))


def test_an_exporter_that_fails_is_not_felt():
    exporter = Collected(fails=True)
    recorder = Telemetry(metric_exporter=exporter)

    recorder.count(telemetry.REVOKED)
    recorder.flush()
    recorder.count(telemetry.REVOKED)
    recorder.close()

    assert exporter.calls >= 1
    assert recorder.total(telemetry.REVOKED) == 2


def test_a_collector_that_hangs_does_not_hold_up_the_end():
    class Hanging(Collected):
        def export(self, metrics_data, timeout_millis=10_000, **kwargs):
            self.calls += 1
            time.sleep(5)
            return MetricExportResult.SUCCESS

    exporter = Hanging()
    recorder = Telemetry(metric_exporter=exporter)
    started = time.monotonic()

    recorder.close(timeout=0.2)

    assert time.monotonic() - started < 4
    assert exporter.calls == 1


def test_without_a_collector_the_sdk_is_not_even_loaded():
    code = (
        "import sys; from crossfade.telemetry import Telemetry; Telemetry().start('m');"
        "sys.exit(any(m.startswith('opentelemetry.sdk') for m in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- traces ------------------------------------------------------------------------------------


def traced(ratio: float = 1.0, slow: float = 60.0) -> tuple[Telemetry, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    processors = [SimpleSpanProcessor(exporter)]
    settings = TelemetrySettings(sample_ratio=ratio, slow=slow)
    return Telemetry(settings, span_processors=processors), exporter


def begin(recorder: Telemetry, name: str = "m", traceparent: str | None = None) -> Trace:
    trace = recorder.start(name, traceparent)
    assert trace is not None
    return trace


def spans(exporter: InMemorySpanExporter) -> list[Any]:
    return list(exporter.get_finished_spans())


def test_nothing_is_traced_where_spans_go_nowhere():
    assert Telemetry(TelemetrySettings(sample_ratio=1)).start("m", PARENT) is None


@pytest.mark.parametrize(
    ("ratio", "traceparent", "sampled"),
    [
        (0.0, None, False),
        (1.0, None, True),
        (0.0, PARENT, True),
        (1.0, UNSAMPLED, False),
        (1.0, "nonsense", True),
        (0.0, "nonsense", False),
        (0.0, PARENT.replace("b7ad6b7169203331", "0" * 16), False),
        (0.0, "ff" + PARENT[2:], False),
        (0.0, PARENT.replace("0af7", "xyzq"), False),
    ],
)
def test_the_caller_decides_what_is_traced_else_the_ratio(ratio, traceparent, sampled):
    recorder, exporter = traced(ratio)

    begin(recorder, "m", traceparent).end("OK")

    assert bool(spans(exporter)) is sampled


def test_a_ratio_in_between_traces_its_share():
    recorder, _ = traced(0.25)

    share = sum(begin(recorder).kept for _ in range(4_000)) / 4_000

    assert 0.2 < share < 0.3


def test_a_call_and_its_stores_are_one_trace():
    recorder, exporter = traced()
    trace = begin(recorder, "crossfade.v1.Crossfade/GetDocument", PARENT)
    now = time.time_ns()
    trace.store_call("get", StoreName.POSTGRESQL, "answered", "tasks", "shadow", now, now + 1_000)
    trace.store_call(
        "get", "firestore", "answered", "tasks", "shadow", now, now + 2_000, "UNAVAILABLE"
    )
    trace.end("NOT_FOUND")

    first, second, call = spans(exporter)

    assert trace.id == "0af7651916cd43dd8448eb211c80319c"
    assert format(call.parent.span_id, "x") == "b7ad6b7169203331"
    assert call.kind is SpanKind.SERVER
    assert call.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert call.status.status_code is StatusCode.UNSET
    assert {first.parent.span_id, second.parent.span_id} == {call.context.span_id}
    assert {format(s.context.trace_id, "032x") for s in (first, second, call)} == {trace.id}
    assert (first.start_time, first.end_time) == (now, now + 1_000)
    assert first.kind is SpanKind.CLIENT
    assert dict(first.attributes) == {
        "db.system.name": "postgresql",
        "db.operation.name": "get",
        "db.collection.name": "tasks",
        "crossfade.role": "answered",
        "crossfade.stage": "shadow",
    }
    assert first.status.status_code is StatusCode.UNSET
    assert second.attributes["db.system.name"] == "gcp.firestore"
    assert second.attributes["error.type"] == "UNAVAILABLE"
    assert second.status.status_code is StatusCode.ERROR


def test_the_servers_fault_is_an_error_of_the_call():
    recorder, exporter = traced()
    begin(recorder).end("UNAVAILABLE")

    (call,) = spans(exporter)

    assert (call.status.status_code, call.status.description) == (StatusCode.ERROR, "UNAVAILABLE")


def test_a_shadow_read_is_a_trace_of_its_own_that_points_back():
    recorder, exporter = traced()
    trace = begin(recorder)
    trace.end("OK")
    shadowed(recorder, trace, "match")

    call, shadow = spans(exporter)

    assert shadow.parent is None
    assert shadow.context.trace_id != call.context.trace_id
    assert shadow.links[0].context == call.context
    assert shadow.attributes["crossfade.verdict"] == "match"
    assert shadow.attributes["crossfade.role"] == "shadow"
    assert (shadow.start_time, shadow.end_time) == (5, 9)


def shadowed(recorder: Telemetry, call: Trace, verdict: str, *, bad: bool = False) -> None:
    assert recorder.tracing is not None
    recorder.tracing.shadow(
        call,
        operation="get",
        store="firestore",
        collection="tasks",
        stage="live",
        verdict=verdict,
        start_ns=5,
        end_ns=9,
        bad=bad,
    )


def read(trace: Trace, error: str | None = None) -> None:
    now = time.time_ns()
    trace.store_call("get", "firestore", "answered", "tasks", "shadow", now, now + 9, error)


# --- what is kept although it was not chosen ---------------------------------------------------


def kept(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span.attributes.get("crossfade.kept") for span in spans(exporter)}


def test_a_call_that_is_not_chosen_and_well_is_not_sent():
    recorder, exporter = traced(0.0)
    for status in ("OK", "NOT_FOUND", "FAILED_PRECONDITION", "CANCELLED"):
        trace = begin(recorder)
        read(trace)
        trace.end(status)
        shadowed(recorder, trace, "match")
    assert spans(exporter) == []


@pytest.mark.parametrize("traceparent", [None, UNSAMPLED])
def test_a_call_that_fails_is_sent_with_all_that_it_did(traceparent):
    recorder, exporter = traced(0.0)
    trace = begin(recorder, "m", traceparent)
    read(trace)
    assert spans(exporter) == []
    trace.end("UNAVAILABLE")
    store, call = spans(exporter)
    assert store.parent.span_id == call.context.span_id
    assert call.attributes["crossfade.kept"] == "error"
    assert call.context.trace_flags.sampled


def test_a_call_whose_store_failed_is_sent_though_the_other_answered():
    recorder, exporter = traced(0.0)
    trace = begin(recorder)
    read(trace, "UNAVAILABLE")
    read(trace)
    trace.end("OK")
    assert kept(exporter) == {"get tasks": None, "m": "error"}
    assert len(spans(exporter)) == 3


def test_a_put_that_fails_after_the_answer_brings_its_call():
    recorder, exporter = traced(0.0)
    trace = begin(recorder)
    read(trace)
    trace.end("OK")
    assert spans(exporter) == []
    read(trace, "DEADLINE_EXCEEDED")
    assert sorted(span.name for span in spans(exporter)) == ["get tasks", "get tasks", "m"]


def test_a_slow_call_is_sent_and_a_stream_never_is_slow():
    recorder, exporter = traced(0.0, slow=0.01)
    for lasting in (True, False):
        trace = begin(recorder)
        trace.started_ns -= 20_000_000
        trace.end("OK", lasting=lasting)
        assert kept(exporter) == ({} if lasting else {"m": "slow"})


def test_a_mismatch_brings_the_call_that_ended_before():
    recorder, exporter = traced(0.0)
    trace = begin(recorder)
    read(trace)
    trace.end("OK")
    shadowed(recorder, trace, "wrong", bad=True)
    store, call, shadow = spans(exporter)
    assert (store.name, call.attributes["crossfade.kept"]) == ("get tasks", "mismatch")
    assert shadow.links[0].context == call.context


def test_what_a_long_stream_did_is_bounded_until_it_is_kept():
    recorder, exporter = traced(0.0)
    trace = begin(recorder)
    for _ in range(MAX_HELD + 7):
        read(trace)
    trace.end("INTERNAL")
    found = spans(exporter)
    assert len(found) == MAX_HELD + 1
    assert found[-1].attributes["crossfade.spans.dropped"] == 7


# --- the comparison of latencies ---------------------------------------------------------------


def test_a_spread_counts_negative_values_and_knows_its_quantiles():
    spread, rng = Spread(), random.Random(4)
    values = sorted(rng.gauss(-0.001, 0.004) for _ in range(20_000))
    for value in values:
        spread.add(value)
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        exact = values[int(q * len(values))]
        assert spread.quantile(q) == pytest.approx(exact, rel=0.1, abs=2e-5)
    found = spread.distribution(signed=True)
    expected = [0] * (len(SIGNED_BOUNDS) + 1)
    for value in values:
        expected[sum(value > bound for bound in SIGNED_BOUNDS)] += 1
    assert (found.counts, found.sum) == (expected, None)
    assert found.low <= values[0]
    assert values[-1] <= found.high


def test_pairs_are_exported_with_the_spans_in_which_they_were_measured():
    exporter = Collected()
    recorder = Telemetry(metric_exporter=exporter)
    recorder.paired.add("tasks", "get", 0.004, 0.001, (7, 9))
    recorder.paired.add("tasks", "get", 0.001, 0.003)
    recorder.flush()
    recorder.close()
    (difference,) = exporter.metrics["crossfade.paired.difference"].data.data_points
    assert (difference.count, difference.sum) == (2, None)
    assert difference.attributes == {"db.collection.name": "tasks", "db.operation.name": "get"}
    (exemplar,) = difference.exemplars
    assert exemplar.value == pytest.approx(-0.003)
    assert (exemplar.trace_id, exemplar.span_id) == (7, 9)
    by_store = {
        point.attributes["db.system.name"]: point
        for point in exporter.metrics["crossfade.paired.duration"].data.data_points
    }
    assert by_store["gcp.firestore"].sum == pytest.approx(0.005)
    assert by_store["postgresql"].count == 2


def test_spans_that_cannot_be_sent_are_not_felt():
    class Broken(SpanExporter):
        calls = 0

        def export(self, spans):
            Broken.calls += 1
            raise ConnectionError("away")

    class Unwilling(SimpleSpanProcessor):
        def on_end(self, span):
            raise RuntimeError("no")

    recorder = Telemetry(
        TelemetrySettings(sample_ratio=1),
        span_processors=[Unwilling(Broken()), SimpleSpanProcessor(Broken())],
    )

    begin(recorder).end("OK")
    recorder.close()

    assert Broken.calls == 1
    assert recorder.start("m") is None


def test_only_latencies_counters_and_gauges_exist():
    assert {type(item) for item in telemetry.INSTRUMENTS} == {Counter, Gauge, Latency}


# --- logs --------------------------------------------------------------------------------------


@pytest.fixture
def stream():
    """Where logs go while a test changes their configuration."""
    handlers, level = logging.root.handlers, logging.root.level
    yield io.StringIO()
    structlog.reset_defaults()
    logging.root.handlers = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize("shape", ["console", "json"])
def test_a_traceback_holds_no_local_variables(stream, shape):
    logs.configure(LogSettings(format=shape), stream)
    document = {"email": "s3cret"}
    try:
        document["missing"]
    except KeyError:
        structlog.get_logger().exception("it failed", action="read")
        logging.getLogger("library").exception("so did this")

    text = stream.getvalue()

    assert "it failed" in text
    assert "so did this" in text
    assert "KeyError" in text
    assert "s3cret" not in text


def test_json_logs_are_one_object_a_line(stream):
    logs.configure(LogSettings(format="json", level="warning"), stream)
    structlog.get_logger().info("left out")
    structlog.get_logger().warning("kept", action="copy", documents=3)
    logging.getLogger("library").warning("kept too")

    ours, theirs = map(json.loads, stream.getvalue().splitlines())

    assert (ours["event"], ours["level"], ours["documents"]) == ("kept", "warning", 3)
    assert (theirs["event"], theirs["logger"]) == ("kept too", "library")


def test_a_log_line_bears_the_ids_of_its_call(stream):
    logs.configure(LogSettings(format="json"), stream)
    recorder, _ = traced(0.0)
    token = current.set(begin(recorder, "m", PARENT))
    structlog.get_logger().warning("within")
    logging.getLogger("library").warning("within, too")
    current.reset(token)
    structlog.get_logger().warning("without")
    ours, theirs, without = map(json.loads, stream.getvalue().splitlines())
    for line in (ours, theirs):
        assert line["trace_id"] == PARENT[3:35]
        assert len(line["span_id"]) == 16
    assert "trace_id" not in without


def test_a_caller_that_hung_up_is_no_error(stream):
    logs.configure(LogSettings(level="warning"), stream)
    grpc = logging.getLogger("grpc._cython.cygrpc")
    grpc.error("ExecuteBatchError raised in core by servicer method [%s]", "/service/Method")
    assert not stream.getvalue()
    grpc.error("Unexpected [%s] raised by servicer method [%s]", "ValueError", "/service/Method")
    assert "ValueError" in stream.getvalue()
