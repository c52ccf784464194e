"""The tables of jobs: work over all documents that outlives the processes that do it.

A job is cut into partitions. A process claims one at a time under a lease, and moves its
cursor and its counts in the very transaction that does the work of a page, if the claim
stands then and the job runs. So a process may end anywhere, or wake up late: the next one
goes on behind the last page that was done, and no page counts twice.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import asyncpg

from crossfade.document import collection_id, collection_path
from crossfade.errors import Aborted, FailedPrecondition, NotFound
from crossfade.mapping import escape_path, unescape_path
from crossfade.stores.postgres.lanes import Connection, Lanes


class JobState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self not in {JobState.RUNNING, JobState.PAUSED}


_CREATE = """insert into crossfade.jobs (kind, grp, collections, options, state, who, token,
    authority, epoch, generation, estimate)
select $1, $2, $3::text[], $4::jsonb, 'running', $5, greatest(
        (extract(epoch from clock_timestamp()) * 1000000)::int8,
        (select max(token) + 1 from crossfade.jobs)), $6, $7, $8, $9
on conflict (kind, grp) where state in ('running', 'paused') do nothing
returning id"""
_PARTITIONS = """insert into crossfade.job_partitions
    (job, number, rank, collection_id, begins, ends)
select $1, number, rank, collection_id, begins, ends
from unnest($2::int4[], $3::int4[], $4::text[], $5::text[], $6::text[])
    as p (number, rank, collection_id, begins, ends)"""
_SHOW = """select j.*, p.partitions, p.done as partitions_done, p.holders, p.counted, l.letters
from crossfade.jobs j,
lateral (select count(*) as partitions, count(*) filter (where done) as done,
    count(distinct holder) filter (where lease_until > clock_timestamp() and not done) as holders,
    coalesce(jsonb_agg(counts) filter (where counts <> '{}'::jsonb), '[]'::jsonb) as counted
    from crossfade.job_partitions where job = j.id) p,
lateral (select count(*) as letters from crossfade.job_letters where job = j.id) l
"""
_LIST = f"{_SHOW} where $1::text is null or j.kind = $1 order by j.id desc limit $2"
_ONE = f"{_SHOW} where j.id = $1"
_UNFINISHED = f"""{_SHOW} where j.kind = $1 and j.grp = $2 and j.state in ('running', 'paused')"""
_CLAIM = """update crossfade.job_partitions p
set claim = $2, holder = $3, updated_at = now(),
    lease_until = clock_timestamp() + $4::float8 * interval '1 second'
from (select job, number from crossfade.job_partitions
    where job = $1 and not done and ($5::int4 is null or number = $5)
        and rank = (select min(rank) from crossfade.job_partitions where job = $1 and not done)
        and (claim is null or lease_until < clock_timestamp())
        and exists (select from crossfade.jobs where id = $1 and state = 'running')
    order by number limit 1 for update skip locked) free
where p.job = free.job and p.number = free.number
returning p.number, p.collection_id, p.begins, p.ends, p.position, p.counts"""
_RENEW = """with renewed as (update crossfade.job_partitions
    set lease_until = clock_timestamp() + $3::float8 * interval '1 second'
    where job = $1 and claim = any($4::text[]) and not done)
select state, reason, options, (select count(distinct holder) from crossfade.job_partitions
    where job = $1 and holder <> $2 and not done and lease_until > clock_timestamp()) as others,
    (select count(*) from crossfade.job_partitions where job = $1 and not done) as open
from crossfade.jobs where id = $1"""
_IS_DONE = "select done from crossfade.job_partitions where job = $1 and number = $2"
_RELEASE = """update crossfade.job_partitions
set claim = null, holder = null, lease_until = null where job = $1 and claim = $2"""
_CHECKPOINT = """update crossfade.job_partitions p
set position = $4, counts = $5::jsonb, done = $6, updated_at = now(),
    claim = case when $6 then null else claim end,
    lease_until = clock_timestamp() + $7::float8 * interval '1 second'
where p.job = $1 and p.number = $2 and p.claim = $3
    and exists (select from crossfade.jobs where id = $1 and state = 'running')"""
_LETTER = "insert into crossfade.job_letters (job, path, cause, document) values ($1, $2, $3, $4)"
# It holds up a change of authority as every dead letter does.
_DEAD = """insert into crossfade.pending (intent, path, collection_path, collection_id, epoch,
    lease_until, reason, attempts, failure, dead)
values ($1, $2, $3, $4, $5, clock_timestamp(), 'backfill', 1, $6, true)
on conflict (intent, path) do nothing"""
_LETTERS = """select id, path, cause, document, at from crossfade.job_letters
where job = $1 and id > $2 order by id limit $3"""
_CHANGE = """update crossfade.jobs set state = $2, reason = $3,
    ended_at = case when $2 in ('running', 'paused') then null else clock_timestamp() end
where id = $1 and state = any($4::text[])"""
_END = """update crossfade.jobs set state = $2, reason = $3, outcome = outcome || $4::jsonb,
    ended_at = clock_timestamp()
where id = $1 and state = 'running' and ($2 <> 'done' or not exists (
    select from crossfade.job_partitions where job = $1 and not done))"""
_NOTE = "update crossfade.jobs set outcome = outcome || $2::jsonb where id = $1"
# Several processes add to the same words.
_SPEND = """update crossfade.jobs set outcome = outcome || jsonb_build_object('effort', (
    select jsonb_object_agg(word, total) from (
        select word, sum(count::float8) as total from (
            select * from jsonb_each_text(coalesce(outcome -> 'effort', '{}'))
            union all select * from jsonb_each_text($2::jsonb)) each (word, count)
        group by word) totals))
where id = $1"""
_UNBURIED = """select count(*) from crossfade.job_letters l where job = $1 and not exists (
    select from crossfade.pending p where p.path = l.path)"""
_PENDING = """select count(*) filter (where not dead) as left, count(*) filter (where dead) as dead
from crossfade.pending where intent = any($1::text[])"""
_OPTIONS = "update crossfade.jobs set options = options || $2::jsonb where id = $1"

Counts = dict[str, dict[str, int]]
"""By collection id, how many documents: by a word of the kind of job."""


DONE_WORDS = ("copied", "letters", "queued", "held", "compared")
"""Every document that a job has done is counted under exactly one of these; what else is
counted says more of the same documents."""


def add(total: Counts, more: Mapping[str, Mapping[str, int]]) -> None:
    """Adds counts to others, in place."""
    for name, counts in more.items():
        mine = total.setdefault(name, {})
        for word, count in counts.items():
            mine[word] = mine.get(word, 0) + count


@dataclass(frozen=True, slots=True)
class NewPartition:
    """A range of names (see jobs/partitions.py); None: without that bound. None of a `rank` is
    begun before all of lower ones are done."""

    collection: str
    begin: str | None
    end: str | None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """A claimed one. `position`: the last name that is done; None: nothing is."""

    job: int
    number: int
    claim: str
    collection: str
    begin: str | None
    end: str | None
    position: str | None
    counts: Counts


@dataclass(frozen=True, slots=True)
class Job:
    """`collections` none: everything. `processes`: how many work on it now. `token`: what
    `versions.seen` is set to by it. `estimate`: documents at the beginning, about."""

    id: int
    kind: str
    group: str
    collections: tuple[str, ...]
    options: Mapping[str, Any]
    state: JobState
    reason: str
    who: str
    token: int
    authority: str
    epoch: int
    generation: int
    estimate: int | None
    outcome: Mapping[str, Any]
    begun_at: datetime
    ended_at: datetime | None
    partitions: int
    partitions_done: int
    processes: int
    counts: Counts = field(default_factory=dict)
    letters: int = 0
    effort: Mapping[str, float] = field(default_factory=dict)
    """What all processes spent on it so far (see jobs/effort.py)."""

    @property
    def pages(self) -> int:
        return int(self.effort.get("pages", 0))

    @property
    def retries(self) -> dict[str, int]:
        """Pages that were read again, by a store's error."""
        return {code: int(count) for code, count in self._spent("retries.").items()}

    @property
    def waited(self) -> dict[str, float]:
        """Seconds of all processes, by what they waited for: budget, store, pause."""
        return self._spent("waited.")

    def _spent(self, kind: str) -> dict[str, float]:
        words = sorted(word for word in self.effort if word.startswith(kind))
        return {word.removeprefix(kind): self.effort[word] for word in words}

    @property
    def documents(self) -> int:
        """How many are done: each is counted under one of these words."""
        return sum(map(self.total, DONE_WORDS))

    def total(self, word: str) -> int:
        return sum(counts.get(word, 0) for counts in self.counts.values())


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a process that renews its leases is told. `others`: processes beside it that hold
    partitions. `open`: partitions that are not done, whoever has them."""

    state: JobState
    reason: str
    options: Mapping[str, Any]
    others: int
    open: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A document that could not be stored. `document`: its bytes as the other store holds it."""

    id: int
    path: str
    cause: str
    document: bytes
    at: datetime


class JobStopped(Aborted):
    """The job is paused or over, or the claim is another's by now. Nothing was done."""


@dataclass(frozen=True, slots=True)
class NewLetter:
    """A document that could not be stored under an epoch, and why."""

    path: str
    cause: str
    document: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a claimed partition is. `record` belongs into the transaction of the page."""

    partition: Partition
    position: str | None
    counts: Counts
    done: bool
    lease: float
    letters: Sequence[NewLetter] = ()

    async def record(self, connection: Connection) -> None:
        """Raises JobStopped, and the transaction is to be rolled back then."""
        partition = self.partition
        tag = await connection.execute(
            _CHECKPOINT,
            partition.job,
            partition.number,
            partition.claim,
            _escaped(self.position),
            {escape_path(name): counts for name, counts in self.counts.items()},
            self.done,
            self.lease,
        )
        if tag != "UPDATE 1":
            raise JobStopped("the job does not run any more, or the claim is lost")
        for letter in self.letters:
            await _bury(connection, partition.job, letter)


class Jobs:
    """Any number of processes may use them at the same time."""

    def __init__(self, lanes: Lanes, timeout: float = 5.0) -> None:
        self._lanes = lanes
        self._timeout = timeout

    # --- of a job -----------------------------------------------------------------------------

    async def create(
        self,
        kind: str,
        group: str,
        partitions: Sequence[NewPartition],
        *,
        authority: str,
        epoch: int,
        generation: int,
        collections: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        who: str = "",
        estimate: int | None = None,
    ) -> Job | None:
        """A running job; its partitions are worked on in this order. None: an unfinished one of
        the same kind and group is there."""
        async with self._lanes.transaction(self._timeout) as connection:
            job = await connection.fetchval(
                _CREATE,
                kind,
                group,
                [escape_path(name) for name in collections],
                dict(options or {}),
                who,
                authority,
                epoch,
                generation,
                estimate,
            )
            if job is None:
                return None
            await connection.execute(
                _PARTITIONS,
                job,
                list(range(len(partitions))),
                [each.rank for each in partitions],
                [escape_path(each.collection) for each in partitions],
                [_escaped(each.begin) for each in partitions],
                [_escaped(each.end) for each in partitions],
            )
        return await self.get(job)

    async def get(self, job: int) -> Job:
        """Raises NotFound."""
        row = await self._lanes.fetchrow(_ONE, job, timeout=self._timeout)
        if row is None:
            raise NotFound(f"there is no job {job}")
        return _job(row)

    async def unfinished(self, kind: str, group: str) -> Job | None:
        """The job of this kind that runs, or is paused."""
        row = await self._lanes.fetchrow(_UNFINISHED, kind, group, timeout=self._timeout)
        return None if row is None else _job(row)

    async def list(self, kind: str | None = None, limit: int = 20) -> Sequence[Job]:
        """The latest first."""
        rows = await self._lanes.fetch(_LIST, kind, limit, timeout=self._timeout)
        return [_job(row) for row in rows]

    async def pause(self, job: int, reason: str = "") -> Job:
        """No page is done from here on, until it is resumed. Raises NotFound,
        FailedPrecondition for one that has ended."""
        return await self._change(job, JobState.PAUSED, reason)

    async def resume(self, job: int) -> Job:
        """Whoever works on it goes on; where nobody does, the command has to be started again."""
        return await self._change(job, JobState.RUNNING, "")

    async def cancel(self, job: int, reason: str = "") -> Job:
        """What is done stays done."""
        return await self._change(job, JobState.CANCELLED, reason)

    async def _change(self, job: int, state: JobState, reason: str) -> Job:
        tag = await self._lanes.execute(
            _CHANGE, job, state.value, reason, ["running", "paused"], timeout=self._timeout
        )
        found = await self.get(job)
        if tag != "UPDATE 1":
            raise FailedPrecondition(f"job {job} is {found.state}, and has ended with that")
        return found

    async def fail(self, job: int, reason: str) -> None:
        """Ends a running job that cannot go on."""
        await self._lanes.execute(
            _END, job, JobState.FAILED.value, reason, {}, timeout=self._timeout
        )

    async def set_options(self, job: int, options: Mapping[str, Any]) -> None:
        """Changes these of its options; those who work on it learn of it with the next renewal."""
        await self._lanes.execute(_OPTIONS, job, dict(options), timeout=self._timeout)

    # --- of its partitions --------------------------------------------------------------------

    async def claim(
        self, job: int, claim: str, holder: str, lease: float, number: int | None = None
    ) -> Partition | None:
        """The first partition that is free (`number`: this one), for `lease` seconds; None: none
        is, or the job does not run."""
        row = await self._lanes.fetchrow(
            _CLAIM, job, claim, holder, lease, number, timeout=self._timeout
        )
        if row is None:
            return None
        return Partition(
            job,
            row["number"],
            claim,
            unescape_path(row["collection_id"]),
            _unescaped(row["begins"]),
            _unescaped(row["ends"]),
            _unescaped(row["position"]),
            _counts(row["counts"]),
        )

    async def is_done(self, job: int, number: int) -> bool:
        """Whether a partition is."""
        return bool(await self._lanes.fetchval(_IS_DONE, job, number, timeout=self._timeout))

    async def renew(self, job: int, holder: str, claims: Collection[str], lease: float) -> Renewal:
        """Prolongs claims of a process; those that were lost stay so. Raises NotFound."""
        row = await self._lanes.fetchrow(
            _RENEW, job, holder, lease, list(claims), timeout=self._timeout
        )
        if row is None:
            raise NotFound(f"there is no job {job}")
        return Renewal(
            JobState(row["state"]), row["reason"], row["options"], row["others"], row["open"]
        )

    async def release(self, job: int, claim: str) -> None:
        """Gives a partition back, for anybody to go on with it."""
        await self._lanes.execute(_RELEASE, job, claim, timeout=self._timeout)

    async def note(self, job: int, outcome: Mapping[str, Any]) -> None:
        """Adds to what came of it."""
        await self._lanes.execute(_NOTE, job, dict(outcome), timeout=self._timeout)

    async def spend(self, job: int, words: Mapping[str, float]) -> None:
        """Adds to what was spent on it (see jobs/effort.py)."""
        if words:
            await self._lanes.execute(_SPEND, job, dict(words), timeout=self._timeout)

    async def pending(self, job: Job) -> tuple[int, int]:
        """How many documents that it queued are still to be settled, and are dead letters."""
        intents = [intent_of(job.id), f"sweep-{job.token}"]
        row = await self._lanes.fetchrow(_PENDING, intents, timeout=self._timeout)
        assert row is not None  # noqa: S101 - an aggregate has one row
        return row["left"], row["dead"]

    # --- what it could not store --------------------------------------------------------------

    async def unburied(self, job: int) -> int:
        """How many of its letters no pending row stands for: nothing else would hold up a change
        of authority."""
        return int(await self._lanes.fetchval(_UNBURIED, job, timeout=self._timeout))

    async def letters(self, job: int, after: int = 0, limit: int = 100) -> Sequence[Letter]:
        rows = await self._lanes.fetch(_LETTERS, job, after, limit, timeout=self._timeout)
        return [
            Letter(row["id"], unescape_path(row["path"]), row["cause"], row["document"], row["at"])
            for row in rows
        ]


@dataclass(frozen=True, slots=True)
class End:
    """The end of a job, if all its partitions are done."""

    job: int
    outcome: Mapping[str, Any]

    async def record(self, connection: Connection) -> None:
        """Raises JobStopped where they are not, or somebody else was first."""
        tag = await connection.execute(_END, self.job, JobState.DONE.value, "", dict(self.outcome))
        if tag != "UPDATE 1":
            raise JobStopped("the job has been ended, or cannot end yet")


def intent_of(job: int) -> str:
    """Of the pending rows that a job makes."""
    return f"job-{job}"


async def _bury(connection: Connection, job: int, letter: NewLetter) -> None:
    path = escape_path(letter.path)
    await connection.execute(_LETTER, job, path, letter.cause, letter.document)
    await connection.execute("savepoint letter")
    try:
        await connection.execute(
            _DEAD,
            intent_of(job),
            path,
            collection_path(path),
            collection_id(path),
            letter.epoch,
            letter.cause,
        )
    except asyncpg.PostgresError:
        # A path that is too long for an index has no pending row either.
        await connection.execute("rollback to savepoint letter")


def _job(row: Any) -> Job:
    counts: Counts = {}
    for counted in row["counted"]:
        add(counts, _counts(counted))
    outcome = dict(row["outcome"])
    effort = outcome.pop("effort", {})
    return Job(
        id=row["id"],
        kind=row["kind"],
        group=row["grp"],
        collections=tuple(map(unescape_path, row["collections"])),
        options=row["options"],
        state=JobState(row["state"]),
        reason=row["reason"],
        who=row["who"],
        token=row["token"],
        authority=row["authority"],
        epoch=row["epoch"],
        generation=row["generation"],
        estimate=row["estimate"],
        outcome=outcome,
        begun_at=row["begun_at"],
        ended_at=row["ended_at"],
        partitions=row["partitions"],
        partitions_done=row["partitions_done"],
        processes=row["holders"],
        counts=counts,
        letters=row["letters"],
        effort=effort,
    )


def _counts(stored: Mapping[str, Mapping[str, int]]) -> Counts:
    return {unescape_path(name): dict(counts) for name, counts in stored.items()}


def _escaped(path: str | None) -> str | None:
    return None if path is None else escape_path(path)


def _unescaped(text: str | None) -> str | None:
    return None if text is None else unescape_path(text)
