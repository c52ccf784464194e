"""The commands that ask a running sidecar, as an operator types them."""

import asyncio
import json
from typing import Any

import grpc
import pytest

from crossfade import cli, logs
from crossfade.asking import duration, moment, share
from crossfade.errors import Unavailable
from crossfade.plan import Stage
from crossfade.settings import LogSettings
from crossfade.stores.postgres.lanes import Lanes
from crossfade_api.v1 import admin_pb2
from crossfade_client import Query
from tests.sidecar import Running, eventually, running


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


@pytest.fixture
async def stack(url):
    # The sidecar's log would go to the same stdout as what the commands say.
    logs.configure(LogSettings(level="error"))
    async with running(url, Stage.SHADOW, shadow_rate=1.0) as stack:
        await stack.copy()
        await stack.client.set("notes/1", {"mail": "mail@example.org", "n": 1})
        await stack.settled()
        yield stack


@pytest.fixture
def typed(stack: Running, capsys) -> Any:
    """Runs a command against the sidecar: exit code, stdout, stderr."""

    async def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        # A command has an event loop of its own.
        code = await asyncio.to_thread(cli.main, [*words, "--address", stack.sidecar.address])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


async def spoil(stack: Running) -> None:
    await stack.sql.execute("""update crossfade.documents set fields = '{"n": 1}'""")
    await stack.client.get("notes/1")

    async def known() -> bool:
        await stack.sidecar.shadow._samples.flush()
        return bool(await stack.sql.fetchval("select count(*) from crossfade.mismatches"))

    await eventually(known)


async def test_mismatches_are_listed_and_explained(stack, typed):
    assert await typed("mismatches") == (0, "", "")
    assert (await typed("mismatches", "explain", "notes/1"))[0] == 0
    stack.sidecar.shadow._repairs._mark = None  # so that it stays as it is
    await spoil(stack)
    code, out, _ = await typed("mismatches", "--collection", "notes", "--since", "1h")
    assert code == 1
    assert out.splitlines()[0].split()[:4] == ["collection", "verdict", "fields", "count"]
    assert out.splitlines()[1].split()[:5] == ["notes", "wrong", "mail", "1", "notes/1"]
    code, out, _ = await typed("mismatches", "explain", "notes/1")
    assert code == 1
    assert "notes/1: wrong (firestore decides; firestore of 20" in out
    assert "missing" in out
    assert "string of 16 #" in out
    assert "mail@" not in out
    code, out, _ = await typed("mismatches", "--json", "--field", "mail")
    assert json.loads(out)["mismatches"][0]["first"]["differences"][0]["kind"] == "missing"
    assert await typed("mismatches", "--since", "2999-01-01T00:00:00Z") == (0, "", "")


async def test_a_stage_is_shown_tried_and_forced(stack, typed):
    code, out, _ = await typed("stage")
    assert code == 0
    assert "shadow" in out
    code, out, _ = await typed("stage", "set", "live", "--dry-run")
    assert code == 1
    assert "backfill complete" in out
    assert "hold" in out
    assert "stage shadow" in out
    code, _, err = await typed("stage", "set", "live")
    assert code == 1
    assert err.startswith("crossfade: stage live is not reached: verdicts hold")
    assert err.rstrip().endswith("(FAILED_PRECONDITION)")
    code, out, _ = await typed("stage", "set", "live", "--force", "--reason", "a rehearsal")
    assert (code, out.splitlines()[-1].startswith("stage live")) == (0, True)
    code, out, _ = await typed("audit", "--json")
    (entry,) = [each for each in json.loads(out)["entries"] if each["action"] == "stage"]
    assert (entry["before"], entry["after"], entry["reason"]) == ("shadow", "live", "a rehearsal")
    assert "@" in entry["who"]


async def test_rollback_takes_one_command(stack, typed):
    await typed("traffic", "set", "notes", "40")
    await typed("ramp", "start", "notes")
    await typed("stage", "set", "live", "--force")
    code, out, _ = await typed("rollback", "--reason", "p99")
    assert (code, out) == (0, "stage shadow: Firestore decides and answers all reads\n")
    snapshot = stack.sidecar.control.snapshot
    assert snapshot.stage is Stage.SHADOW
    assert {snapshot.plan_of(name).threshold for name in ("", "notes", "tasks")} == {0}
    _, out, _ = await typed("ramp")
    assert "stopped" in out


async def test_rollback_by_force_needs_no_postgresql_and_is_told_when_it_is_back(
    stack, typed, monkeypatch
):
    await typed("stage", "set", "live", "--force")
    await stack.client.set("notes/1", {"n": 2})
    await stack.settled()
    away = True

    def refusing(real: Any) -> Any:
        async def call(self, *args):
            if away:
                raise Unavailable("PostgreSQL cannot be reached")
            return await real(self, *args)

        return call

    for name in ("_take", "_call"):
        monkeypatch.setattr(Lanes, name, refusing(getattr(Lanes, name)))
    code, _, err = await typed("rollback", "--reason", "it is gone")
    assert code == 1
    assert "PostgreSQL cannot be reached" in err
    assert stack.sidecar.control.snapshot.stage is Stage.LIVE
    code, out, _ = await typed("rollback", "--force", "--reason", "it is gone")
    assert (code, out) == (0, "stage dual_write: Firestore decides; PostgreSQL does not answer\n")
    await stack.client.set("notes/1", {"n": 3})
    away = False

    async def audited() -> bool:
        _, out, _ = await typed("audit", "--json")
        stages = [each for each in json.loads(out)["entries"] if each["action"] == "stage"]
        return [(each["before"], each["after"], each["reason"]) for each in stages[:1]] == [
            ("live", "dual_write", "it is gone (by force, without PostgreSQL)")
        ]

    await eventually(audited, 20)
    assert (await stack.client.get("notes/1")).fields == {"n": 3}


async def test_traffic_is_shown_set_and_reset(stack, typed):
    code, out, _ = await typed("traffic", "set", "notes", "12.5", "--shadow-rate", "0.25")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["collection", "percent", "shadow", "rate"],
        ["(default)", "0", "1"],
        ["notes", "12.5", "0.25"],
    ]
    await typed("traffic", "set", "all", "7")
    assert stack.sidecar.control.snapshot.plan_of("notes").threshold == 700
    assert stack.sidecar.control.snapshot.plan_of("tasks").threshold == 700
    code, out, _ = await typed("traffic", "reset", "all", "--json")
    assert [each["read_percent"] for each in json.loads(out)["traffic"]] == [0, 0]


async def test_a_ramp_is_started_shown_and_stopped(stack, typed):
    code, out, _ = await typed(
        *("ramp", "start", "notes", "--steps", "5,50", "--bake", "90s"),
        *("--max-mismatch", "0.01%", "--min-samples", "10", "--json"),
    )
    (ramp,) = json.loads(out)["ramps"]
    assert (code, ramp["status"]) == (0, "running")
    assert (ramp["steps"], ramp["bake_seconds"]) == ([5, 50], 90)
    code, out, _ = await typed("ramp", "stop", "all")
    assert (code, "stopped" in out) == (0, True)


async def test_latencies_of_both_stores_are_compared(stack, typed):
    code, out, _ = await typed("latency", "--since", "10m")
    assert (code, out) == (0, "no read was compared in this time\n")
    for _ in range(5):
        await stack.client.get("notes/1")
    assert [each.id async for each in stack.client.query(Query("notes"))] == ["1"]
    await stack.settled()
    code, out, _ = await typed("latency", "--since", "10m")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:3] == ["collection", "operation", "reads"]
    assert lines[1][:4] == ["notes", "get", "5", "Firestore"]
    assert lines[2][0] == "PostgreSQL"
    assert lines[3][1:3] == ["slower", "difference"]
    assert lines[3][3][0] in "+-"
    assert lines[4][:4] == ["notes", "query", "1", "Firestore"]
    code, out, _ = await typed("latency", "--json", "--collection", "notes")
    get, query = json.loads(out)["comparisons"]
    assert (get["operation"], get["count"], query["count"]) == ("get", "5", "1")
    assert 0 < get["firestore"]["p50_ms"] <= get["firestore"]["p99_ms"]
    assert sum(int(each["count"]) for each in get["buckets"]) == 5
    reply = await stack.admin.GetLatency(
        admin_pb2.GetLatencyRequest(since_seconds=60, step_seconds=10)
    )
    assert sum(each.count for each in reply.moments) == 6
    for request in (
        admin_pb2.GetLatencyRequest(since_seconds=3601),
        admin_pb2.GetLatencyRequest(since_seconds=-1),
        admin_pb2.GetLatencyRequest(step_seconds=1),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="is outside"):
            await stack.admin.GetLatency(request)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("traffic", "set", "taskz", "5"), "nothing is mapped, set or stored"),
        (("stage", "set", "lively"), "is none of off, dual_write"),
        (("ramp", "start", "notes", "--steps", "5,4"), "each percent is greater"),
    ],
)
async def test_what_the_sidecar_refuses_ends_with_1(typed, words, told):
    code, _, err = await typed(*words)
    assert (code, told in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("traffic", "set", "notes"), "give a PERCENT"),
        (("traffic", "set", "notes", "101"), "100"),
        (("ramp", "start", "notes", "--steps", "a,b"), "--steps: percents"),
        (("ramp", "start", "notes", "--bake", "10"), "is no duration"),
        (("ramp", "start", "notes", "--max-mismatch", "2"), "is no share"),
        (("mismatches", "--since", "yesterday"), "is no duration"),
        (("latency", "--since", "2h"), "is not within an hour"),
    ],
)
async def test_what_cannot_be_meant_ends_with_2(typed, words, told):
    code, _, err = await typed(*words)
    assert (code, told in err) == (2, True)


def test_a_sidecar_that_is_not_there_ends_with_2(capsys):
    assert cli.main(["stage", "--address", "127.0.0.1:9"]) == 2
    assert "no sidecar answers at 127.0.0.1:9" in capsys.readouterr().err


def test_words_for_times_and_shares():
    assert [duration(text) for text in ("90s", "1.5m", "2h", "7d")] == [90, 90, 7_200, 604_800]
    assert [share(text) for text in ("0.01%", "0.0001", "5 %", "1e-4")] == [
        pytest.approx(1e-4),
        pytest.approx(1e-4),
        pytest.approx(0.05),
        pytest.approx(1e-4),
    ]
    assert moment("2026-03-01T12:00:00+02:00").isoformat() == "2026-03-01T10:00:00"
