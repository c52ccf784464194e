"""Ramps over real stores: wrong data, errors and latency in the mirror; stages and their checks."""

import asyncio
from typing import Any

import grpc
import pytest

from crossfade.errors import Unavailable
from crossfade.jobs.ramp import Ramping
from crossfade.plan import Stage
from crossfade.telemetry import RAMP_MOVES
from crossfade_api.v1 import admin_pb2
from tests.ramped import DOCUMENTS, LIMITS, audited, percent, ramping, trouble
from tests.sidecar import Running, eventually, running
from tests.validated import validated


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("crossfade.jobs.ramp.PERIOD_SECONDS", 0.1)
    monkeypatch.setattr("crossfade.jobs.ramp.LEASE_SECONDS", 1.0)
    monkeypatch.setattr("crossfade.jobs.ramp.IDLE_SECONDS", 0.5)
    monkeypatch.setattr("crossfade.rpc.ramps.SETTLE_SECONDS", 0.3)
    # Samples of both stores' latency come as fast as reads do.
    monkeypatch.setattr("crossfade.shadow.ALONE_PER_SECOND", 1_000.0)


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


async def begin(stack: Running, **changes: Any) -> admin_pb2.Ramp:
    request: dict[str, Any] = {
        "collection": "notes",
        "steps": [5, 50, 100],
        "bake_seconds": 0.5,
        "who": "me",
    }
    ramp: admin_pb2.Ramp = await stack.admin.StartRamp(
        admin_pb2.StartRampRequest(**(request | LIMITS | changes))
    )
    return ramp


async def ramp_of(stack: Running) -> admin_pb2.Ramp:
    reply = await stack.admin.ListRamps(admin_pb2.ListRampsRequest())
    found: admin_pb2.Ramp
    (found,) = reply.ramps
    return found


async def until(stack: Running, **wanted: Any) -> admin_pb2.Ramp:
    async def reached() -> bool:
        found = await ramp_of(stack)
        return all(getattr(found, name) == value for name, value in wanted.items())

    await eventually(reached, 40)
    return await ramp_of(stack)


async def applied(stack: Running, wanted: float) -> None:
    """The ramp's own record comes first: reads follow it in a moment."""

    async def follows() -> bool:
        return percent(stack) == wanted

    await eventually(follows)


async def test_a_ramp_goes_to_its_end_and_tells_of_every_step(url):
    async with ramping(url) as stack:
        begun = await begin(stack)
        assert (begun.status, begun.percent, begun.who) == ("running", 0, "me")
        await until(stack, status="done", percent=100)
        await applied(stack, 100)
        moves = [(entry.before, entry.after) for entry in await audited(stack, "ramp")]
        assert moves[::-1] == [
            ("none", "0 %"),
            ("0 %", "5 %"),
            ("5 %", "50 %"),
            ("50 %", "100 %"),
            ("100 %", "100 %"),
        ]
        last = (await audited(stack, "ramp"))[0]
        assert {check.name for check in last.checks} == {"verdicts", "error rates", "p99 ratio"}
        assert last.reason.startswith("done: 0 of ")


async def test_a_ramp_without_reads_holds(url):
    async with running(url, Stage.SHADOW, shadow_rate=1.0) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"n": 1})
        await begin(stack, bake_seconds=0.1)

        async def said() -> bool:
            return "nothing was compared" in (await ramp_of(stack)).reason

        await eventually(said)
        await asyncio.sleep(0.5)
        found = await ramp_of(stack)
        assert (found.status, found.percent) == ("running", 0)


async def test_wrong_data_take_the_reads_back_to_0_and_it_goes_on_when_they_are_mended(url):
    async with ramping(url) as stack:
        await begin(stack)
        await until(stack, percent=50)
        await stack.sql.execute("""update crossfade.documents set fields = '{"n": -1}'""")

        async def back() -> bool:
            return percent(stack) == 0

        await eventually(back, 20)
        found = await until(stack, setbacks=1)
        assert (found.status, found.percent, found.setbacks) == ("running", 0, 1)
        await stack.sql.execute(
            """update crossfade.documents
            set fields = jsonb_build_object('n', regexp_replace(path, '.*/', '')::int)"""
        )
        await until(stack, status="done", percent=100)
        assert any("verdicts: " in entry.reason for entry in await audited(stack, "ramp"))
        assert stack.telemetry.counts(RAMP_MOVES)["notes", "back"] >= 1


@pytest.mark.parametrize("kind", ["errors", "latency"])
async def test_a_mirror_that_fails_or_is_slow_takes_the_reads_a_step_back(url, monkeypatch, kind):
    slow = 2.0
    if kind == "latency":
        # A little longer than a read takes that is begun in trouble.
        monkeypatch.setattr("crossfade.rpc.ramps.SETTLE_SECONDS", slow + 0.5)
    async with ramping(url, readers=12, pause=0.03) as stack:
        # Far from what a busy machine does to the one store or the other.
        ratio = 12 if kind == "latency" else 1000
        await begin(stack, steps=[5, 50], max_p99_ratio=ratio)
        await until(stack, percent=50)
        await applied(stack, 50)
        with monkeypatch.context() as patch:
            trouble(stack, patch, kind, slow)

            async def back() -> bool:
                return percent(stack) < 50

            await eventually(back, 60)
            name = "error rates" if kind == "errors" else "p99 ratio"

            async def told() -> bool:
                (entry, *_) = await audited(stack, "ramp")
                return "fail" in {each.outcome for each in entry.checks if each.name == name}

            await eventually(told, 30)
        found = await until(stack, status="done", percent=50)
        assert found.setbacks >= 1


async def test_a_step_that_was_not_done_to_its_end_is_done_by_the_next_look(url, monkeypatch):
    """As after a sidecar that died: what it remembered is told of, and done."""
    async with ramping(url) as stack:
        died: list[float] = []

        async def dies(self: Ramping, collection: str, percent: float) -> None:
            if percent == 50 and not died:
                died.append(percent)
                raise Unavailable("it died")
            await real(self, collection, percent)

        real = Ramping._set
        monkeypatch.setattr(Ramping, "_set", dies)
        await begin(stack, steps=[5, 50])
        await until(stack, percent=50)
        (entry, *_) = await audited(stack, "ramp")
        assert (entry.before, entry.after) == ("5 %", "50 %")
        await applied(stack, 50)
        await until(stack, status="done")
        assert died == [50]


async def test_a_ramp_survives_the_sidecar_that_carried_it(url):
    async with ramping(url) as stack:
        await begin(stack, bake_seconds=1.0)
        await until(stack, percent=5)
        async with stack.another(shadow_rate=1.0, shadow={"lag": 5.0}) as second:
            # The first one stops to look, as a dead one would.
            (task,) = [each for each in stack.sidecar._tasks if each.get_name() == "ramp"]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            holder = await stack.sql.fetchval("select holder from crossfade.ramps")

            async def taken_over() -> bool:
                now = await stack.sql.fetchval("select holder from crossfade.ramps")
                return now is not None and now != holder

            await eventually(taken_over, 15)
            reader = asyncio.create_task(_read(second))
            try:
                found = await until(second, status="done", percent=100)
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            assert found.who == "me"


async def _read(stack: Running) -> None:
    while True:
        for number in range(DOCUMENTS):
            await stack.client.get(f"notes/{number}")


async def test_a_ramp_can_be_stopped_and_leaves_the_reads_where_they_are(url):
    async with ramping(url) as stack:
        await begin(stack, bake_seconds=60)
        await stack.admin.StopRamp(admin_pb2.StopRampRequest(collection="notes", who="me"))
        found = await ramp_of(stack)
        assert (found.status, found.reason) == ("stopped", "stopped by me")
        (entry, _) = await audited(stack, "ramp")
        assert (entry.before, entry.after, entry.who) == ("running", "stopped", "me")


async def test_a_ramp_that_is_none_is_refused(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("notes/1", {"n": 1})
        for changes, words in (
            ({"steps": [5, 5]}, "steps: each percent is greater"),
            ({"steps": [101]}, "at most 100"),
            ({"max_mismatch": -0.1}, "max_mismatch: it is not negative"),
            ({"collection": "taskz"}, "nothing is mapped, set or stored"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=words):
                await begin(stack, **changes)


async def test_without_a_ramp_the_figures_are_reported_seldom(url, monkeypatch):
    monkeypatch.setattr("crossfade.jobs.ramp.IDLE_SECONDS", 3_600.0)
    async with running(url, Stage.SHADOW) as stack:

        async def reported() -> str:
            return str(await stack.sql.fetchval("select max(at) from crossfade.figures"))

        async def first() -> bool:
            return await reported() != "None"

        await eventually(first)
        before = await reported()
        await asyncio.sleep(0.5)
        assert await reported() == before
        await stack.client.set("notes/1", {"n": 1})
        await begin(stack)
        begun = await reported()

        async def again() -> bool:
            return await reported() > begun

        await eventually(again)


# --- stages ------------------------------------------------------------------------------------


async def set_stage(stack: Running, stage: str, **options: Any) -> admin_pb2.Status:
    status: admin_pb2.Status = await stack.admin.SetStage(
        admin_pb2.SetStageRequest(stage=stage, who="me", reason="why", **options)
    )
    return status


async def test_a_checked_change_of_stage_is_held_and_says_why(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("notes/1", {"n": 1})
        status = await set_stage(stack, "live", dry_run=True)
        outcomes = {check.name: check.outcome for check in status.checks}
        assert outcomes["backfill complete"] == "hold"
        assert outcomes["verdicts"] == "hold"
        assert status.stage == "shadow"
        with pytest.raises(grpc.aio.AioRpcError, match="backfill complete hold: the first copy"):
            await set_stage(stack, "live")
        await stack.copy()
        await stack.settled()
        with pytest.raises(grpc.aio.AioRpcError, match="verdicts hold: nothing was compared"):
            await set_stage(stack, "live")
        assert (await set_stage(stack, "live", force=True)).stage == "live"
        # Nothing holds the way back.
        assert (await set_stage(stack, "shadow")).stage == "shadow"
        reply = await stack.admin.ListAudit(admin_pb2.ListAuditRequest())
        back, there = [each for each in reply.entries if each.action == "stage"]
        assert (there.before, there.after, there.who, there.reason) == (
            "shadow",
            "live",
            "me",
            "why",
        )
        assert "hold" in {check.outcome for check in there.checks}
        assert (back.before, back.after, list(back.checks)) == ("live", "shadow", [])


async def test_a_stage_is_reached_when_the_checks_pass(url):
    async with ramping(url, ramp=LIMITS | {"max_p99_ratio": 500}) as stack:
        await stack.settled()
        assert (await validated(stack))["equal"]

        async def ready() -> bool:
            status = await set_stage(stack, "live", dry_run=True)
            return {check.outcome for check in status.checks} == {"pass"}

        await eventually(ready, 20)
        assert (await set_stage(stack, "live")).stage == "live"


async def test_traffic_that_was_set_is_in_the_audit_trail(url):
    async with running(url, Stage.SHADOW) as stack:
        await stack.client.set("notes/1", {"n": 1})
        await stack.admin.SetTraffic(
            admin_pb2.SetTrafficRequest(
                collection="notes", read_percent=12.5, who="me", reason="a try"
            )
        )
        (entry,) = await audited(stack, "traffic")
        assert (entry.before, entry.after) == ("0 %, shadow rate 0", "12.5 %, shadow rate 0")
        assert (entry.who, entry.reason) == ("me", "a try")
