"""The first copy, and every other: all documents of the authority into the mirror, while
traffic runs.

From Firestore: pages of raw documents are put under the guard, so that a page never
overwrites a newer write and never resurrects a delete; then the sweep queues a recopy of
what PostgreSQL has and no page had. Until that has ended, the wildcard row keeps the mirror
from answering anything: "not pending" is not "copied".

From PostgreSQL: what Firestore does not hold as it should is queued, and goes the way of
every other write (see reverse.py): it is sent under the precondition of what Firestore is
known to hold, and a foreign document is never overwritten.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import structlog

from crossfade.budget import Budget
from crossfade.errors import Aborted, EpochChanged, FailedPrecondition
from crossfade.failpoints import reach
from crossfade.jobs.back_pages import Back, BackPages
from crossfade.jobs.both import Both
from crossfade.jobs.forward_pages import Forward, ForwardPages, copy_token
from crossfade.jobs.planning import PARTS, SMALL, plan_firestore, plan_postgresql
from crossfade.jobs.work import Pacing, Work
from crossfade.plan import StoreName
from crossfade.snapshot import Snapshot
from crossfade.stores.postgres.jobs import End, Job, JobState, NewPartition, intent_of
from crossfade.telemetry import Telemetry

log = structlog.get_logger(__name__)

KIND = "backfill"
SWEEP_SECONDS = 600.0
POLL_SECONDS = 0.2
ALONE = Pacing(workers=1)


Backfilling: TypeAlias = Work[Forward] | Work[Back]


@dataclass(frozen=True, slots=True)
class Asked:
    """`collections` none: everything. `fresh`: not what an earlier start left unfinished.
    `parts`: into how many a large collection is cut; `small`: up to how many documents
    nothing is."""

    collections: tuple[str, ...] = ()
    rate: float | None = None
    fresh: bool = False
    who: str = ""
    parts: int = PARTS
    small: int = SMALL


# --- the job -----------------------------------------------------------------------------------


async def begin(stores: Both, asked: Asked) -> Job:
    """The job that is asked for: an unfinished one, or a new one.

    Raises FailedPrecondition in a stage without a mirror, and where another one is
    unfinished; InvalidArgument for a collection that is not there.
    """
    snapshot = await stores.control.refresh()
    if not snapshot.rules.mirrored:
        raise FailedPrecondition(
            f"stage {snapshot.stage}: there is nothing to copy; set stage dual_write first"
        )
    found = await stores.jobs.unfinished(KIND, stores.group)
    if found is not None and (asked.fresh or not _goes_on(found, snapshot)):
        await stores.jobs.cancel(found.id, "begun anew")
        found = None
    if found is None:
        await stores.control.copy_may_begin(time.monotonic() + stores.timeout)
        found = await _new(stores, asked, snapshot)
    if sorted(found.collections) != sorted(asked.collections):
        raise FailedPrecondition(
            f"job {found.id}, of {', '.join(found.collections) or 'everything'}, is unfinished: "
            f"end it first, or cancel it (crossfade jobs cancel {found.id}, or --new)"
        )
    if asked.rate is not None and asked.rate != found.options.get("rate"):
        await stores.jobs.set_options(found.id, {"rate": asked.rate})
        found = replace(found, options={**found.options, "rate": asked.rate})
    return found


async def _new(stores: Both, asked: Asked, snapshot: Snapshot) -> Job:
    if snapshot.authority is StoreName.FIRESTORE:
        ranges, estimate = await plan_firestore(
            stores.firestore,
            stores.mappings,
            collections=asked.collections,
            parts=asked.parts,
            small=asked.small,
            timeout=stores.timeout,
        )
    else:
        ranges, estimate = await plan_postgresql(
            stores.held, asked.collections, asked.parts, timeout=stores.timeout
        )
    job = await stores.jobs.create(
        KIND,
        stores.group,
        [NewPartition(each.collection, each.begin, each.end, rank) for rank, each in ranges],
        authority=snapshot.authority.value,
        epoch=snapshot.epoch,
        generation=snapshot.generation,
        collections=asked.collections,
        options={} if asked.rate is None else {"rate": asked.rate},
        who=asked.who,
        estimate=estimate,
    )
    if job is None:  # somebody else was first
        job = await stores.jobs.unfinished(KIND, stores.group)
    if job is None:
        raise Aborted("another backfill came and went meanwhile")
    log.info("a backfill begins", job=job.id, partitions=job.partitions, documents=estimate)
    return job


def _goes_on(job: Job, snapshot: Snapshot) -> bool:
    """Whether what the job has done still counts: everything was mirrored since."""
    return (
        snapshot.rules.mirrored
        and snapshot.authority.value == job.authority
        and snapshot.generation == job.generation
    )


def work(
    stores: Both,
    job: Job,
    *,
    pacing: Pacing | None = None,
    budget: Budget | None = None,
    told: Callable[[], None] = lambda: None,
    telemetry: Telemetry | None = None,
) -> Backfilling:
    """The part of this process in the job."""

    async def after_change() -> bool:
        snapshot = await stores.control.refresh()
        while not snapshot.writable:
            await asyncio.sleep(POLL_SECONDS)
            snapshot = await stores.control.refresh()
        if _goes_on(job, snapshot):
            return True
        await stores.jobs.fail(job.id, "the authority is another, or the mirror was left")
        return False

    if job.authority == StoreName.FIRESTORE:
        return Work(
            stores.jobs,
            job,
            lambda: ForwardPages(stores, job),
            lambda: _finish_forward(stores, job),
            after_change,
            pacing=pacing,
            budget=budget,
            told=told,
            telemetry=telemetry,
        )
    return Work(
        stores.jobs,
        job,
        lambda: BackPages(stores, job),
        lambda: _finish_back(stores, job),
        after_change,
        pacing=pacing,
        budget=budget,
        told=told,
        telemetry=telemetry,
    )


async def _finish_forward(stores: Both, job: Job) -> None:
    """The sweep, and the end of the job. Raises JobStopped where somebody else was first."""
    if unburied := await stores.jobs.unburied(job.id):
        await stores.jobs.fail(
            job.id, f"{unburied} documents have names that PostgreSQL cannot hold"
        )
        return
    token = copy_token()
    await stores.mirror.begin_copy(token, timeout=stores.timeout)
    try:
        swept = await stores.mirror.finish_copy(
            token,
            epoch=stores.control.snapshot.epoch,
            generation=job.generation,
            timeout=SWEEP_SECONDS,
            seen=job.token,
            roots=job.collections or None,
            also=End(job.id, {}),
        )
    finally:
        await stores.mirror.end_copy(token, timeout=stores.timeout)
    reach("backfill.swept")
    await stores.jobs.note(job.id, {"swept": swept})
    log.info("copy ended", job=job.id, swept=swept)


async def _finish_back(stores: Both, job: Job) -> None:
    """The end of the job; what it queued is settled by whoever settles pending rows."""
    await stores.held.queue(
        intent_of(job.id),
        [],
        epoch=stores.control.snapshot.epoch,
        generation=job.generation,
        also=End(job.id, {}),
        timeout=stores.timeout,
    )


# --- in a sidecar ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """`removed`: documents that PostgreSQL had and no page had, queued for a recopy."""

    copied: int
    removed: int
    done: bool


async def backfill(stores: Both) -> AsyncIterator[Progress]:
    """Copies everything with one worker, or goes on where an earlier one ended; yields after
    every page.

    Raises FailedPrecondition in a stage that does not mirror, EpochChanged when the stage left
    dual writing or the authority changed meanwhile.
    """
    job = await begin(stores, Asked())
    page = asyncio.Event()
    running = asyncio.create_task(work(stores, job, pacing=ALONE, told=page.set).run())
    try:
        while not running.done():
            paged = asyncio.ensure_future(page.wait())
            await asyncio.wait([running, paged], return_when=asyncio.FIRST_COMPLETED)
            paged.cancel()
            page.clear()
            now = await stores.jobs.get(job.id)
            yield Progress(now.total("copied"), 0, done=False)
        job = await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if job.state is JobState.FAILED:
        raise EpochChanged(job.reason)
    if job.state is not JobState.DONE:
        raise Aborted(f"job {job.id} is {job.state}: {job.reason}")
    yield Progress(job.total("copied"), job.outcome.get("swept", 0), done=True)
