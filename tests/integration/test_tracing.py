"""Traces and metrics of a whole sidecar, as a collector sees them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from crossfade.errors import Unavailable
from crossfade.pending import Pending
from crossfade.plan import Stage
from crossfade.settings import TelemetrySettings
from crossfade.stores.firestore import FirestoreStore
from crossfade.telemetry import Telemetry
from crossfade.write import Write
from crossfade_api.v1 import admin_pb2, crossfade_pb2, crossfade_pb2_grpc
from crossfade_client import AsyncCrossfade, Increment, NotFoundError, Query
from tests.postgres_fixture import MakeDatabase
from tests.sidecar import Running, eventually, running

SECRET = "s3cret-content"
SERVICE = "crossfade.v1.Crossfade"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
STORES = {"firestore": "gcp.firestore", "postgresql": "postgresql"}


@pytest.fixture
async def url(postgres_database: MakeDatabase) -> str:
    return await postgres_database()


class Traced:
    """A sidecar whose every call is traced (if not told otherwise), and what it sent."""

    def __init__(self, stack: Running, spans: InMemorySpanExporter) -> None:
        self.stack = stack
        self.client = stack.client
        self._exporter = spans

    def forget(self) -> None:
        self._exporter.clear()

    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def calls(self) -> list[ReadableSpan]:
        """Spans of RPCs."""
        return [span for span in self.spans() if span.kind is SpanKind.SERVER]

    def stores(self, role: str) -> list[ReadableSpan]:
        return [span for span in self.spans() if attributes(span).get("crossfade.role") == role]

    async def ended(self, role: str, count: int = 1) -> list[ReadableSpan]:
        """The spans of a role, when they are there: some end after the answer."""

        async def there() -> bool:
            return len(self.stores(role)) >= count

        await eventually(there)
        return self.stores(role)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context(span: ReadableSpan) -> Any:
    return span.get_span_context()


@asynccontextmanager
async def traced(
    url: str, stage: Stage = Stage.SHADOW, ratio: float = 1.0, **migration: Any
) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(
        TelemetrySettings(sample_ratio=ratio), span_processors=[SimpleSpanProcessor(exporter)]
    )
    async with running(url, stage, telemetry, **migration) as stack:
        yield Traced(stack, exporter)


def expect_store(
    span: ReadableSpan, operation: str, store: str, role: str, stage: str, collection: str = "tasks"
) -> None:
    assert span.name == f"{operation} {collection}"
    assert span.kind is SpanKind.CLIENT
    assert attributes(span) == {
        "db.system.name": STORES[store],
        "db.operation.name": operation,
        "db.collection.name": collection,
        "crossfade.role": role,
        "crossfade.stage": stage,
        **located(attributes(span)),
    }


def located(found: dict[str, Any]) -> dict[str, Any]:
    """Where the store is: any place, but a place."""
    where = {key: found.get(key) for key in ("server.address", "server.port", "db.namespace")}
    assert all(where.values())
    return where


def expect_child(span: ReadableSpan, call: ReadableSpan) -> None:
    assert span.parent is not None
    assert span.parent.span_id == context(call).span_id
    assert context(span).trace_id == context(call).trace_id


# --- calls and their stores ----------------------------------------------------------------------


async def test_each_call_is_one_span_with_a_child_for_each_store_call(url):
    async with traced(url) as sidecar:
        await sidecar.stack.copy()
        sidecar.forget()
        await sidecar.client.set("tasks/1", {"marker": SECRET})
        (put,) = await sidecar.ended("mirror")
        (call,), (commit,) = sidecar.calls(), sidecar.stores("answered")
        assert call.name == f"{SERVICE}/Commit"
        assert call.parent is None
        assert attributes(call) == {
            "rpc.system.name": "grpc",
            "rpc.method": f"{SERVICE}/Commit",
            "rpc.response.status_code": "OK",
        }
        expect_store(commit, "commit", "firestore", "answered", "shadow")
        expect_store(put, "put", "postgresql", "mirror", "shadow")
        expect_child(commit, call)
        expect_child(put, call)
        assert len(sidecar.spans()) == 3

        await sidecar.stack.settled()
        sidecar.forget()
        await sidecar.client.get("tasks/1")
        (call,), (get,) = sidecar.calls(), sidecar.stores("answered")
        assert call.name == f"{SERVICE}/GetDocument"
        expect_store(get, "get", "firestore", "answered", "shadow")
        expect_child(get, call)

        sidecar.forget()
        assert [s.id async for s in sidecar.client.query(Query("tasks"))] == ["1"]
        assert len(await sidecar.client.get_all(["tasks/1", "tasks/2"])) == 2
        query, batch = sidecar.calls()
        assert [query.name, batch.name] == [f"{SERVICE}/Query", f"{SERVICE}/BatchGetDocuments"]
        first, second = sidecar.stores("answered")
        expect_store(first, "query", "firestore", "answered", "shadow")
        expect_child(first, query)
        expect_child(second, batch)


async def test_the_mirror_is_named_when_it_answers(url):
    async with traced(url, read_percent=100) as sidecar:
        await sidecar.stack.copy()
        await sidecar.client.set("tasks/1", {"n": 1})
        await sidecar.stack.settled()
        sidecar.forget()
        await sidecar.client.get("tasks/1")
        (get,) = sidecar.stores("answered")
        expect_store(get, "get", "postgresql", "answered", "shadow")


async def test_firestore_as_mirror_is_asked_after_a_check(url):
    async with traced(url) as sidecar:
        await sidecar.client.set("tasks/1", {"n": 1})
        await sidecar.stack.copy()
        await sidecar.stack.stage("live")
        await sidecar.stack.percent(0)
        sidecar.forget()
        await sidecar.client.get("tasks/1")
        (call,), (check,), (get,) = (
            sidecar.calls(),
            sidecar.stores("check"),
            sidecar.stores("answered"),
        )
        expect_store(check, "get", "postgresql", "check", "live")
        expect_store(get, "get", "firestore", "answered", "live")
        expect_child(check, call)
        expect_child(get, call)
        assert (check.end_time or 0) <= (get.start_time or 0)


async def test_reverse_puts_are_counted_as_calls_of_the_mirror(url):
    async with traced(url) as sidecar:
        await sidecar.stack.copy()
        await sidecar.stack.stage("live")
        await sidecar.client.set("tasks/1", {"n": 1})
        await sidecar.stack.settled()
        (series,) = [s for s in sidecar.stack.telemetry.latencies() if s.role == "mirror"]
        assert (series.collection, series.operation, series.store) == ("tasks", "put", "firestore")
        assert (series.count, series.errors) == (1, 0)


# --- who decides, and who the parent is ----------------------------------------------------------


async def get(sidecar: Traced, path: str, *metadata: tuple[str, str]) -> Any:
    async with grpc.aio.insecure_channel(sidecar.stack.sidecar.address) as channel:
        stub = crossfade_pb2_grpc.CrossfadeStub(channel)
        request = crossfade_pb2.GetDocumentRequest(name=path)
        return await stub.GetDocument(request, metadata=metadata, timeout=10)


async def test_the_callers_span_is_the_parent_and_its_flag_decides(url):
    async with traced(url, Stage.OFF, ratio=0.0) as sidecar:
        await sidecar.client.set("tasks/1", {"n": 1})
        await get(sidecar, "tasks/1")
        await get(sidecar, "tasks/1", ("traceparent", UNSAMPLED))
        assert sidecar.spans() == ()
        await get(sidecar, "tasks/1", ("traceparent", SAMPLED))
        store, call = sidecar.spans()
        assert call.parent is not None
        assert format(call.parent.span_id, "016x") == PARENT
        assert {format(context(s).trace_id, "032x") for s in (store, call)} == {TRACE}
        expect_child(store, call)


async def test_a_trace_goes_from_the_client_to_both_stores(url):
    """The client's own metadata, made anew for each call, as an instrumented application does."""
    made: list[str] = []

    def metadata() -> list[tuple[str, str]]:
        made.append(f"{len(made) + 1:016x}")
        return [("traceparent", f"00-{TRACE}-{made[-1]}-01")]

    async with traced(url, ratio=0.0, shadow_rate=1.0) as sidecar:
        await sidecar.stack.copy()
        address = sidecar.stack.sidecar.address
        async with AsyncCrossfade(address, timeout=10.0, metadata=metadata) as client:
            await client.set("tasks/1", {"n": 1})
            await sidecar.ended("mirror")
            await sidecar.stack.settled()
            await client.get("tasks/1")
        (shadow,) = await sidecar.ended("shadow")
        calls = {call.name.partition("/")[2]: call for call in sidecar.calls()}
        assert {call.parent.span_id for call in calls.values()} == {int(each, 16) for each in made}
        stores = {
            attributes(span)["db.system.name"]
            for span in sidecar.stores("answered") + sidecar.stores("mirror")
            if format(context(span).trace_id, "032x") == TRACE
        }
        assert stores == {"gcp.firestore", "postgresql"}
        assert shadow.links[0].context == context(calls["GetDocument"])


async def test_a_flag_of_not_sampled_stands_where_everything_is_sampled(url):
    async with traced(url, Stage.OFF) as sidecar:
        await sidecar.client.set("tasks/1", {"n": 1})
        sidecar.forget()
        await get(sidecar, "tasks/1", ("traceparent", UNSAMPLED))
        assert sidecar.spans() == ()
        await get(sidecar, "tasks/1", ("traceparent", "nonsense"))
        assert len(sidecar.calls()) == 1
        assert sidecar.calls()[0].parent is None


# --- shadow reads --------------------------------------------------------------------------------


async def samples(stack: Running) -> list[str]:
    """The trace ids of the samples of mismatches."""
    await stack.sidecar.shadow._samples.flush()
    reply = await stack.admin.ListMismatches(admin_pb2.ListMismatchesRequest())
    return [each.latest.trace_id for each in reply.mismatches]


async def test_a_shadow_read_is_a_trace_of_its_own_with_link_and_verdict(url):
    async with traced(url, shadow_rate=1.0) as sidecar:
        await sidecar.stack.copy()
        await sidecar.client.set("tasks/1", {"marker": SECRET})
        await sidecar.stack.settled()
        sidecar.forget()
        await sidecar.client.get("tasks/1")
        (shadow,) = await sidecar.ended("shadow")
        (call,) = sidecar.calls()
        assert shadow.name == "shadow get tasks"
        assert shadow.parent is None
        assert context(shadow).trace_id != context(call).trace_id
        assert [link.context for link in shadow.links] == [context(call)]
        assert attributes(shadow) == {
            "db.system.name": "postgresql",
            "db.operation.name": "get",
            "db.collection.name": "tasks",
            "crossfade.role": "shadow",
            "crossfade.stage": "shadow",
            "crossfade.verdict": "match",
            **located(attributes(shadow)),
        }
        assert (shadow.start_time or 0) >= (sidecar.stores("answered")[0].end_time or 0)

        # A hand edit: the same version, another content.
        await sidecar.stack.sql.execute("update violet.tasks set remainder = null where id = '1'")
        sidecar.forget()
        await sidecar.client.get("tasks/1")
        (shadow,) = await sidecar.ended("shadow")
        assert attributes(shadow)["crossfade.verdict"] == "wrong"
        (call,) = sidecar.calls()
        assert await samples(sidecar.stack) == [format(context(call).trace_id, "032x")]


# --- errors --------------------------------------------------------------------------------------


async def test_errors_are_statuses_and_only_the_servers_fault_is_red(url, monkeypatch):
    async def away(*_args: Any, **_kwargs: Any) -> Any:
        raise Unavailable(SECRET)

    async with traced(url, Stage.OFF) as sidecar:
        with pytest.raises(NotFoundError):
            await sidecar.client.get("tasks/none")
        (call,), (store,) = sidecar.calls(), sidecar.stores("answered")
        assert attributes(call)["rpc.response.status_code"] == "NOT_FOUND"
        assert call.status.status_code is StatusCode.UNSET
        assert store.status.status_code is StatusCode.UNSET

        sidecar.forget()
        monkeypatch.setattr(FirestoreStore, "get", away)
        with pytest.raises(grpc.aio.AioRpcError):
            await get(sidecar, "tasks/1")
        (call,), (store,) = sidecar.calls(), sidecar.stores("answered")
        for span in (call, store):
            assert (span.status.status_code, span.status.description) == (
                StatusCode.ERROR,
                "UNAVAILABLE",
            )
            assert attributes(span)["error.type"] == "UNAVAILABLE"
        assert not any(SECRET in everything(span) for span in sidecar.spans())


async def test_a_put_that_failed_is_red_and_its_call_is_not(url, monkeypatch):
    async def fails(*_args: Any, **_kwargs: Any) -> None:
        raise Unavailable("the mirror went away")

    async with traced(url) as sidecar:
        await sidecar.stack.copy()
        sidecar.forget()
        monkeypatch.setattr(Pending, "settle", fails)
        await sidecar.client.set("tasks/1", {"n": 1})
        (put,) = await sidecar.ended("mirror")
        assert put.status.status_code is StatusCode.ERROR
        assert attributes(put)["error.type"] == "UNAVAILABLE"
        assert attributes(sidecar.calls()[0])["rpc.response.status_code"] == "OK"


async def test_a_caller_that_went_away_is_no_success(url, monkeypatch):
    asked, answer = asyncio.Event(), asyncio.Event()

    async def waits(*_args: Any, **_kwargs: Any) -> Any:
        asked.set()
        await answer.wait()

    async with traced(url, Stage.OFF) as sidecar:
        monkeypatch.setattr(FirestoreStore, "get", waits)
        call = asyncio.ensure_future(get(sidecar, "tasks/1"))
        await asked.wait()
        call.cancel()

        async def there() -> bool:
            return bool(sidecar.calls())

        await eventually(there)
        assert attributes(sidecar.calls()[0])["rpc.response.status_code"] == "CANCELLED"


def everything(span: ReadableSpan) -> str:
    """All of a span that leaves the process, as text."""
    return str(span.to_json()) + str(span.status.description) + str(span.events)


async def test_no_span_holds_what_a_document_holds(url):
    fields = {"marker": SECRET, "inner": {"deep": [SECRET]}, SECRET[:4]: {"n": 1}}
    async with traced(url, shadow_rate=1.0, read_percent=50) as sidecar:
        await sidecar.stack.copy()
        for number in range(5):
            await sidecar.client.set(f"tasks/{number}", fields)
            await sidecar.client.merge(f"tasks/{number}", {"marker": SECRET, "n": Increment(1)})
        await sidecar.stack.direct.commit([Write("tasks/1", {"marker": SECRET * 2})], timeout=5)
        query = Query("tasks").where("marker", "==", SECRET).order_by("marker").start_at(SECRET)
        assert len([s async for s in sidecar.client.query(query)]) >= 4
        for number in range(6):
            await sidecar.client.find(f"tasks/{number}")
        await sidecar.stack.settled()
        await sidecar.stack.stage("live")
        await sidecar.client.set("tasks/9", fields)
        await sidecar.client.get("tasks/9")
        await sidecar.stack.settled()
        spans = sidecar.spans()
        assert {attributes(span).get("crossfade.role") for span in spans} >= {
            "answered",
            "shadow",
            "mirror",
        }
        for span in spans:
            assert SECRET not in everything(span)


# --- on the wire ---------------------------------------------------------------------------------


class Collected:
    """What an OTLP receiver was sent, decoded: spans in order, the last of each metric."""

    def __init__(self) -> None:
        self.services: set[str] = set()
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        self.raw = b""

    def take(self, request: Any) -> None:
        self.raw += request.SerializeToString()
        parts = (getattr(request, f"resource_{what}", ()) for what in ("spans", "metrics"))
        for sent in chain(*parts):
            self.services.add(plain(sent.resource.attributes)["service.name"])
            for scope in getattr(sent, "scope_spans", ()):
                self.spans += scope.spans
            for scope in getattr(sent, "scope_metrics", ()):
                self.metrics |= {metric.name: metric for metric in scope.metrics}


class TraceSide(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collected: Collected) -> None:
        self._collected = collected

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._collected.take(request)
        return trace_service_pb2.ExportTraceServiceResponse()


class MetricsSide(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, collected: Collected) -> None:
        self._collected = collected

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._collected.take(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collected, str]]:
    """An OTLP receiver on a real port, and its endpoint."""
    collected = Collected()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(TraceSide(collected), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(MetricsSide(collected), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield collected, f"http://127.0.0.1:{port}"
    await server.stop(0)


def plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


async def test_a_collector_gets_traces_and_metrics(url, collector):
    collected, endpoint = collector
    telemetry = Telemetry(
        TelemetrySettings(otlp_endpoint=endpoint, sample_ratio=1.0, service_name="here")
    )
    async with running(url, Stage.SHADOW, telemetry, shadow_rate=1.0) as stack:
        await stack.copy()
        for number in range(3):
            await stack.client.set(f"tasks/{number}", {"marker": SECRET})
        await stack.settled()
        for number in range(3):
            await stack.client.get(f"tasks/{number}")
        await stack.settled()
        await asyncio.to_thread(telemetry.flush)
        await asyncio.to_thread(telemetry.close)

    assert collected.services == {"here"}
    assert SECRET.encode() not in collected.raw
    names = [span.name for span in collected.spans]
    assert names.count(f"{SERVICE}/Commit") == names.count(f"{SERVICE}/GetDocument") == 3
    assert names.count("shadow get tasks") == 3
    by_id = {span.span_id: span for span in collected.spans}
    commits = [span for span in collected.spans if span.name == "commit tasks"]
    assert [by_id[span.parent_span_id].name for span in commits] == [f"{SERVICE}/Commit"] * 3

    metric = collected.metrics["db.client.operation.duration"]
    assert metric.unit == "s"
    points = {
        tuple(sorted(plain(point.attributes).items())): point
        for point in metric.histogram.data_points
    }
    for operation, store, role in (
        ("commit", "gcp.firestore", "answered"),
        ("put", "postgresql", "mirror"),
        ("get", "gcp.firestore", "answered"),
        ("get", "postgresql", "shadow"),
    ):
        point = points[
            ("crossfade.role", role),
            ("db.collection.name", "tasks"),
            ("db.operation.name", operation),
            ("db.system.name", store),
        ]
        assert point.count == sum(point.bucket_counts) == 3
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        assert 0 < point.sum < 60
    (verdicts,) = collected.metrics["crossfade.verdicts"].sum.data_points
    assert plain(verdicts.attributes) == {
        "db.collection.name": "tasks",
        "crossfade.verdict": "match",
    }
    assert verdicts.as_int == 3
    assert plain(collected.metrics["crossfade.stage"].gauge.data_points[0].attributes) == {
        "crossfade.stage": "shadow",
        "crossfade.group": "default",
    }
    rpcs = collected.metrics["rpc.server.call.duration"].histogram.data_points
    assert {plain(point.attributes)["rpc.method"] for point in rpcs} >= {f"{SERVICE}/Commit"}


async def test_a_collector_gets_what_was_not_chosen_but_went_wrong(url, collector):
    collected, endpoint = collector
    telemetry = Telemetry(TelemetrySettings(otlp_endpoint=endpoint, sample_ratio=0.0))
    async with running(url, Stage.SHADOW, telemetry, shadow_rate=1.0) as stack:
        await stack.copy()
        for number in range(3):
            await stack.client.set(f"tasks/{number}", {"marker": SECRET})
        await stack.settled()
        for number in range(3):
            await stack.client.get(f"tasks/{number}")
        await stack.settled()
        await stack.sql.execute("update violet.tasks set remainder = null where id = '1'")
        await stack.client.get("tasks/1")
        await stack.settled()
        sampled = await samples(stack)
        (pair,) = [e for e in telemetry.paired.comparisons() if e.operation == "get"]
        assert pair.count == 4
        await asyncio.to_thread(telemetry.close)
    names = sorted(span.name for span in collected.spans)
    assert names == [f"{SERVICE}/GetDocument", "get tasks", "shadow get tasks"]
    by_name = {span.name: span for span in collected.spans}
    call, shadow = by_name[f"{SERVICE}/GetDocument"], by_name["shadow get tasks"]
    assert plain(call.attributes)["crossfade.kept"] == "mismatch"
    assert plain(shadow.attributes)["crossfade.verdict"] == "wrong"
    assert [link.span_id for link in shadow.links] == [call.span_id]
    assert sampled == [call.trace_id.hex()]
    assert SECRET.encode() not in collected.raw
    difference = collected.metrics["crossfade.paired.difference"].histogram.data_points
    assert [(point.count, point.HasField("sum")) for point in difference] == [(4, False)]


async def test_a_collector_gets_traces_alone_where_prometheus_fetches_the_metrics(url, collector):
    collected, endpoint = collector
    telemetry = Telemetry(
        TelemetrySettings(otlp_endpoint=endpoint, sample_ratio=1.0, push_metrics=False)
    )
    async with running(url, Stage.SHADOW, telemetry) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        scrape = await asyncio.to_thread(telemetry.scraped)
        await asyncio.to_thread(telemetry.close)
    assert {span.name for span in collected.spans} >= {f"{SERVICE}/Commit", "commit tasks"}
    assert collected.metrics == {}
    assert b"crossfade_commits_total" in scrape.text("")[0]


async def test_the_comparison_of_latencies_has_exemplars_of_traces(url, collector):
    collected, endpoint = collector
    telemetry = Telemetry(TelemetrySettings(otlp_endpoint=endpoint, sample_ratio=1.0))
    async with running(url, Stage.SHADOW, telemetry, shadow_rate=1.0) as stack:
        await stack.copy()
        await stack.client.set("tasks/1", {"marker": SECRET})
        await stack.settled()
        await stack.client.get("tasks/1")
        await stack.settled()
        await asyncio.to_thread(telemetry.close)
    (call,) = [span for span in collected.spans if span.name == f"{SERVICE}/GetDocument"]
    for name in ("crossfade.paired.difference", "crossfade.paired.duration"):
        for point in collected.metrics[name].histogram.data_points:
            (exemplar,) = point.exemplars
            assert (exemplar.trace_id, exemplar.span_id) == (call.trace_id, call.span_id)


@pytest.mark.parametrize("kind", ["hangs", "refuses"])
async def test_a_collector_that_is_of_no_use_is_not_felt(url, kind):
    """It takes connections and says nothing, or is not there: calls are answered as ever."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if kind == "refuses":
        server.close()
        await server.wait_closed()
    telemetry = Telemetry(
        TelemetrySettings(otlp_endpoint=f"http://127.0.0.1:{port}", sample_ratio=1.0),
        metric_interval=0.2,
    )
    async with running(url, Stage.SHADOW, telemetry, shadow_rate=1.0) as stack:
        await stack.copy()
        await stack.client.set("tasks/1", {"n": 1})
        # More spans than the exporter keeps: what it cannot send it drops, and nobody waits.
        for _ in range(20):
            await asyncio.gather(*(stack.client.get("tasks/1") for _ in range(50)))
        await stack.settled()
        (calls,) = [
            e for e in telemetry.latencies() if (e.operation, e.role) == ("get", "answered")
        ]
        assert (calls.count, calls.errors) == (1_000, 0)
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(telemetry.close, 1.0)
        assert asyncio.get_running_loop().time() - began < 10
    server.close()
