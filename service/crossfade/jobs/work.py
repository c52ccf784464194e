"""The engine of jobs: any number of workers, in any number of processes, until all is done.

A worker claims a partition, reads a page and does it, again and again. The page and how
far the partition is are one transaction (see stores/postgres/jobs.py), so it does not
matter where a process ends. An error of a store costs a pause; the partition goes back, and
whoever claims it next reads anew where it stands: of a commit that was not answered nobody
here has to know what became of it.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import structlog

from crossfade.budget import Budget
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    EpochChanged,
    InfrastructureError,
    ResourceExhausted,
)
from crossfade.jobs.effort import OF_BUDGET, RESUMED, Effort
from crossfade.jobs.pace import MOST_PAGE, TARGET_SECONDS, PageSize, Pressure, Rate
from crossfade.stores.postgres.jobs import Job, Jobs, JobState, JobStopped, Partition, Renewal
from crossfade.telemetry import JOB_PAGES, JOB_RETRIES, JOB_WAITING, Labels, Telemetry

log = structlog.get_logger(__name__)

CLAIM_SECONDS = 10.0
"""After so long the partitions of a process that died are anybody's."""
LOOK_SECONDS = 0.2
MOST_SLEEP = 0.5
"""At most so long nobody looks whether the job was stopped."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """A page that was read. `last`: the last name in it, or None; `ended`: the partition holds
    nothing behind it. `reads`: what Firestore bills for it."""

    items: T
    documents: int
    last: str | None
    ended: bool
    reads: int


class Pages(Protocol[T]):
    """What a worker does with its partitions; each worker has its own."""

    async def open(self) -> None:
        """Before the first page is read."""
        ...

    async def read(self, partition: Partition, limit: int) -> Read[T]:
        """Up to `limit` documents behind the partition's position."""
        ...

    async def settle(self, partition: Partition, page: Read[T], lease: float) -> Partition:
        """Does the page, and moves the partition on, by Checkpoints. Returns it as it is then."""
        ...

    async def renew(self) -> None:
        """Is called every few seconds while the worker lives."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Pacing:
    """`patience`: seconds for which a store may be away, without a break, before the work is
    given up. `page`: documents in a page at most; `target`: how many seconds one should take."""

    workers: int = 4
    patience: float = 60.0
    page: int | None = None
    number: int | None = None
    """Only this partition."""
    target: float = TARGET_SECONDS


class Work(Generic[T]):
    """The part of one process in a job. `finish` ends the job when all partitions are done;
    `settled` is told of a change of authority, and says whether the job may go on."""

    def __init__(
        self,
        jobs: Jobs,
        job: Job,
        make: Callable[[], Pages[T]],
        finish: Callable[[], Awaitable[None]],
        after_change: Callable[[], Awaitable[bool]],
        *,
        pacing: Pacing | None = None,
        budget: Budget | None = None,
        told: Callable[[], None] = lambda: None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._jobs = jobs
        self._job = job
        self._make = make
        self._finish = finish
        self._after_change = after_change
        self._pacing = pacing or Pacing()
        self._budget = budget
        self._told = told
        self.holder = uuid.uuid4().hex
        self._rate = Rate()
        self._asked_rate: float | None = job.options.get("rate")
        self._set_rate(0)
        self._pressure = Pressure(self._pacing.workers)
        self._pages: set[Pages[T]] = set()
        self._claims: set[str] = set()
        self._state = job.state
        self._failing_since: float | None = None
        self._telemetry = telemetry or Telemetry()
        self._telemetry.gauge(JOB_WAITING, self._waiting)
        self.effort = Effort()

    @property
    def waits_for(self) -> str:
        """What the work waits for, for whoever shows it; empty: for nothing."""
        return self.effort.waits_for

    async def run(self) -> Job:
        """Until the job has ended, or is done but for what others hold and do. Raises the
        store's error when one is away for too long. May be cancelled at any time."""
        heart = asyncio.create_task(self._beat())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._pacing.workers):
                    group.create_task(self._work())
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            heart.cancel()
            with suppress(asyncio.CancelledError):
                await heart
            await self._record()
        if self._state is JobState.RUNNING and self._pacing.number is None:
            await self._end()
        return await self._jobs.get(self._job.id)

    # --- a worker -----------------------------------------------------------------------------

    async def _work(self) -> None:
        pages = self._make()
        size = PageSize(self._pacing.page or MOST_PAGE, self._pacing.target)
        opened = False
        self._pages.add(pages)
        try:
            while not self._state.ended:
                try:
                    if not opened:
                        await pages.open()
                        opened = True
                    if not await self._one(pages, size) and not await self._more():
                        return
                except JobStopped:
                    await self._look()
                except (InfrastructureError, ResourceExhausted, Aborted, EpochChanged) as error:
                    # What was read before the pages are opened anew may not be put any more.
                    opened = False
                    with suppress(CrossfadeError):
                        await pages.close()
                    await self._failed(error)
        finally:
            self._pages.discard(pages)
            with suppress(CrossfadeError):
                await pages.close()

    async def _one(self, pages: Pages[T], size: PageSize) -> bool:
        """A partition, if one is free. Given back where it does not come to its end."""
        claim = uuid.uuid4().hex
        self._claims.add(claim)
        try:
            partition = await self._jobs.claim(
                self._job.id, claim, self.holder, CLAIM_SECONDS, self._pacing.number
            )
            if partition is None:
                return False
            await self._through(pages, partition, size)
        except BaseException:
            with suppress(CrossfadeError):
                await self._jobs.release(self._job.id, claim)
            raise
        finally:
            # From here on nobody prolongs it: where it could not be given back it runs out.
            self._claims.discard(claim)
        return True

    async def _more(self) -> bool:
        """Nothing is free: whether to ask again, because others may die over what they hold."""
        renewal = await self._look()
        if self._state.ended or (renewal.state is JobState.RUNNING and not renewal.open):
            return False
        if self._pacing.number is not None and renewal.state is JobState.RUNNING:
            return not await self._is_done(self._pacing.number)
        await asyncio.sleep(LOOK_SECONDS)
        return True

    async def _is_done(self, number: int) -> bool:
        done = await self._jobs.is_done(self._job.id, number)
        if not done:
            await asyncio.sleep(LOOK_SECONDS)
        return done

    async def _through(self, pages: Pages[T], partition: Partition, size: PageSize) -> None:
        """A claimed partition to its end. Raises JobStopped when it is not to go on. While a
        page is done the next one is read, unless a rate says how fast."""
        reading: asyncio.Task[tuple[Read[T], float]] | None = None
        ended = False
        try:
            while not ended:
                if reading is None:
                    page, seconds = await self._read(pages, partition, size)
                else:
                    page, seconds = await reading
                ended, reading = page.ended, None
                if not ended and self._rate.documents is None:
                    behind = replace(partition, position=page.last)
                    reading = asyncio.create_task(self._read(pages, behind, size))
                began = time.monotonic()
                partition = await pages.settle(partition, page, CLAIM_SECONDS)
                size.took(page.documents, seconds, time.monotonic() - began)
                self._failing_since = None
                self.effort.page()
                self._telemetry.count(JOB_PAGES, self._job.kind, self._job.group)
                self._told()
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(
        self, pages: Pages[T], partition: Partition, size: PageSize
    ) -> tuple[Read[T], float]:
        """The next page, when one may be read, and how many seconds it took."""
        limit = await self._allowance(size)
        async with self._pressure.turn():
            began = time.monotonic()
            page = await pages.read(partition, limit)
            seconds = time.monotonic() - began
        self._pressure.answered(page.documents, seconds)
        self._rate.give_back(limit - page.documents)
        if self._budget is not None:
            self._budget.spend(page.reads)
        return page, seconds

    async def _allowance(self, size: PageSize) -> int:
        """How many documents may be read now, as soon as that is any. Raises JobStopped."""
        while True:
            if self._state is not JobState.RUNNING:
                raise JobStopped(f"the job is {self._state}")
            delay = max(self._rate.delay(), self._pressure.delay())
            limit = size.next(self._rate.documents)
            if self._budget is not None and delay <= 0:
                if not self._budget.afford():
                    self.effort.waits_for = OF_BUDGET
                    delay = MOST_SLEEP
                elif (held := self._budget.held) is not None:
                    limit = min(limit, max(1, held))
            if delay <= 0:
                # Before it is read, or all workers would read a page in the same moment.
                self._rate.spend(limit)
                return limit
            await asyncio.sleep(min(delay, MOST_SLEEP))

    async def _failed(self, error: CrossfadeError) -> None:
        """Raises it when it has been going on for too long."""
        if isinstance(error, EpochChanged):
            if not await self._after_change():
                self._state = JobState.FAILED
            return
        self._telemetry.count(JOB_RETRIES, self._job.kind, self._job.group, error.code)
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        self._pressure.refused()
        self.effort.retry(error.code)
        log.info("a job waits for a store", job=self._job.id, error=error.code)
        if isinstance(error, ResourceExhausted):
            return  # a quota is not an outage: it comes back, if only tomorrow
        if now - self._failing_since > self._pacing.patience:
            raise error
        await asyncio.sleep(LOOK_SECONDS)

    def _waiting(self) -> dict[Labels, float]:
        reason = self.effort.reason
        return {(self._job.kind, self._job.group, reason): 1.0} if reason else {}

    # --- all of them --------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Keeps the leases while the process lives, and hears what was decided elsewhere."""
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 5)
            with suppress(CrossfadeError):
                await self._look()
                for pages in list(self._pages):
                    await pages.renew()
            await self._record()

    async def _record(self) -> None:
        """What was spent is added to what the table says of the job."""
        words = self.effort.take()
        try:
            await self._jobs.spend(self._job.id, words)
        except CrossfadeError:
            self.effort.back(words)  # with the next time

    async def _look(self) -> Renewal:
        renewal = await self._jobs.renew(self._job.id, self.holder, self._claims, CLAIM_SECONDS)
        if self._state is not renewal.state:
            log.info("a job is told", job=self._job.id, state=renewal.state.value)
        if not self._state.ended:
            self._state = renewal.state
        if renewal.state is JobState.PAUSED:
            self.effort.waits_for = RESUMED
        self._asked_rate = renewal.options.get("rate")
        self._set_rate(renewal.others)
        return renewal

    def _set_rate(self, others: int) -> None:
        """The rate is the job's: those who work on it have equal parts of it."""
        self._rate.documents = None if self._asked_rate is None else self._asked_rate / (1 + others)

    async def _end(self) -> None:
        """All partitions are done: whoever comes first ends the job."""
        began = time.monotonic()
        while True:
            try:
                await self._finish()
            except EpochChanged:
                if not await self._after_change():
                    return
            except JobStopped:
                # Somebody else was first, or it was paused just now.
                if (await self._look()).state.ended:
                    return
                await asyncio.sleep(LOOK_SECONDS)
            except (InfrastructureError, Aborted) as error:
                if time.monotonic() - began > self._pacing.patience:
                    raise
                log.info("a job waits for a store", job=self._job.id, error=error.code)
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return
