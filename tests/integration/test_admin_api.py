"""The admin API: every path against a whole sidecar, who may ask, and what is refused how."""

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr

from crossfade import prometheus
from crossfade.admin.guard import POLICY
from crossfade.errors import Unavailable
from crossfade.jobs.validate import How
from crossfade.plan import Stage
from crossfade.telemetry import INSTRUMENTS, STORE_DURATION
from tests.http_caller import call, events
from tests.sidecar import eventually, running
from tests.validated import validated

API = "/api/v1"
TOKENS = "ops admin {0}, app writer {1}, prometheus reader {2}"
ADMIN, WRITER = "admin-token-of-the-tests", "writer-token-of-the-tests"
READER = "reader-token-of-the-tests"


@pytest.fixture
async def stack(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW, http={}) as made:
        await made.copy()
        yield made


@pytest.fixture
def ask(stack):
    async def asked(path, body=None, **options):
        return await call(stack.sidecar.web.address, API + path, body, **options)

    return asked


async def got(answer: Any) -> Any:
    found = await answer
    assert found.status == 200, found.body
    return found.json


async def refused(answer, status: int, code: str, field: str | None = None) -> str:
    found = await answer
    assert (found.status, found.json["code"], found.json["field"]) == (status, code, field)
    return found.json["message"]


# --- stages ------------------------------------------------------------------------------------


async def test_a_stage_is_looked_at_refused_forced_and_rolled_back(stack, ask):
    stages = await got(ask("/stages"))
    assert (stages["stage"], stages["next"], len(stages["stages"])) == ("shadow", "live", 6)

    looked = await got(ask("/stages/set", {"stage": "live", "dry_run": True}))
    assert (looked["changed"], looked["passed"]) == (False, False)
    held = {check["name"]: check["outcome"] for check in looked["checks"]}
    assert (held["backfill complete"], held["verdicts"]) == ("pass", "hold")
    assert looked["status"]["stage"] == "shadow"

    message = await refused(ask("/stages/set", {"stage": "live"}), 409, "FAILED_PRECONDITION")
    assert "verdicts hold" in message
    assert (await got(ask("/status")))["stage"] == "shadow"

    forced = {"stage": "live", "force": True, "who": "ada", "reason": "a test"}
    assert (await got(ask("/stages/set", forced)))["status"]["authority"] == "postgresql"
    assert (await got(ask("/stages")))["next"] == "ramp_down"

    back = await got(ask("/stages/rollback", {"who": "bob", "reason": "enough"}))
    assert (back["status"]["stage"], back["status"]["authority"]) == ("shadow", "firestore")
    assert [each["read_percent"] for each in back["status"]["traffic"]] == [0]

    trail = (await got(ask("/audit")))["entries"]
    stages_set = [(e["who"], e["before"], e["after"]) for e in trail if e["action"] == "stage"]
    assert stages_set == [("bob", "live", "shadow"), ("ada", "shadow", "live")]
    assert {each["outcome"] for each in trail[-1]["checks"]} == {"pass", "hold"}


# --- traffic and ramps -------------------------------------------------------------------------


async def test_traffic_is_looked_at_and_then_set(stack, ask):
    wanted = {"collection": "tasks", "read_percent": 25, "shadow_rate": 0.5}
    looked = await got(ask("/traffic", {**wanted, "dry_run": True}, method="PUT"))
    assert not looked["changed"]
    assert (looked["before"]["read_percent"], looked["after"]["read_percent"]) == (0, 25)
    assert {each["name"] for each in looked["checks"]} == {"verdicts", "error rates", "p99 ratio"}
    assert [each["collection"] for each in (await got(ask("/traffic")))["traffic"]] == [""]

    done = await got(ask("/traffic", wanted, method="PUT"))
    assert done["changed"]
    assert done["after"] == {**looked["after"], "read_percent": 25, "shadow_rate": 0.5}
    assert stack.sidecar.control.snapshot.plan_of("tasks").threshold == 2500
    reset = await got(ask("/traffic", {"collection": "tasks", "reset": True}, method="PUT"))
    assert reset["after"]["read_percent"] == 0


async def test_a_ramp_begins_and_is_stopped(ask):
    begun = await got(ask("/ramps", {"collection": "tasks", "steps": [5, 100], "who": "ada"}))
    assert (begun["status"], begun["percent"], begun["who"]) == ("running", 0, "ada")
    assert begun["steps"] == [5, 100]
    stopped = await got(ask("/ramps/stop", {"collection": "tasks", "who": "bob"}))
    assert [(each["status"], each["reason"]) for each in stopped["ramps"]] == [
        ("stopped", "stopped by bob")
    ]
    assert (await got(ask("/ramps"))) == stopped


# --- what is not in order ----------------------------------------------------------------------


async def test_mismatches_and_what_differs_now(stack, ask):
    await stack.percent(0, 1.0)
    await stack.client.set("tasks/1", {"status": "pending", "priority": "high"})
    await stack.settled()
    await stack.sql.execute("update violet.tasks set priority = 'low' where id = '1'")

    told = await got(ask("/mismatches/explain?name=tasks/1"))
    assert (told["verdict"], told["authority"]) == ("wrong", "firestore")
    (difference,) = told["differences"]
    assert (difference["field"], difference["kind"]) == ("priority", "value")
    assert difference["authority"]["type"] == "string"
    assert difference["authority"]["hash"] != difference["mirror"]["hash"]
    assert difference["authority"]["value"] == "", "values are not shown unless settings allow it"

    async def found() -> bool:
        await stack.client.get("tasks/1")
        return bool((await got(ask("/mismatches")))["mismatches"])

    await eventually(found)
    (mismatch,) = (await got(ask("/mismatches?collection=tasks&field=priority")))["mismatches"]
    assert (mismatch["verdict"], mismatch["fields"]) == ("wrong", ["priority"])
    assert mismatch["latest"]["path"] == "tasks/1"
    late = "/mismatches?since=2100-01-01T00:00:00Z"
    assert (await got(ask(late)))["mismatches"] == []


async def test_dead_letters_are_listed_and_tried_again(stack, ask):
    await stack.sql.execute(
        """insert into crossfade.pending (intent, path, collection_path, collection_id, epoch,
            lease_until, reason, attempts, failure, dead)
        select 'made-' || n, 'tasks/' || n, 'tasks', 'tasks', 1, now(), 'commit', 9, 'ABORTED', true
        from generate_series(1, 3) as n"""
    )
    page = await got(ask("/dead-letters?limit=2"))
    assert ([each["path"] for each in page["letters"]], page["more"]) == (
        ["tasks/1", "tasks/2"],
        True,
    )
    rest = await got(ask("/dead-letters?after=tasks/2"))
    assert ([each["cause"] for each in rest["letters"]], rest["more"]) == (["ABORTED"], False)
    assert (await got(ask("/dead-letters/retry", {"path": "tasks/1"}))) == {"retried": 1}
    assert (await got(ask("/dead-letters/retry", {"all": True}))) == {"retried": 2}


async def test_drift_says_what_is_not_as_planned(stack, ask):
    await stack.client.set("tasks/1", {"priority": 7})
    drift = await got(ask("/drift"))
    assert {"collection": "tasks", "field": "priority", "cause": "type", "count": 1} in drift[
        "misfits"
    ]
    assert drift["schema_differences"] is None
    # The tests' databases are made without migrations, and that is told.
    before = (await got(ask("/drift?schema=true")))["schema_differences"]
    assert all(line.startswith("missing: migration ") for line in before)
    await stack.sql.execute("alter table violet.tasks drop column priority")
    after = (await got(ask("/drift?schema=true")))["schema_differences"]
    assert any(line.startswith("missing: column violet.tasks.priority") for line in after)


async def test_settings_are_shown_without_what_is_secret(postgres_database):
    secret = "a-key-that-nobody-sees"
    shadow = {"hash_key": SecretStr(secret)}
    async with running(await postgres_database(), http={}, shadow=shadow) as stack:
        found = await got(call(stack.sidecar.web.address, f"{API}/config"))
        assert found["settings"]["migration"]["mappings"] == "violet"
        assert found["problem"] == ""
        assert found["settings"]["shadow"]["hash_key"]
        assert secret not in str(found)


# --- figures -----------------------------------------------------------------------------------


async def test_metrics_have_the_names_that_dashboards_know(stack):
    await stack.client.set("tasks/1", {"n": 1})
    await stack.client.get("tasks/1")
    answer = await call(stack.sidecar.web.address, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.body.decode().splitlines()
    found = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    declared = {
        name for item in INSTRUMENTS for name in prometheus.series(item.name, item.unit, item.kind)
    }
    assert found - declared == {"target_info"}
    duration = prometheus.series(STORE_DURATION.name, "s", "histogram")
    assert set(duration) < found
    assert {"crossfade_epoch_ratio", "crossfade_commits_total", "crossfade_pending"} < found
    (commits,) = [line for line in lines if line.startswith("crossfade_commits_total{")]
    assert commits.endswith(" 1.0")
    exact = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = await call(stack.sidecar.web.address, "/metrics", headers=exact)
    assert answer.body.endswith(b"# EOF\n")


async def test_latency_over_time(stack, ask):
    await stack.client.set("tasks/1", {"n": 1})
    await stack.client.get("tasks/1")
    stack.sidecar.web.board._history.observe()
    found = await got(ask("/latency/history?collection=tasks"))
    last = found["points"][-1]
    assert last["firestore"]["count"] == 1
    assert last["firestore"]["p50_ms"] > 0
    assert last["postgresql"] == {
        "count": 0, "errors": 0, "p50_ms": None, "p95_ms": None, "p99_ms": None,
    }  # fmt: skip
    assert (await got(ask("/latency/history?collection=users")))["points"] == []


async def test_both_stores_latency_for_the_same_reads(stack, ask):
    await stack.percent(0, 1.0)
    await stack.client.set("tasks/1", {"n": 1})
    await stack.settled()
    for _ in range(5):
        await stack.client.get("tasks/1")
    await stack.settled()
    found = await got(ask("/latency?since_seconds=600&step_seconds=600&operation=get"))
    (compared,) = found["comparisons"]
    assert (compared["collection"], compared["operation"], compared["count"]) == ("tasks", "get", 5)
    assert sum(each["count"] for each in compared["buckets"]) == 5
    assert compared["firestore"]["p50_ms"] > 0 < compared["postgresql"]["p50_ms"]
    assert sum(each["count"] for each in found["moments"]) == 5
    answer = await ask("/latency?since_seconds=-1")
    assert (answer.status, answer.json["field"]) == (400, "since_seconds")


async def test_events_hold_all_that_the_dashboard_shows_and_come_with_a_change(stack, ask):
    address = stack.sidecar.web.address
    stack.sidecar.web.board._history.observe()
    (points, state) = await events(address, count=2)
    assert (points[0], state[0]) == ("points", "state")
    assert state[1]["unknown"] == {}
    assert state[1]["stand"]["status"]["stage"] == "shadow"
    (group,) = state[1]["stand"]["groups"]
    assert (group["next"], bool(group["checks"])) == ("live", True)
    assert {"ramps", "mismatches", "dead_letters", "drift", "audit", "latency"} < set(state[1])


async def test_a_part_that_cannot_be_asked_for_does_not_hide_the_rest(stack, monkeypatch):
    async def gone(*_args, **_options):
        raise Unavailable("it is away")

    monkeypatch.setattr(stack.sidecar.admin, "backlog", gone)
    state = await stack.sidecar.web.board.state()
    assert state["stand"]["status"]["backlog_unknown"] == "it is away"
    assert state["stand"]["groups"][0]["checks_unknown"] == "it is away"


# --- refusals ----------------------------------------------------------------------------------


WRONG: tuple[tuple[str, Any, str, str | None], ...] = (
    ("/stages/set", {"stage": "alive"}, "POST", "stage"),
    ("/stages/set", {"stage": "live", "timeout_seconds": 0}, "POST", "timeout_seconds"),
    ("/stages/set", {"stage": "live", "nonsense": 1}, "POST", "nonsense"),
    ("/traffic", {"collection": "tasks", "read_percent": 101}, "PUT", "read_percent"),
    ("/traffic", {"collection": "tasks", "read_percent": "5"}, "PUT", "read_percent"),
    ("/traffic", {"collection": "taks", "read_percent": 5}, "PUT", "collection"),
    ("/traffic", {"collection": "tasks", "dry_run": True}, "PUT", "read_percent"),
    ("/ramps", {"collection": "tasks", "steps": [5, 1]}, "POST", "steps"),
    ("/audit?limit=0", None, "GET", "limit"),
    ("/mismatches/explain?name=tasks", None, "GET", "name"),
    ("/dead-letters?limit=x", None, "GET", "limit"),
    ("/dead-letters/retry", {}, "POST", None),
    ("/stages/set", b"{", "POST", None),
    ("/stages/set", b"[]", "POST", None),
)


async def test_what_is_wrong_is_named(ask):
    for path, body, method, field in WRONG:
        answer = await ask(path, body, method=method)
        assert (answer.status, answer.json["code"]) == (400, "INVALID_ARGUMENT"), path
        assert answer.json["field"] == field, (path, answer.json)
        assert answer.json["message"]
    assert (await got(ask("/audit")))["entries"] == []


async def test_other_errors_have_the_same_shape(stack, ask, monkeypatch):
    await refused(ask("/nothing"), 404, "NOT_FOUND")
    await refused(ask("/status", method="DELETE"), 405, "UNIMPLEMENTED")

    async def broken(*_args, **_options):
        raise ZeroDivisionError("a value of a document")

    monkeypatch.setattr(stack.sidecar.web._desk, "audit", broken)
    message = await refused(ask("/audit"), 500, "INTERNAL")
    assert message == "a defect (ZeroDivisionError); the server's log has more"


async def test_other_pages_and_other_names_are_refused(stack, ask):
    address = stack.sidecar.web.address
    own = {"Origin": f"http://{address}", "Sec-Fetch-Site": "same-origin"}
    assert (await ask("/status", headers=own)).status == 200
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": ""},
        {"Host": "[::"},
    ):
        await refused(ask("/status", headers=headers), 403, "PERMISSION_DENIED")
    assert (await call(address, "/", headers={"Host": "evil.example"})).status == 403
    assert (await call(address, "/healthz", headers={"Host": "evil.example"})).status == 200
    # A form of another page can send a body, but not this type.
    text = {"Content-Type": "text/plain"}
    answer = await ask("/stages/rollback", {"reason": "evil"}, headers=text)
    assert answer.status == 400
    assert (await got(ask("/audit")))["entries"] == []


async def test_the_page_and_what_it_may_do(stack):
    address = stack.sidecar.web.address
    for path in ("/", "/app.js", "/style.css", "/icon.svg"):
        answer = await call(address, path, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status == 200, path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY
    assert (await call(address, "/../app.py")).status == 404


# --- who may ask -------------------------------------------------------------------------------


async def test_tokens_with_the_role_admin_open_it(postgres_database):
    access = {"tokens": TOKENS.format(ADMIN, WRITER, READER)}
    async with running(await postgres_database(), Stage.SHADOW, http={}, access=access) as stack:
        address = stack.sidecar.web.address

        def bearer(token):
            return {"Authorization": f"Bearer {token}"}

        for path in (f"{API}/status", "/metrics", f"{API}/events"):
            answer = await call(address, path)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), path
            await refused(call(address, path, headers=bearer("x" * 20)), 401, "UNAUTHENTICATED")
            if path != "/metrics":  # Prometheus's token must not be one that moves anything
                await refused(call(address, path, headers=bearer(WRITER)), 403, "PERMISSION_DENIED")
        assert (await call(address, "/metrics", headers=bearer(READER))).status == 200
        for path in ("/healthz", "/readyz", "/", f"{API}/openapi.json"):
            assert (await call(address, path)).status == 200, path
        change = {"collection": "tasks", "read_percent": 5, "who": "ada"}
        answer = await call(address, f"{API}/traffic", change, method="PUT")
        assert answer.status == 401
        assert "tasks" not in stack.sidecar.control.snapshot.traffic
        answer = await call(address, f"{API}/traffic", change, method="PUT", headers=bearer(ADMIN))
        assert answer.status == 200
        (entry,) = (await call(address, f"{API}/audit", headers=bearer(ADMIN))).json["entries"]
        assert entry["who"] == "ops (ada)", "a token's name cannot be made up"


async def test_a_stream_ends_with_its_token(postgres_database, tmp_path):
    file = tmp_path / "tokens.toml"
    entry = '[[token]]\nname = "ops"\nrole = "admin"\ntoken = "{}"\n'
    file.write_text(entry.format(ADMIN))
    access = {"tokens_file": file}
    async with running(await postgres_database(), Stage.SHADOW, http={}, access=access) as stack:
        address = stack.sidecar.web.address
        headers = {"Authorization": f"Bearer {ADMIN}"}
        assert [name for name, _ in await events(address, count=1, headers=headers)] == ["state"]
        file.write_text(entry.format("another-token-of-the-tests"))
        found = await events(address, count=100, headers=headers)
        assert found[-1][0] == "refused"
        assert found[-1][1]["code"] == "UNAUTHENTICATED"


async def test_without_tokens_a_network_finds_it_closed(postgres_database):
    http: dict[str, Any] = {"host": "0.0.0.0"}
    async with running(await postgres_database(), Stage.SHADOW, http=http) as stack:
        address = stack.sidecar.web.address.replace("0.0.0.0", "127.0.0.1")
        assert (await call(address, "/readyz")).status == 200
        for path in (f"{API}/status", "/metrics"):
            message = await refused(call(address, path), 403, "PERMISSION_DENIED")
            assert "no tokens" in message
    http |= {"insecure": True}
    async with running(await postgres_database(), Stage.SHADOW, http=http) as stack:
        address = stack.sidecar.web.address.replace("0.0.0.0", "127.0.0.1")
        assert (await call(address, f"{API}/status")).status == 200


async def test_open_streams_do_not_hold_up_the_end(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW, http={}) as stack:
        watching = asyncio.create_task(events(stack.sidecar.web.address, count=10_000))
        await events(stack.sidecar.web.address, count=1)
        async with asyncio.timeout(10):
            await stack.sidecar.web.stop()
        found = await watching
        assert found
        assert found[0][0] == "state"


# --- jobs --------------------------------------------------------------------------------------


async def test_jobs_are_shown_paused_resumed_and_cancelled(stack, ask):
    (job,) = (await got(ask("/jobs")))["jobs"]
    assert (job["kind"], job["state"]) == ("backfill", "done"), "the fixture's copy"
    assert (job["pages"] > 0, job["retries"], job["waited"]) == (True, {}, {})
    assert (await got(ask("/jobs?kind=validate")))["jobs"] == []
    path = f"/jobs/{job['id']}"
    await refused(ask(f"{path}/pause", {}), 409, "FAILED_PRECONDITION")
    await refused(ask("/jobs/999999/pause", {}), 404, "NOT_FOUND")
    await refused(ask(f"{path}/forget", {}), 400, "INVALID_ARGUMENT", "action")

    await stack.sql.execute("update crossfade.jobs set state = 'running', ended_at = null")
    paused = await got(ask(f"{path}/pause", {"who": "ada", "reason": "it is noon"}))
    assert (paused["state"], paused["reason"]) == ("paused", "by ada: it is noon")
    assert (await got(ask(f"{path}/resume", {})))["state"] == "running"
    assert (await got(ask(f"{path}/cancel", {"who": "bob"})))["state"] == "cancelled"


async def test_validations_are_shown_without_ids_and_one_is_the_certificate(stack, ask):
    assert (await got(ask("/validations")))["validations"] == []
    for number in range(3):
        await stack.client.set(f"user_emails/{number}@example.org", {"user_id": "nobody"})
    await stack.client.set("tasks/1", {"status": "pending", "input_file_id": "gone"})
    await stack.settled()
    await validated(stack)
    (whole,) = (await got(ask("/validations")))["validations"]
    assert (whole["equal"], whole["certificate"], whole["why_not"]) == (True, True, "")
    assert whole["breaches"] >= 3
    counts = {each["collection"]: each for each in whole["by_collection"]}
    assert (counts["user_emails"]["match"], counts["tasks"]["compared"]) == (3, 1)
    looked = await got(ask("/stages/set", {"stage": "live", "dry_run": True}))
    assert {"name": "validated", "outcome": "pass"}.items() <= _of(looked, "validated").items()

    await stack.sql.execute("delete from violet.tasks")
    await stack.sql.execute("delete from crossfade.versions where path = 'tasks/1'")
    await validated(stack, How(quick=True), collections=("tasks",))
    await validated(stack)
    found = await ask("/validations?limit=3")
    last, some, first = found.json["validations"]
    assert [each["why_not"] for each in (last, some, first)] == [
        "found differences",
        "compares by version alone",
        f"is followed by validation {last['job']}",
    ]
    assert (last["equal"], last["mode"], some["mode"]) == (False, "full", "quick")
    assert some["collections"] == ["tasks"]
    counts = {each["collection"]: each for each in last["by_collection"]}
    assert (counts["tasks"]["missing"], counts["user_emails"]["match"]) == (1, 3)
    assert b"example.org" not in found.body
    assert b"tasks/1" not in found.body, "no document is named"
    assert (await got(ask("/validations?group=other")))["validations"] == []
    await refused(ask("/validations?limit=0"), 400, "INVALID_ARGUMENT", "limit")


def _of(looked: Any, name: str) -> Any:
    (check,) = [each for each in looked["checks"] if each["name"] == name]
    return check
