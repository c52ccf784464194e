"""The job of a validation: begun, worked on by any number of processes, and certified."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import structlog

from crossfade.budget import Budget
from crossfade.comparing import Comparer
from crossfade.document import from_micros
from crossfade.errors import Aborted, FailedPrecondition
from crossfade.jobs.compare import Slice
from crossfade.jobs.integrity import violations
from crossfade.jobs.planning import PARTS, SMALL, plan_firestore
from crossfade.jobs.report import MAX_SAMPLES, Circumstances, make_report
from crossfade.jobs.tally import Tally
from crossfade.jobs.validate import How, Side, ValidatePages, settle_moving
from crossfade.jobs.work import Pacing, Work
from crossfade.plan import StoreName
from crossfade.store import Stores
from crossfade.stores.fences import Fences
from crossfade.stores.firestore import INTENTS
from crossfade.stores.postgres.jobs import End, Job, JobState, NewPartition
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import fingerprint
from crossfade.telemetry import Telemetry
from crossfade.verdict import Judge

log = structlog.get_logger(__name__)

KIND = "validate"
PAGE, PAGE_SECONDS = 1_000, 2.0
"""A page holds no lock, and is only compared again where a process ends over it."""
SETTLE_SECONDS = 30.0
"""How long a validation that is done waits for documents that still move."""
INTEGRITY_SECONDS = 3_600.0
_DEAD = "select count(*) from crossfade.pending where dead and path = any($1::text[])"
_REVISIONS = "select version_num from crossfade.alembic_version order by 1"


@dataclass(frozen=True, slots=True)
class Asked:
    """`collections` none: everything. `fresh`: not what an earlier start left unfinished.
    `parts`, `small`: as for a backfill."""

    collections: tuple[str, ...] = ()
    how: How = field(default_factory=How)
    rate: float | None = None
    fresh: bool = False
    who: str = ""
    parts: int = PARTS
    small: int = SMALL


@dataclass(frozen=True, slots=True)
class Stack:
    """What a validation runs on. `new_judge` makes one with the rules of the settings;
    `database`: how PostgreSQL is called in the report; `mapping`: the package of the mapping."""

    side: Side
    lanes: Lanes
    stores: Stores
    telemetry: Telemetry
    new_judge: Callable[[], Judge]
    mapping: str
    database: str
    budget: Budget | None = None


# --- beginning ---------------------------------------------------------------------------------


async def begin(stack: Stack, asked: Asked) -> Job:
    """The job that is asked for: an unfinished one, or a new one.

    Raises FailedPrecondition where there is nothing to compare, or another validation is
    unfinished; InvalidArgument for a collection that is not there.
    """
    both = stack.side.both
    snapshot = await both.control.refresh()
    if not snapshot.rules.mirrored:
        raise FailedPrecondition(
            f"stage {snapshot.stage}: one store does not follow the other, so they differ"
        )
    if (await both.mirror.summary(timeout=both.timeout)).wildcards:
        raise FailedPrecondition(
            "the first copy has not ended, so nothing is equal yet; crossfade backfill first"
        )
    found = await both.jobs.unfinished(KIND, both.group)
    if found is not None and (asked.fresh or not _stands(found, snapshot.epoch)):
        await both.jobs.cancel(found.id, "begun anew")
        found = None
    if found is None:
        return await _new(stack, asked)
    if sorted(found.collections) != sorted(asked.collections) or _how(found) != asked.how:
        raise FailedPrecondition(
            f"job {found.id}, a validation ({_how(found).mode}) of "
            f"{', '.join(found.collections) or 'everything'}, is unfinished: end it first, "
            f"or begin anew with --new"
        )
    if asked.rate is not None and asked.rate != found.options.get("rate"):
        await both.jobs.set_options(found.id, {"rate": asked.rate})
        found = replace(found, options={**found.options, "rate": asked.rate})
    return found


def _stands(job: Job, epoch: int) -> bool:
    """Whether what was compared still says something."""
    return job.epoch == epoch


def _how(job: Job) -> How:
    return How(**job.options["how"])


async def _new(stack: Stack, asked: Asked) -> Job:
    both = stack.side.both
    snapshot = both.control.snapshot
    ranges, estimate = await plan_firestore(
        both.firestore,
        both.mappings,
        collections=asked.collections,
        parts=asked.parts,
        small=asked.small,
        timeout=both.timeout,
    )
    job = await both.jobs.create(
        KIND,
        both.group,
        [
            NewPartition(each.collection, each.begin, each.end)
            for _, each in ranges
            if each.collection != INTENTS
        ],
        authority=snapshot.authority.value,
        epoch=snapshot.epoch,
        generation=snapshot.generation,
        collections=asked.collections,
        options={"how": asdict(asked.how), "rate": asked.rate},
        who=asked.who,
        estimate=estimate,
    )
    if job is None:  # somebody else was first
        job = await both.jobs.unfinished(KIND, both.group)
    if job is None:
        raise Aborted("another validation came and went meanwhile")
    log.info("a validation begins", job=job.id, partitions=job.partitions, documents=estimate)
    return job


# --- working -----------------------------------------------------------------------------------


def work(
    stack: Stack,
    job: Job,
    *,
    pacing: Pacing | None = None,
    told: Callable[[], None] = lambda: None,
) -> Work[Slice]:
    """The part of this process in the job."""
    side, how = stack.side, _how(job)

    def pages() -> ValidatePages:
        judge = stack.new_judge()
        return ValidatePages(side, job, how, judge, _comparer(stack, job, judge))

    async def after_change() -> bool:
        await side.both.jobs.fail(job.id, "the authority changed; start a new validation")
        return False

    return Work(
        side.both.jobs,
        job,
        pages,
        lambda: _finish(stack, job, how),
        after_change,
        pacing=pacing or Pacing(page=PAGE, target=PAGE_SECONDS),
        budget=stack.budget,
        told=told,
        telemetry=stack.telemetry,
    )


def _comparer(stack: Stack, job: Job, judge: Judge) -> Comparer:
    both = stack.side.both
    fences = Fences(both.firestore, both.control.group)
    charge: Callable[[int], None] = (lambda _: None) if stack.budget is None else stack.budget.spend

    async def vouched() -> bool:
        """No commit goes past PostgreSQL: asked of the control document itself."""
        charge(1)
        document = await fences.read(timeout=both.timeout)
        return document.open and document.gate_open and document.epoch == job.epoch

    return Comparer(
        stack.stores,
        both.database,
        stack.telemetry,
        judge,
        timeout=both.timeout,
        vouched=vouched if job.authority == StoreName.FIRESTORE else None,
        charge=charge,
    )


# --- the end -----------------------------------------------------------------------------------


async def _finish(stack: Stack, job: Job, how: How) -> None:
    """All partitions are done: what is left, the report, the certificate."""
    side, both = stack.side, stack.side.both
    done = await both.jobs.get(job.id)
    if done.state is not JobState.RUNNING:
        return
    tally = Tally(done.counts)
    judge = stack.new_judge()
    settled = await settle_moving(
        side, job, judge, _comparer(stack, job, judge), tally, SETTLE_SECONDS
    )
    samples = [*await side.findings.list(job.id, MAX_SAMPLES), *settled.found]
    dead = int(await stack.lanes.fetchval(_DEAD, settled.moving, timeout=both.timeout))
    found = await violations(stack.lanes, both.mappings, timeout=INTEGRITY_SECONDS)
    of = await _circumstances(stack, done, how)
    report = make_report(of, tally, samples, settled.moving, dead, found)
    await side.findings.certify(
        End(job.id, {"equal": report["equal"]}),
        report,
        group=both.group,
        epoch=job.epoch,
        generation=job.generation,
        fingerprint=of.fingerprint,
        mode=how.mode,
        collections=job.collections,
        equal=report["equal"],
    )
    log.info("a validation ended", job=job.id, equal=report["equal"])


async def _circumstances(stack: Stack, job: Job, how: How) -> Circumstances:
    both = stack.side.both
    # Only a database that migrations made has the table.
    there = await stack.lanes.fetchval(
        "select to_regclass('crossfade.alembic_version') is not null", timeout=both.timeout
    )
    rows = await stack.lanes.fetch(_REVISIONS, timeout=both.timeout) if there else []
    return Circumstances(
        job=job.id,
        group=both.group,
        mode=how.mode,
        since=None if how.since is None else from_micros(how.since),
        collections=job.collections,
        firestore=both.database.name,
        postgresql=stack.database,
        authority=job.authority,
        stage=stack.side.stage,
        epoch=job.epoch,
        generation=job.generation,
        begun_at=job.begun_at,
        ended_at=datetime.now(UTC),
        version=version("crossfade"),
        mapping=stack.mapping,
        fingerprint=fingerprint(both.mappings),
        revisions=tuple(row[0] for row in rows),
    )


async def report_of(stack: Stack, job: Job) -> Mapping[str, Any]:
    """The report of a job that is done. Raises Aborted for one that is not."""
    report = await stack.side.findings.report(job.id)
    if report is None:
        raise Aborted(f"job {job.id} is {job.state}: {job.reason or 'it has no report'}")
    return report
