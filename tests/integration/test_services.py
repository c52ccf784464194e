"""Health, reflection, the controls and the gauges of a whole sidecar."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from crossfade import gauges, telemetry
from crossfade.errors import Unavailable
from crossfade.plan import Stage
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.mirror import Mirror
from crossfade.telemetry import Gauge
from crossfade_api.v1 import admin_pb2
from tests.postgres_fixture import MakeDatabase
from tests.sidecar import Running, eventually, running

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", "crossfade.v1.Crossfade", "crossfade.v1.Admin")


@pytest.fixture
async def url(postgres_database: MakeDatabase) -> str:
    return await postgres_database()


def channel_to(stack: Running) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(stack.sidecar.address)


async def status(stack: Running) -> admin_pb2.Status:
    found: admin_pb2.Status = await stack.admin.GetStatus(admin_pb2.GetStatusRequest())
    return found


# --- health --------------------------------------------------------------------------------------


async def test_everything_serves(url):
    async with running(url) as stack, channel_to(stack) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in SERVICES:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="crossfade.v1.Nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_watches_is_told_of_the_stop_and_does_not_hold_it_up(url):
    async with running(url) as stack, channel_to(stack) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=s)) for s in SERVICES]
        assert [(await watch.read()).status for watch in watches] == [SERVING] * 3
        began = time.monotonic()
        await stack.sidecar.stop(30.0)
        assert time.monotonic() - began < 20
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_call_under_way_is_answered_before_the_end(url, monkeypatch):
    asked, real = asyncio.Event(), FirestoreStore.get

    async def slow(self, paths, **options):
        asked.set()
        await asyncio.sleep(0.3)
        return await real(self, paths, **options)

    async with running(url) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        monkeypatch.setattr(FirestoreStore, "get", slow)
        call = asyncio.ensure_future(stack.client.get("tasks/1"))
        await asked.wait()
        await stack.sidecar.stop(10.0)
        assert (await call).fields == {"n": 1}


# --- reflection ----------------------------------------------------------------------------------


async def test_reflection_lists_the_services_and_describes_their_methods(url):
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
            for symbol in ("crossfade.v1.Crossfade", "crossfade.v1.Admin", "crossfade.v1.Value")
        ),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="crossfade.v1.Nobody"),
    ]
    async with running(url) as stack, channel_to(stack) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, *found, missing = [r async for r in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    # The application's own package serves more.
    assert {name for name in names if not name.startswith("violet.v1.")} == {
        "crossfade.v1.Crossfade",
        "crossfade.v1.Admin",
        "crossfade.v1.Jobs",
        "google.firestore.v1.Firestore",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    methods, symbols = {}, set()
    for answer in found:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            symbols |= {message.name for message in file.message_type}
            for service in file.service:
                methods[service.name] = [method.name for method in service.method]
    assert set(methods) == {"Crossfade", "Admin"}
    assert methods["Crossfade"] == [
        *("GetDocument", "BatchGetDocuments", "Query", "Aggregate", "Watch", "Commit"),
    ]
    assert {"GetStatus", "SetStage", "SetTraffic", "Copy"} <= set(methods["Admin"])
    assert "Value" in symbols
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# --- the controls --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["live", "ramp_down", "complete"])
async def test_a_mirror_that_was_never_written_is_not_put_in_charge(url, target):
    async with running(url, Stage.OFF) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        with pytest.raises(grpc.aio.AioRpcError, match="does not write the mirror") as caught:
            await stack.stage(target)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await status(stack)).stage == "off"
        assert (await stack.client.get("tasks/1")).fields == {"n": 1}


async def test_the_status_says_what_is_true_in_each_stage(url):
    async with running(url, Stage.OFF, read_percent=25, shadow_rate=0.5) as stack:
        await stack.client.set("tasks/1", {"n": 1})
        found = await status(stack)
        assert (found.stage, found.authority, found.epoch) == ("off", "firestore", 1)
        assert (found.copied, found.pending, found.dead_letters) == (False, 0, 0)
        assert (found.rollback_loses, found.forced_rollback_loses) == (0, 0)
        assert (found.commits, dict(found.reads_by_store)) == (1, {})
        # In off, and in dual_write, reads stay at the authority whatever is set.
        assert [(t.collection, t.read_percent) for t in found.traffic] == [("", 0)]

        await stack.stage("dual_write")
        found = await status(stack)
        assert (found.stage, found.authority, found.copied) == ("dual_write", "firestore", False)
        assert found.traffic[0].read_percent == 0
        await stack.copy()
        assert (await status(stack)).copied

        await stack.stage("shadow")
        await stack.admin.SetTraffic(
            admin_pb2.SetTrafficRequest(collection="users", read_percent=12.34, shadow_rate=0)
        )
        found = await status(stack)
        assert {t.collection: (t.read_percent, t.shadow_rate) for t in found.traffic} == {
            "": (25, 0.5),
            "users": (12.34, 0),
        }
        await stack.percent(100, shadow_rate=1)
        await stack.client.get("tasks/1")
        await stack.settled()
        found = await status(stack)
        assert dict(found.reads_by_store) == {"postgresql": 1}
        assert [(v.collection, v.verdict, v.count) for v in found.verdicts] == [
            ("tasks", "match", 1)
        ]
        latencies = {(s.operation, s.store, s.role): s for s in found.latencies}
        answered = latencies["get", "postgresql", "answered"]
        assert (answered.collection, answered.count, answered.errors) == ("tasks", 1, 0)
        assert 0 < answered.p50_ms <= answered.p95_ms <= answered.p99_ms

        await stack.stage("live")
        found = await status(stack)
        assert (found.stage, found.authority, found.epoch) == ("live", "postgresql", 2)
        assert (found.rollback_loses, found.forced_rollback_loses) == (0, 0)
        await stack.firestore_server.stop(0)  # what is written now waits
        await stack.client.set("tasks/1", {"n": 2})
        await stack.client.set("tasks/2", {"n": 2})
        found = await status(stack)
        assert (found.pending, found.rollback_loses, found.forced_rollback_loses) == (2, 0, 2)
        assert 0 < found.oldest_pending_seconds < 60


async def test_from_complete_everything_since_would_be_lost(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("tasks/before", {"n": 1})
        await stack.copy()
        await stack.stage("live")
        await stack.stage("ramp_down")
        assert (await status(stack)).stage == "ramp_down"
        await stack.stage("complete")
        found = await status(stack)
        assert (found.stage, found.authority, found.copied) == ("complete", "postgresql", True)
        assert (found.rollback_loses, found.forced_rollback_loses) == (0, 0)
        await stack.client.set("tasks/after", {"n": 1})
        await stack.client.set("tasks/after", {"n": 2})
        await stack.client.delete("tasks/before")
        found = await status(stack)
        assert (found.rollback_loses, found.forced_rollback_loses) == (2, 2)
        assert found.pending == 0


async def test_a_collection_without_a_mapping_can_be_set_once_it_has_documents(url):
    async with running(url, Stage.SHADOW) as stack:
        request = admin_pb2.SetTrafficRequest(collection="notes", read_percent=5)
        with pytest.raises(grpc.aio.AioRpcError, match="nothing is mapped"):
            await stack.admin.SetTraffic(request)
        await stack.client.set("tasks/1/notes/1", {"n": 1})
        found = await stack.admin.SetTraffic(request)
        assert [t.collection for t in found.traffic] == ["", "notes"]


async def test_traffic_can_be_set_while_firestore_is_away(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.firestore_server.stop(0)
        request = admin_pb2.SetTrafficRequest(collection="notes", read_percent=5)
        assert [t.collection for t in (await stack.admin.SetTraffic(request)).traffic] == [
            "",
            "notes",
        ]


# --- gauges --------------------------------------------------------------------------------------


# Without a follower, a budget, a settings file or a job there is nothing to show.
SWITCHED_ON = {
    telemetry.FOLLOWER_LAG,
    telemetry.BUDGET_LEFT,
    telemetry.SETTINGS_REFUSED,
    telemetry.TOKENS_REFUSED,
    telemetry.CERTIFICATE_REFUSED,
    telemetry.UNDER_WAY,  # where calls are limited
    # Of jobs that have not ended: tests/unit/test_gauges.py
    telemetry.JOB_PROGRESS,
    telemetry.JOB_DOCUMENTS,
    telemetry.JOB_PROCESSES,
    telemetry.JOB_WAITING,
}


async def test_the_gauges_are_fed(url, monkeypatch):
    monkeypatch.setattr(gauges, "WATCH_SECONDS", 0.02)

    async with running(url, Stage.SHADOW, read_percent=25) as stack:

        def shown(gauge: Gauge) -> dict[Any, float]:
            return stack.telemetry.read_gauge(gauge)

        async def fed(gauge: Gauge, expected: dict[Any, float]) -> None:
            async def there() -> bool:
                return shown(gauge) == expected

            await eventually(there)

        await stack.copy()
        await fed(telemetry.PENDING, {("default",): 0})
        assert shown(telemetry.OLDEST_PENDING) == {("default",): 0}
        assert shown(telemetry.READ_PERCENT) == {("*",): 25}
        assert shown(telemetry.ROLLBACK_LOSES) == {
            ("barrier", "default"): 0,
            ("forced", "default"): 0,
        }
        await stack.stage("live")
        assert shown(telemetry.STAGE) == {("live", "default"): 1}
        assert shown(telemetry.EPOCH) == {("default",): 2}
        await stack.firestore_server.stop(0)
        await stack.client.set("tasks/1", {"n": 1})
        await fed(telemetry.PENDING, {("default",): 1})
        await fed(telemetry.ROLLBACK_LOSES, {("barrier", "default"): 0, ("forced", "default"): 1})
        assert 0 < shown(telemetry.OLDEST_PENDING)[("default",)] < 60
        await stack.sql.execute("update crossfade.pending set dead = true")
        await fed(telemetry.DEAD_LETTERS, {("default",): 1})
        await stack.client.get("tasks/1")
        for gauge in vars(telemetry).values():
            if isinstance(gauge, Gauge) and gauge not in SWITCHED_ON:
                assert shown(gauge), gauge.name

        async def silent(*_args: Any, **_options: Any) -> Any:
            raise Unavailable("PostgreSQL went away")

        # What is not known is not shown: the last number would look like a calm sea.
        monkeypatch.setattr(Mirror, "summary", silent)
        await fed(telemetry.PENDING, {})
        assert shown(telemetry.ROLLBACK_LOSES) == {}
