"""Jobs that copy: what they do beside writers, with one another, and when they are stopped."""

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest

from crossfade.budget import Budget
from crossfade.document import Reference, collection_id, identical
from crossfade.errors import Aborted, FailedPrecondition, Internal, NotFound
from crossfade.jobs import work as engine
from crossfade.jobs.backfill import Asked, Backfilling, begin, work
from crossfade.jobs.both import Both
from crossfade.jobs.effort import RESUMED
from crossfade.jobs.forecast import forecast
from crossfade.jobs.forward_pages import ForwardPages
from crossfade.jobs.work import Pacing
from crossfade.plan import Stage
from crossfade.rehearse import load
from crossfade.rpc import firestore_v1
from crossfade.rpc.firestore_v1 import faults
from crossfade.rpc.jobs import job_message
from crossfade.stores.firestore import connect
from crossfade.stores.postgres.jobs import Job, JobState
from crossfade.stores.postgres.mirror import Mirror
from crossfade.telemetry import JOB_PAGES, JOB_RETRIES, JOB_WAITING, Telemetry
from crossfade.wire import parse_document
from crossfade.write import Write
from crossfade_api.v1 import jobs_pb2, jobs_pb2_grpc
from tests.days import Days
from tests.sidecar import DATABASE, Running, eventually, running
from violet import sample

EVERYTHING = Asked(parts=6, small=0)
ODD: dict[str, Any] = {
    "notes/__id7__": {"n": 1},
    "notes/\0a": {"n": "\0"},
    "notes/~": {"f": float("nan"), "z": -0.0, "b": b"\0\xff"},
    "notes/a/deep/b/deeper/__id-3__": {"r": Reference("projects/p/databases/d/documents/c/d")},
    "odd\0name/x": {"$": {"$m": [1, {"a\0": None}]}},
    "_mine/x": {"n": 2},
    "`later/x": {"n": 3},
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections of a test are cut as large ones are, and the dead are mourned briefly."""
    monkeypatch.setattr("crossfade.jobs.planning.LEAST_PART", 40)
    monkeypatch.setattr(engine, "CLAIM_SECONDS", 1.0)


@asynccontextmanager
async def stack(postgres_database: Any, stage: Stage = Stage.DUAL_WRITE) -> AsyncIterator[Running]:
    async with running(await postgres_database(), stage) as made:
        yield made


def both(made: Running) -> Both:
    found = made.sidecar.admin.copying["default"]
    assert found is not None
    return found


async def filled(made: Running, tasks: int = 60) -> dict[str, Any]:
    documents = dict(sample.documents(3, tasks)) | ODD
    await load(made.direct, documents.items())
    return documents


async def held(made: Running) -> Counter[str]:
    """The paths of PostgreSQL's documents by collection id."""
    rows = await made.sql.fetch("select path from crossfade.versions where live")
    return Counter(collection_id(row[0]) for row in rows)


async def mirrored(made: Running) -> None:
    """Waits until no document is pending; all of them together may be."""

    async def none() -> bool:
        waiting = "select count(*) from crossfade.pending where position('/' in path) > 0"
        return await made.sql.fetchval(waiting) == 0

    await eventually(none)


async def agree(made: Running, documents: dict[str, Any]) -> None:
    """PostgreSQL holds exactly these documents."""
    store = made.sidecar.stores["postgresql"]  # type: ignore[index]
    paths = list(documents)
    for start in range(0, len(paths), 200):
        some = paths[start : start + 200]
        reading = await store.get(some, timeout=10)
        for path, stored in zip(some, reading.documents, strict=True):
            assert stored.data is not None, path
            found = parse_document(stored.data, DATABASE).fields
            assert identical(found, documents[path]), path
    assert (await held(made)).total() == len(documents)


async def done(made: Running, asked: Asked = EVERYTHING, **options: Any) -> Job:
    own = both(made)
    return await work(own, await begin(own, asked), **options).run()


# --- all of it ---------------------------------------------------------------------------------


async def test_everything_is_copied_once_by_many_workers(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made)
        job = await done(made)
        assert job.state is JobState.DONE
        assert job.partitions > 20
        assert job.documents == len(documents)
        by_collection = Counter(collection_id(path) for path in documents)
        copied = {name: counts["copied"] for name, counts in job.counts.items()}
        assert copied == by_collection
        # What does not fit is told: of the sample's tasks many, of an unmapped collection all.
        assert 0 < job.counts["tasks"]["misfits"] <= job.counts["tasks"]["beside"]
        assert job.counts["notes"]["unmapped"] == by_collection["notes"]
        await agree(made, documents)
        assert (await made.sidecar.status()).copied
        assert await made.sql.fetchval("select count(*) from crossfade.pages") == 0


async def test_two_processes_share_a_job(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made)
        own = both(made)
        job = await begin(own, EVERYTHING)
        pages: Counter[str] = Counter()
        workers = []
        for name in ("one", "two"):
            told = lambda name=name: pages.update([name])  # noqa: E731 - counts alone
            # What begins a job joins the one that is there.
            again = await begin(own, EVERYTHING)
            assert again.id == job.id
            workers.append(work(own, again, pacing=Pacing(1, page=3), told=told))
        ends = await asyncio.gather(*(each.run() for each in workers))
        assert [each.state for each in ends] == [JobState.DONE, JobState.DONE]
        assert ends[0].documents == len(documents)
        assert min(pages["one"], pages["two"]) > 3
        assert (await own.jobs.get(job.id)).pages == pages.total(), "both are added up"
        await agree(made, documents)


async def test_a_job_goes_on_where_it_was_broken_off(postgres_database: Any):
    """Cancelled at any await, again and again: no document is counted twice, none is missed."""
    async with stack(postgres_database) as made:
        documents = await filled(made, 30)
        own = both(made)
        first = await begin(own, EVERYTHING)
        rounds = 0
        while rounds < 200:
            job = await begin(own, EVERYTHING)
            assert job.id == first.id
            running_ = asyncio.create_task(work(own, job, pacing=Pacing(3, page=9)).run())
            # Longer each time: on a busy machine, too, one of them comes to the end of a page.
            await asyncio.wait([running_], timeout=0.01 * (1 + rounds))
            if running_.done():
                break
            running_.cancel()
            await asyncio.gather(running_, return_exceptions=True)
            rounds += 1
        job = await own.jobs.get(first.id)
        assert job.state is JobState.DONE
        assert rounds > 2
        assert job.documents == len(documents)
        await agree(made, documents)


async def test_only_some_collections_are_copied_and_nothing_is_vouched_for(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made)
        stale = Write("users/gone", {"n": 1})
        await made.direct.commit([stale, Write("files/gone", {"n": 1})], timeout=5)
        await done(made)
        await made.direct.commit([Write("users/gone", None), Write("files/gone", None)], timeout=5)
        await made.sql.execute(
            """insert into crossfade.pending (intent, path, collection_path, collection_id, epoch,
            lease_until, reason) values ('wildcard', '', '', '', 0, 'infinity', 'a test')"""
        )
        job = await done(made, replace(EVERYTHING, collections=("users", "tasks")))
        wanted = [path for path in documents if path.split("/")[0] in {"users", "tasks"}]
        assert job.documents == len(wanted)
        await made.sql.execute("update crossfade.pending set lease_until = 'infinity'")
        assert await made.sql.fetchval("select count(*) from crossfade.pending where path = ''")
        await made.sql.execute("delete from crossfade.pending where path = ''")
        await made.sql.execute("update crossfade.pending set lease_until = now()")
        await made.settled()
        gone = await made.sql.fetch(
            "select path from crossfade.versions where live and path like '%/gone'"
        )
        # The sweep was of these collections alone.
        assert [row[0] for row in gone] == ["files/gone"]


async def test_a_collection_that_is_not_there_is_refused(postgres_database: Any):
    async with stack(postgres_database) as made:
        await filled(made, 10)
        with pytest.raises(Exception, match="no root collection"):
            await begin(both(made), replace(EVERYTHING, collections=("audio_chunks",)))


async def test_commits_of_stage_off_are_made_known(postgres_database: Any):
    async with stack(postgres_database, Stage.OFF) as made:
        await filled(made, 10)
        await made.client.set("notes/off", {"n": 1}, request_id="once")
        await made.stage("dual_write")
        await done(made)
        assert await made.sql.fetchval("select count(*) from crossfade.requests") == 1


async def test_who_comes_second_at_the_end_ends_too(postgres_database: Any):
    async with stack(postgres_database) as made:
        await filled(made, 10)
        own = both(made)
        job = await begin(own, EVERYTHING)
        second = work(own, job)
        assert (await work(own, job).run()).state is JobState.DONE
        await asyncio.wait_for(second._end(), 5)


# --- beside writers ----------------------------------------------------------------------------


async def _between(made: Running, act: Callable[[], Any]) -> Job:
    """Copies; `act` is done when the page of "notes" was read, before it is put."""
    own = both(made)
    job = await begin(own, Asked())
    real = ForwardPages.read

    async def read(self: ForwardPages, partition: Any, limit: int) -> Any:
        page = await real(self, partition, limit)
        await act()
        return page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForwardPages, "read", read)
        return await work(own, job, pacing=Pacing(workers=1)).run()


async def test_a_page_never_overwrites_a_newer_write_or_brings_a_deleted_document_back(
    postgres_database: Any,
):
    async with stack(postgres_database) as made:
        for n in range(5):
            await made.direct.commit([Write(f"notes/{n}", {"n": "old"})], timeout=5)

        async def act() -> None:
            await made.client.set("notes/1", {"n": "new"})
            await made.client.delete("notes/2")
            await made.client.set("notes/3", {"n": "new"})
            await made.client.delete("notes/3")
            await made.client.delete("notes/4")
            await made.client.set("notes/4", {"n": "new"})
            await mirrored(made)
            # No tombstone goes while a page is open.
            await made.sidecar.members["default"].recopy._mirror.pruning.tombstones(
                "", limit=99, timeout=5
            )

        await _between(made, act)
        await made.settled()
        await agree(
            made, {"notes/0": {"n": "old"}, "notes/1": {"n": "new"}, "notes/4": {"n": "new"}}
        )


async def test_a_page_that_was_read_too_long_ago_is_not_put(postgres_database: Any):
    """Its lease is over, so a tombstone may be gone that would have kept it out."""
    async with stack(postgres_database) as made:
        await made.direct.commit([Write("notes/1", {"n": "old"})], timeout=5)
        acted = False

        async def act() -> None:
            nonlocal acted
            if acted:
                return
            acted = True
            await made.client.delete("notes/1")
            await mirrored(made)
            await made.sql.execute("update crossfade.pages set lease_until = now()")
            await made.sql.execute("delete from crossfade.pending where path = ''")
            await made.sidecar.members["default"].recopy._mirror.pruning.tombstones(
                "", limit=99, timeout=5
            )
            assert not await made.sql.fetchval("select count(*) from crossfade.versions")

        await _between(made, act)
        await made.settled()
        assert (await held(made)).total() == 0


async def test_who_has_lost_his_claim_puts_nothing(postgres_database: Any):
    """A process that stood still: its page is another's by now, and counted by that one."""
    async with stack(postgres_database) as made:
        await filled(made, 10)
        own = both(made)
        job = await begin(own, Asked())
        slow, fast = ForwardPages(own, job), ForwardPages(own, job)
        await slow.open()
        await fast.open()
        mine = await own.jobs.claim(job.id, "slow", "slow", 0.01)
        assert mine is not None
        page = await slow.read(mine, 50)
        await asyncio.sleep(0.05)
        theirs = await own.jobs.claim(job.id, "fast", "fast", 5.0)
        assert theirs is not None
        assert (theirs.number, theirs.position) == (mine.number, None)
        theirs = await fast.settle(theirs, await fast.read(theirs, 20), 5.0)
        counted = (await own.jobs.get(job.id)).documents
        assert 0 < counted <= 20
        with pytest.raises(Aborted):
            await slow.settle(mine, page, 5.0)
        # Nor does it get back what it has lost by saying that it lives.
        await own.jobs.renew(job.id, "slow", ["slow"], 5.0)
        with pytest.raises(Aborted):
            await slow.settle(mine, page, 5.0)
        assert (await own.jobs.get(job.id)).documents == counted
        assert (await held(made)).total() == counted
        await fast.settle(theirs, await fast.read(theirs, 20), 5.0)
        assert (await own.jobs.get(job.id)).documents == counted + 20


# --- stopped -----------------------------------------------------------------------------------


async def _paged(doing: Backfilling, own: Both, job: Job, pages: int) -> asyncio.Task[Job]:
    """A job under way, of which some documents are done."""
    task = asyncio.create_task(doing.run())

    async def some() -> bool:
        return (await own.jobs.get(job.id)).documents >= pages

    await eventually(some)
    return task


async def test_pause_resume_and_cancel(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made)
        own = both(made)
        channel = grpc.aio.insecure_channel(made.sidecar.address)
        over_grpc = jobs_pb2_grpc.JobsStub(channel)
        job = await begin(own, replace(EVERYTHING, rate=600.0))
        doing = work(own, job, pacing=Pacing(2, page=5))
        task = await _paged(doing, own, job, 20)

        async def control(action: Any) -> Any:
            request = jobs_pb2.ControlJobRequest(id=job.id, action=action, who="a test")
            return await over_grpc.ControlJob(request)

        shown = await control(jobs_pb2.JOB_ACTION_PAUSE)
        assert (shown.state, shown.reason) == ("paused", "by a test")
        before = (await own.jobs.get(job.id)).documents
        assert before < len(documents)
        await asyncio.sleep(0.7)
        assert (await own.jobs.get(job.id)).documents == before
        assert not task.done()
        assert doing.waits_for == RESUMED

        listed = await over_grpc.ListJobs(jobs_pb2.ListJobsRequest())
        assert [(each.id, each.state, each.rate) for each in listed.jobs] == [
            (job.id, "paused", 600)
        ]
        assert sum(each.counts["copied"] for each in listed.jobs[0].counts) == before

        await control(jobs_pb2.JOB_ACTION_RESUME)
        await eventually(lambda: _more(own, job, before))
        await control(jobs_pb2.JOB_ACTION_CANCEL)
        ended = await asyncio.wait_for(task, 10)
        assert ended.state is JobState.CANCELLED
        assert ended.documents < len(documents)
        assert ended.waited["pause"] > 0.5
        with pytest.raises(grpc.aio.AioRpcError, match="has ended"):
            await control(jobs_pb2.JOB_ACTION_RESUME)
        with pytest.raises(NotFound):
            await own.jobs.pause(job.id + 99)
        assert not (await made.sidecar.status()).copied
        # A cancelled one is not gone on with.
        assert (await begin(own, EVERYTHING)).id != job.id
        await channel.close()


async def _more(own: Both, job: Job, before: int) -> bool:
    return (await own.jobs.get(job.id)).documents > before


async def test_a_rate_is_kept_by_all_processes_together(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made, 20)
        own = both(made)
        rate = len(documents) / 1.5
        job = await begin(own, replace(EVERYTHING, rate=rate))
        began = time.monotonic()
        both_ = [work(own, job, pacing=Pacing(workers=2, page=20)) for _ in range(2)]
        for each in both_:
            each._set_rate(1)  # as after the first heartbeat
        await asyncio.gather(*(each.run() for each in both_))
        assert time.monotonic() - began > 1.0
        assert (await own.jobs.get(job.id)).documents == len(documents)


async def test_under_a_rate_workers_read_one_after_another(
    postgres_database: Any, monkeypatch: Any
):
    """All in the same moment would be a burst, which callers notice."""
    begun: list[float] = []
    read = ForwardPages.read

    async def noted(self: ForwardPages, partition: Any, limit: int) -> Any:
        begun.append(time.monotonic())
        return await read(self, partition, limit)

    async def enough() -> bool:
        return len(begun) >= 24

    monkeypatch.setattr(ForwardPages, "read", noted)
    async with stack(postgres_database) as made:
        await filled(made, 40)
        own = both(made)
        job = await begin(own, replace(EVERYTHING, rate=100.0))
        doing = asyncio.create_task(work(own, job, pacing=Pacing(workers=8, page=5)).run())
        await eventually(enough, 20)
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
    gaps = [after - before for before, after in itertools.pairwise(begun)]
    assert statistics.median(gaps) > 0.03  # five documents are 0.05 s; of eight at a time it is 0


async def test_a_job_waits_for_the_next_days_budget(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made, 20)
        own = both(made)
        now = time.time()
        budget = Budget(60, Days(), clock=lambda: now)
        await budget.refill()
        job = await begin(own, EVERYTHING)
        seen = Telemetry()
        doing = work(own, job, pacing=Pacing(1, page=25), budget=budget, telemetry=seen)
        task = asyncio.create_task(doing.run())
        days = 0
        while not task.done():
            assert days < 20
            await eventually(lambda: _waits_or_ends(doing, task), 20)
            waits = {} if task.done() else {("backfill", "default", "budget"): 1.0}
            assert seen.read_gauge(JOB_WAITING) == waits
            spent = (await own.jobs.get(job.id)).documents
            # What is under way may overdraw a part.
            assert spent <= (days + 1) * 60 + 25
            days += 1
            now += 86_400
            doing.effort.waits_for = ""
            for _ in range(3):
                await budget.refill()
        assert days > 1
        assert (await task).documents == len(documents)
        assert (await task).waited["budget"] > 0
        assert not (await task).retries
        assert seen.counts(JOB_PAGES)["backfill", "default"] >= len(documents) / 25


async def _waits_or_ends(doing: Backfilling, task: asyncio.Task[Job]) -> bool:
    if doing._budget is not None:
        await doing._budget.refill()
    return task.done() or doing.waits_for.startswith("the day's budget")


async def test_a_store_that_refuses_is_asked_less_and_everything_is_copied(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made, 30)
        failing = faults.parse(None, ["0.15:RESOURCE_EXHAUSTED", "0.1:UNAVAILABLE"], 5)
        server = await firestore_v1.serve(made.stores, "127.0.0.1", 0, failing)
        firestore = connect(DATABASE, server.address)
        own = replace(both(made), firestore=firestore)
        job = await begin(both(made), EVERYTHING)
        seen = Telemetry()
        doing = work(own, job, pacing=Pacing(workers=4, page=20), telemetry=seen)
        least = 9

        def told() -> None:
            nonlocal least
            least = min(least, doing._pressure.allowed)

        doing._told = told
        began = time.monotonic()
        ended = await doing.run()
        assert (ended.state, ended.documents) == (JobState.DONE, len(documents))
        assert least < 4
        refused = seen.counts(JOB_RETRIES)
        assert refused["backfill", "default", "RESOURCE_EXHAUSTED"] > 0
        assert seen.read_gauge(JOB_WAITING) == {}
        # Whoever looks at the job is told what the process alone would know.
        shown = job_message(ended)
        assert shown.pages == seen.counts(JOB_PAGES)["backfill", "default"]
        assert {("backfill", "default", code): n for code, n in shown.retries.items()} == refused
        assert list(shown.waited) == ["store"]
        # From a refusal to the next page of any worker, so that may be short.
        assert 0 < shown.waited["store"] < time.monotonic() - began
        await agree(made, documents)
        await firestore.close()
        await server.stop(0)


async def test_a_store_that_stays_away_ends_the_work_and_not_the_job(postgres_database: Any):
    async with stack(postgres_database) as made:
        await filled(made, 10)
        nobody = connect(DATABASE, "127.0.0.1:1")
        own = both(made)
        job = await begin(own, EVERYTHING)
        away = work(replace(own, firestore=nobody), job, pacing=Pacing(patience=0.5))
        with pytest.raises(Exception, match=r"(?i)connect|refused|unavailable"):
            await away.run()
        assert (await own.jobs.get(job.id)).state is JobState.RUNNING
        assert (await done(made)).state is JobState.DONE
        await nobody.close()


async def test_a_job_of_another_generation_is_begun_anew(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made, 10)
        own = both(made)
        job = await begin(own, EVERYTHING)
        await made.stage("off")
        await made.direct.commit([Write("notes/~", None)], timeout=5)
        del documents["notes/~"]
        with pytest.raises(FailedPrecondition, match="nothing to copy"):
            await begin(own, EVERYTHING)
        ended = await work(own, job).run()
        assert ended.state is JobState.FAILED
        await made.stage("dual_write")
        again = await done(made)
        assert again.id != job.id
        assert again.documents == len(documents)
        await agree(made, documents)


async def test_a_job_of_something_else_is_not_taken_for_this_one(postgres_database: Any):
    async with stack(postgres_database) as made:
        await filled(made, 10)
        own = both(made)
        users = await begin(own, replace(EVERYTHING, collections=("users",)))
        with pytest.raises(FailedPrecondition, match="of users, is unfinished"):
            await begin(own, EVERYTHING)
        fresh = await begin(own, replace(EVERYTHING, fresh=True))
        assert fresh.id != users.id
        assert (await own.jobs.get(users.id)).state is JobState.CANCELLED


# --- what cannot be stored ---------------------------------------------------------------------


async def test_a_document_that_cannot_be_stored_becomes_a_dead_letter_whole(
    postgres_database: Any, monkeypatch: pytest.MonkeyPatch
):
    real = Mirror.put_page

    async def put_page(self: Mirror, images: Any, **options: Any) -> set[str]:
        if any(image.path == "notes/bad" for image in images):
            raise Internal("PostgreSQL refused a statement (SQLSTATE XX000)")
        return await real(self, images, **options)

    monkeypatch.setattr(Mirror, "put_page", put_page)
    async with stack(postgres_database) as made:
        documents = await filled(made, 20)
        bad: Any = {"n": 1, "odd": [float("nan"), b"\0", {"$": "\0"}]}
        await made.direct.commit([Write("notes/bad", bad)], timeout=5)
        job = await done(made)
        assert (job.state, job.letters) == (JobState.DONE, 1)
        assert job.documents == len(documents) + 1
        assert job.counts["notes"]["letters"] == 1
        await agree(made, documents)
        (letter,) = await both(made).jobs.letters(job.id)
        assert (letter.path, letter.cause) == ("notes/bad", "INTERNAL")
        assert identical(parse_document(letter.document, DATABASE).fields, bad)
        # It is shown with all others, and holds up a change of authority.
        (dead,) = await both(made).mirror.dead_letters.list(limit=9, timeout=5)
        assert (dead.path, dead.reason, dead.cause) == ("notes/bad", "backfill", "INTERNAL")
        with pytest.raises(grpc.aio.AioRpcError, match="1 document is a dead letter"):
            await made.stage("live")
        # Tried again, it is copied as every pending document is.
        monkeypatch.setattr(Mirror, "put_page", real)
        await both(made).mirror.dead_letters.retry(path="notes/bad", timeout=5)
        await made.settled()
        await agree(made, documents | {"notes/bad": bad})


async def test_a_name_too_long_for_an_index_leaves_the_mirror_incomplete(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made, 10)
        # So that it cannot be compressed below what an index takes.
        digits = "".join(str(n * n % 9973) for n in range(900))
        path = "/".join(["notes", digits[:1400], "deep", digits[1400:2800]])
        await made.direct.commit([Write(path, {"n": 1})], timeout=5)
        job = await done(made)
        assert (job.state, job.letters) == (JobState.FAILED, 1)
        assert "names that PostgreSQL cannot hold" in job.reason
        assert job.documents == len(documents) + 1
        assert not (await made.sidecar.status()).copied


# --- from PostgreSQL ---------------------------------------------------------------------------


async def test_from_postgresql_what_firestore_lacks_is_sent_and_foreign_documents_stay(
    postgres_database: Any,
):
    async with stack(postgres_database) as made:
        documents = await filled(made, 20)
        await done(made)
        await made.settled()
        await made.stage("live")
        await made.client.set("notes/live", {"n": 1})
        await made.settled()
        # Written by nobody who told Firestore, as after a restore of PostgreSQL alone.
        await made.sql.execute(
            """update crossfade.versions set peer_time = null, peer_epoch = null,
            peer_version = null where path in ('notes/live', 'notes/~')"""
        )
        await made.direct.commit([Write("notes/live", None)], timeout=5)
        await made.direct.commit([Write("_mine/x", {"n": "foreign"})], timeout=5)
        job = await done(made)
        assert job.state is JobState.DONE
        assert sum(counts.get("queued", 0) for counts in job.counts.values()) == 3
        assert job.documents == len(documents) + 1
        await eventually(lambda: _settled(made, job), 15)
        assert await both(made).jobs.pending(job) == (0, 1)
        reading = await made.direct.get(["notes/live", "_mine/x"], timeout=5, exact_times=True)
        fields = [parse_document(each.data or b"", DATABASE).fields for each in reading.documents]
        assert fields == [{"n": 1}, {"n": "foreign"}]
        # A second one has nothing to do.
        again = await done(made)
        assert sum(counts.get("queued", 0) for counts in again.counts.values()) == 0


async def _settled(made: Running, job: Job) -> bool:
    return (await both(made).jobs.pending(job))[0] == 0


# --- before ------------------------------------------------------------------------------------


async def test_a_forecast_says_what_would_be_copied_and_what_would_not_fit(postgres_database: Any):
    async with stack(postgres_database) as made:
        documents = await filled(made)
        found = await forecast(both(made), EVERYTHING)
        assert found.reads == len(documents)
        roots = Counter(path.partition("/")[0] for path in documents)
        assert {name: n for name, n in found.documents.items() if name} == roots
        assert found.beside["notes"] == found.sampled["notes"] > 0
        priority = found.fields["tasks", "priority"]
        assert priority.in_remainder > 0
        # Nothing was done.
        assert await both(made).jobs.list() == []
        assert (await held(made)).total() == 0
        copied = await done(made)
        every = {name: n["beside"] for name, n in copied.counts.items() if n.get("beside")}
        for name in ("tasks", "users"):
            assert 0 < found.beside[name] <= every[name]
