"""Validation: what differs is found and named, what merely moves is not, and it can be killed."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from crossfade import redaction
from crossfade.budget import PERIOD_SECONDS as BUDGET_SECONDS
from crossfade.budget import Budget
from crossfade.diff import diff
from crossfade.document import Document, is_own
from crossfade.jobs import validating
from crossfade.jobs.effort import OF_BUDGET
from crossfade.jobs.report import to_html
from crossfade.jobs.scan import scan
from crossfade.jobs.validate import How
from crossfade.jobs.validating import Asked
from crossfade.jobs.work import Pacing
from crossfade.plan import Stage, StoreName
from crossfade.probes import CannotStart
from crossfade.settings import CollectionSettings, RuleSettings, ShadowSettings
from crossfade.store import DocumentStore
from crossfade.stores.postgres.jobs import JobState
from crossfade.telemetry import SHADOW_DROPPED, STORE_ERRORS
from crossfade.validate_commands import opened
from crossfade.write import Write
from crossfade_client import Write as ClientWrite
from tests.days import Days
from tests.sidecar import DATABASE, Running, eventually, running
from tests.validated import settings_of, validated

SECRET = "mail@example.org"
IDS = [
    *("a", "a-", "a-1", "a.b", "ab", "B", "~", "é", "\U0001f600", "a b", "x\1", "0"),
    *("__id7__", "__id10__", "__id-3__", "__id9223372036854775807__", "__idx"),
]
COLLECTIONS = ["tasks", "tasks-x", "users", "free", "free\1", "Z"]


@pytest.fixture
async def url(postgres_database) -> str:
    return await postgres_database()


@asynccontextmanager
async def mirrored(url: str, count: int = 200) -> AsyncIterator[tuple[Running, list[str]]]:
    """A sidecar whose first copy has ended, and the paths of what was copied."""
    async with running(url, Stage.DUAL_WRITE) as stack:
        paths = await fill(stack, count)
        await stack.copy()
        yield stack, paths


async def fill(stack: Running, count: int) -> list[str]:
    """Documents of hostile names, from before the migration."""
    random = Random(1)
    paths = {f"{name}/{key}" for name in COLLECTIONS for key in IDS}
    paths |= {
        f"{name}/{key}/{below}/{deeper}"
        for name in ("tasks", "free")
        for below in ("audio_chunks", "sub", "sub-")
        for key in random.sample(IDS, 6)
        for deeper in random.sample(IDS, 6)
    }
    chosen = random.sample(sorted(paths), min(count, len(paths)))
    for start in range(0, len(chosen), 50):
        few = chosen[start : start + 50]
        await stack.direct.commit(
            [
                Write(path, {"n": random.randrange(9), "text": "t" * random.randrange(20)})
                for path in few
            ],
            timeout=30,
        )
    return chosen


async def naive(stack: Running) -> dict[str, str]:
    """What differs, by path, as two dictionaries would tell."""
    async with opened(settings_of(stack)) as on:
        left = await _contents(on.stores[StoreName.FIRESTORE])
        right = await _contents(on.stores[StoreName.POSTGRESQL])
    found = {}
    for path in left | right:
        if path not in right:
            found[path] = "missing"
        elif path not in left:
            found[path] = "extra"
        elif diff(left[path].fields, right[path].fields):
            found[path] = "different"
    return found


async def _contents(store: DocumentStore) -> dict[str, Document]:
    return {
        document.path: document
        async for page in scan(store, DATABASE, timeout=30)
        for document in page
        if not is_own(document.path)
    }


def verdicts(report: Any) -> dict[str, str]:
    """By path, of the samples."""
    return {each["path"]: each["verdict"] for each in report["samples"]}


async def spoil(stack: Running, paths: list[str]) -> dict[str, str]:
    """One document of each kind of difference, by its path."""
    await stack.sidecar.stop(1.0)  # nobody may repair
    wrong, missing, extra, stale = paths
    await stack.sql.execute(
        "update crossfade.documents set fields = fields || '{\"n\": 99}' where path = $1", wrong
    )
    await stack.sql.execute("delete from crossfade.documents where path = $1", missing)
    await stack.sql.execute("delete from crossfade.versions where path = $1", missing)
    await stack.direct.commit([Write(extra, None)], timeout=5)
    await stack.direct.commit([Write(stale, {"n": 98, "mail": SECRET})], timeout=5)
    await asyncio.sleep(0.3)  # longer than a mirror may be behind
    return {wrong: "wrong", missing: "missing", extra: "extra", stale: "stale"}


# --- what is found -----------------------------------------------------------------------------


async def test_equal_stores_are_certified(url):
    async with mirrored(url) as (stack, paths):
        report = await validated(stack)
        assert report["equal"]
        assert report["totals"]["match"] == report["totals"]["firestore"] == len(paths)
        for each in report["by_collection"]:
            assert each["digests"]["firestore"] == each["digests"]["postgresql"]
        assert not await naive(stack)
        certificate = await stack.sql.fetchrow("select * from crossfade.certificates")
        assert (certificate["equal"], certificate["mode"]) == (True, "full")
        assert certificate["epoch"] == report["epoch"]


@pytest.mark.parametrize("page", [7, 1000])
async def test_each_kind_of_difference_is_found_and_named(url, page, monkeypatch):
    monkeypatch.setattr(validating, "PAGE", page)
    async with mirrored(url) as (stack, paths):
        spoilt = await spoil(stack, [path for path in paths if path.startswith("free/")][:4])
        report = await validated(stack, small=0, parts=4)
        assert verdicts(report) == spoilt
        assert set(await naive(stack)) == set(spoilt)
        assert not report["equal"]
        assert report["totals"]["match"] == len(paths) - 4
        [free] = [each for each in report["by_collection"] if each["collection"] == "free"]
        assert free["digests"]["firestore"] != free["digests"]["postgresql"]
        named = {(each["field"], each["kind"]) for each in free["fields"]}
        assert {("n", "value"), ("mail", "missing")} <= named
        assert SECRET not in json.dumps(report)
        assert SECRET not in to_html(report)


async def test_versions_alone_find_what_was_not_mirrored(url):
    async with mirrored(url) as (stack, paths):
        spoilt = await spoil(stack, [path for path in paths if path.startswith("free/")][:4])
        report = await validated(stack, How(quick=True))
        by_hand = {path for path, verdict in spoilt.items() if verdict == "wrong"}
        assert set(verdicts(report)) == set(spoilt) - by_hand
        assert report["totals"]["match"] == len(paths) - 3


async def test_what_is_older_is_passed_by(url):
    async with mirrored(url) as (stack, paths):
        await asyncio.sleep(0.01)
        since = time.time_ns() // 1_000
        fresh = [path for path in paths if path.startswith("free/")][:4]
        spoilt = await spoil(stack, fresh)
        report = await validated(stack, How(since=since))
        # What was changed by hand keeps its time.
        assert set(verdicts(report)) == {path for path in spoilt if spoilt[path] != "wrong"}
        assert report["totals"]["skipped"] == len(paths) - 3


async def test_collections_that_are_asked_for(url):
    async with mirrored(url) as (stack, paths):
        report = await validated(stack, collections=("tasks", "free\1"))
        wanted = [path for path in paths if path.split("/")[0] in {"tasks", "free\1"}]
        assert report["totals"]["match"] == len(wanted)
        assert await stack.sql.fetchval("select collections from crossfade.certificates")


async def test_rules_of_the_settings_are_applied_and_counted(url):
    async with mirrored(url) as (stack, paths):
        path = next(path for path in paths if path.startswith("free/") and path.count("/") == 1)
        await stack.sidecar.stop(1.0)
        await stack.sql.execute(
            "update crossfade.documents set fields = fields || '{\"n\": 99}' where path = $1", path
        )
        rule = RuleSettings(name="counters", fields=("n",), kind="ignore")
        settings = settings_of(stack, collections={"free": CollectionSettings(rules=(rule,))})
        report = await validated(stack, settings=settings)
        assert report["equal"]
        assert report["totals"]["ruled_out"] == 1
        [free] = [each for each in report["by_collection"] if each["collection"] == "free"]
        assert free["rules"] == {"counters": 1}
        assert not (await validated(stack))["equal"]


async def test_a_repair_converges(url):
    async with mirrored(url) as (stack, paths):
        spoilt = await spoil(stack, [path for path in paths if path.startswith("free/")][:4])
        report = await validated(stack, How(repair=True))
        assert report["totals"]["repaired"] == len(spoilt)
        async with stack.another() as other:
            await other.settled()
            assert (await validated(stack))["equal"]
            assert not await naive(other)


async def test_integrity_is_told_by_the_declarations(url):
    async with mirrored(url, 10) as (stack, _):
        client = stack.client
        await client.set("users/u1", {"user_id": "u1", "email": "a@x.org", "api_key": "k1"})
        await stack.settled()  # the column is of whoever comes to PostgreSQL first
        await client.set("users/u2", {"user_id": "u2", "email": "a@x.org"})
        await client.set("user_emails/a@x.org", {"user_id": "someone else"})
        await client.set("user_emails/nobody@x.org", {"user_id": "u9"})
        await client.set("tasks/t1", {"task_id": "t1", "input_file_id": "gone"})
        await stack.settled()
        report = await validated(stack)
        assert report["equal"]
        found = {
            (each["collection"], each["field"], each["breach"]): each
            for each in report["integrity"]
        }
        assert found["users", "email", "duplicate of a unique value"]["examples"] == ["users/u2"]
        assert found["user_emails", "", "derived document without an owner"]["count"] == 1
        deviating = found["user_emails", "", "derived document that differs from its owner"]
        assert deviating["examples"] == [redaction.present().path("user_emails/a@x.org")]
        assert "x.org" not in json.dumps(report), "ids that are secrets are told as hashes"
        underived = found["users", "api_key", "owner without its derived document"]
        assert underived["examples"] == ["users/u1"]


# --- budgets, groups, several processes --------------------------------------------------------


async def test_a_validation_waits_for_the_next_days_budget_and_callers_never_do(url):
    async with mirrored(url, 250) as (stack, paths), opened(settings_of(stack)) as unlimited:
        now = time.time()
        budget = Budget(100, Days(), clock=lambda: now)
        on = replace(unlimited, budget=budget)
        await budget.refill()
        job = await validating.begin(on, Asked(small=0))
        doing = validating.work(on, job, pacing=Pacing(workers=1, page=40))
        running_ = asyncio.create_task(doing.run())

        async def waits_or_ends() -> bool:
            return running_.done() or doing.waits_for.startswith("the day's budget")

        days = 0
        while not running_.done() and days < 9:
            days += 1
            await eventually(waits_or_ends, 30)
            if not running_.done():
                compared = (await on.side.both.jobs.get(job.id)).documents
                # What is under way may overdraw a part.
                assert compared <= 100 * days + 40
                began = time.monotonic()
                assert await stack.client.get(paths[0])
                await stack.client.set("free/of-budget", {"n": days})
                assert time.monotonic() - began < 5.0, "nobody waits with it"
                assert not running_.done()
            now += 86_400
            doing.effort.waits_for = ""
            await budget.refill()
        assert (await running_).state is JobState.DONE
        assert days >= 3
        assert (await validating.report_of(on, job))["equal"]


async def test_a_validation_goes_on_when_the_budget_is_raised_and_callers_never_wait(url):
    """Half of the day's reads are the sidecar's, which compares what callers read."""
    shadow: Any = {"daily_reads": 200, "behind_bound": 0.2}
    async with running(
        url, Stage.SHADOW, shadow_rate=1.0, read_percent=100, shadow=shadow
    ) as stack:
        await stack.copy()
        paths = [f"free/{number:03}" for number in range(240)]
        for start in range(0, len(paths), 60):
            few = paths[start : start + 60]
            await stack.client.commit([ClientWrite.set(path, {"n": 1}) for path in few])

        async def given() -> int:
            return int(await stack.sql.fetchval("select sum(reserved) from crossfade.budget"))

        async def read_until_nothing_is_compared() -> bool:
            found = await asyncio.gather(*(stack.client.get(path) for path in paths[:20]))
            assert all(each.fields == {"n": 1} for each in found)
            await stack.settled()
            return stack.count(SHADOW_DROPPED, "budget") > 0

        async with opened(settings_of(stack, shadow=ShadowSettings(**shadow))) as on:
            jobs = on.side.both.jobs
            job = await validating.begin(on, Asked(small=0))
            doing = validating.work(on, job, pacing=Pacing(workers=1, page=20))
            running_ = asyncio.create_task(doing.run())

            async def waits() -> bool:
                assert not running_.done()
                return doing.waits_for == OF_BUDGET and await given() == 200

            await eventually(waits, 30)
            compared = (await jobs.get(job.id)).documents
            assert 0 < compared <= 100 + 20
            await eventually(read_until_nothing_is_compared, 30)
            await stack.client.set("free/of-budget", {"n": 1})
            await stack.settled()
            assert (await stack.client.get("free/of-budget")).fields == {"n": 1}
            assert stack.telemetry.counts(STORE_ERRORS) == {}
            # Looked at again every second, and there is no more to be had.
            await asyncio.sleep(BUDGET_SECONDS + 0.2)
            assert ((await jobs.get(job.id)).documents, await given()) == (compared, 200)
            running_.cancel()
            await asyncio.gather(running_, return_exceptions=True)
        raised = ShadowSettings(**shadow | {"daily_reads": 2_000})
        async with opened(settings_of(stack, shadow=raised)) as on:
            again = await validating.begin(on, Asked(small=0))
            assert again.id == job.id
            ended = await validating.work(on, again, pacing=Pacing(workers=1, page=20)).run()
            assert ended.state is JobState.DONE
            report = await validating.report_of(on, job)
        assert (report["equal"], report["totals"]["match"]) == (True, len(paths) + 1)
        assert ended.waited["budget"] > BUDGET_SECONDS
        assert await given() > 200


async def test_each_group_is_validated_by_itself(url):
    groups: Any = {"text": {"collections": ("notes", "text_content"), "stage": Stage.DUAL_WRITE}}
    async with running(url, Stage.DUAL_WRITE, groups=groups) as stack:
        for number in range(5):
            await stack.direct.commit([Write(f"notes/{number}", {"n": number})], timeout=5)
            await stack.direct.commit([Write(f"free/{number}", {"n": number})], timeout=5)
        await stack.copy()
        await stack.copy("text")
        await stack.sql.execute(
            "update crossfade.documents set fields = fields || '{\"n\": 99}' where path = 'notes/3'"
        )
        settings = settings_of(stack, groups=groups)
        rest = await validated(stack, settings=settings)
        text = await validated(stack, settings=settings, group="text")
        assert (rest["group"], text["group"]) == ("default", "text")
        assert (rest["equal"], text["equal"]) == (True, False)
        assert verdicts(text) == {"notes/3": "wrong"}
        found = {
            report["group"]: {each["collection"] for each in report["by_collection"]}
            for report in (rest, text)
        }
        assert found == {"default": {"free"}, "text": {"notes"}}
        async with opened(settings) as on:
            for name, equal in (("default", True), ("text", False)):
                certificate = await on.side.findings.latest(name)
                assert certificate is not None
                assert certificate.equal is equal
        with pytest.raises(CannotStart, match="there is none named nobody"):
            await validated(stack, settings=settings, group="nobody")


async def test_several_processes_share_a_validation(url):
    async with mirrored(url, 400) as (stack, paths):
        pages: Counter[str] = Counter()
        async with AsyncExitStack() as opening:
            works = []
            for name in ("one", "two"):
                on = await opening.enter_async_context(opened(settings_of(stack)))
                job = await validating.begin(on, Asked(parts=6, small=0))
                told = lambda name=name: pages.update([name])  # noqa: E731 - counts alone
                works.append(validating.work(on, job, pacing=Pacing(1, page=7), told=told))
            ends = await asyncio.gather(*(each.run() for each in works))
            assert ends[0].id == ends[1].id
            assert {each.state for each in ends} == {JobState.DONE}
            report = await validating.report_of(on, job)
        assert report["equal"]
        assert report["totals"]["match"] == len(paths), "nothing counts twice"
        assert min(pages["one"], pages["two"]) > 3


# --- beside live traffic -----------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["dual_write", "live"])
async def test_writers_make_no_differences(url, stage):
    """Documents change, come and go under the validation; nothing that merely moves counts."""
    async with mirrored(url, 60) as (stack, paths):
        if stage == "live":
            await stack.stage("shadow")
            await stack.stage("live")
        ended = False

        async def write(seed: int) -> int:
            random, count = Random(seed), 0
            while not ended:
                path = random.choice(paths)
                if random.random() < 0.3:
                    await stack.client.delete(path)
                else:
                    await stack.client.set(path, {"n": random.randrange(1_000), "by": seed})
                count += 1
            return count

        writers = [asyncio.create_task(write(seed)) for seed in range(4)]
        monkey = validating.SETTLE_SECONDS
        try:
            validating.SETTLE_SECONDS = 0.5
            for _ in range(3):
                report = await validated(stack, fresh=True, small=0)
                assert report["equal"], (report["totals"], report["samples"])
        finally:
            ended = True
            validating.SETTLE_SECONDS = monkey
        assert sum(await asyncio.gather(*writers)) > 50
        await stack.settled()
        report = await validated(stack)
        assert report["equal"]
        assert not report["totals"]["behind"]
        assert not await naive(stack)


async def test_a_validation_that_is_killed_goes_on_where_it_was(url, tmp_path):
    """Killed before a page is compared; tests/fault/test_backfill.py kills it behind one."""
    async with mirrored(url, 400) as (stack, paths):
        command = [*(sys.executable, "-m", "crossfade", "validate", "--json"), "--report"]
        environment = os.environ | {
            "DATABASE_URL": stack.url,
            "FIRESTORE_EMULATOR_HOST": stack.firestore_server.address,
            "GOOGLE_CLOUD_PROJECT": DATABASE.project,
        }
        doomed = await asyncio.create_subprocess_exec(
            *command,
            *(str(tmp_path / "a"), "--rate", "40", "--workers", "2"),
            env=environment | {"CROSSFADE_FAIL_POINT": "validate.read:kill:4"},
        )
        assert await asyncio.wait_for(doomed.wait(), 60) == -signal.SIGKILL
        counted = await stack.sql.fetchval(
            """select sum((w.value)::int8) from crossfade.job_partitions, jsonb_each(counts) c,
            jsonb_each(c.value) w where w.key = 'match'"""
        )
        assert 0 < counted < len(paths), "it was under way"
        # Nobody has to wait here until what it held is given up.
        await stack.sql.execute("update crossfade.job_partitions set lease_until = now()")
        await stack.sql.execute("update crossfade.jobs set options = options - 'rate'")
        done = await asyncio.create_subprocess_exec(
            *(*command, str(tmp_path / "b"), "--processes", "2"),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await asyncio.wait_for(done.communicate(), 60)
        assert done.returncode == 0
        *_, last, end = (json.loads(line) for line in told.decode().splitlines())
        # Of all processes together, the one that was killed as far as it could tell.
        assert last["pages"] >= 2
        assert (last["retries"], last["waited"], "effort" in last["outcome"]) == ({}, {}, False)
        report = end["report"]
        assert report["totals"]["match"] == report["totals"]["firestore"] == len(paths)
        assert (
            await stack.sql.fetchval("select count(*) from crossfade.jobs where kind = 'validate'")
            == 1
        )
        assert (
            json.loads((tmp_path / "b" / f"validation-{report['job']}.json").read_text()) == report
        )
        assert "The stores are equal" in next((tmp_path / "b").glob("*.html")).read_text()
        assert not (tmp_path / "a").exists()
