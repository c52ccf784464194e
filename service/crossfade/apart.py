"""A process apart from the sidecars, on both stores: what jobs need, and nothing is served.

Beside its job it settles pending rows, as every sidecar does: what the job queues is done
even where no sidecar runs.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from crossfade.budget import Budget
from crossfade.control import Control
from crossfade.document import Database
from crossfade.errors import CrossfadeError
from crossfade.groups import DEFAULT
from crossfade.jobs.both import Both
from crossfade.pending import Pending
from crossfade.probes import CannotStart, probe_firestore, probe_postgresql
from crossfade.recopy import Recopy
from crossfade.settings import Settings
from crossfade.starting import hide_ids, load_mappings, supervise
from crossfade.stores.firestore import connect
from crossfade.stores.postgres.budget import BudgetTable
from crossfade.stores.postgres.check import refuse_strays
from crossfade.stores.postgres.held import HeldPages
from crossfade.stores.postgres.jobs import Jobs
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Mirror
from crossfade.telemetry import Telemetry

CALL_SECONDS = 30.0
SPARE_LANES = 2
"""Connections beside those of the workers: for leases, progress and pending rows."""
GC_THRESHOLDS = (50_000, 20, 20)
"""A page makes and drops a hundred thousand objects, and none is in a cycle: looking through all
that the process has imported as often as by default was a fifteenth of a copy."""


@dataclass(frozen=True, slots=True)
class Apart:
    both: Both
    budget: Budget
    lanes: Lanes


@asynccontextmanager
async def table_of_jobs(settings: Settings) -> AsyncIterator[Jobs]:
    """For those who look at jobs, and stop them. Raises CannotStart."""
    await probe_postgresql(settings.postgresql)
    lanes = Lanes(settings.postgresql.dsn, 1)
    try:
        yield Jobs(lanes)
    finally:
        await lanes.close()


@asynccontextmanager
async def apart(
    settings: Settings, *, workers: int, settles: bool, group: str = DEFAULT
) -> AsyncIterator[Apart]:
    """On a group of collections. `settles`: its pending rows are worked on here, too. Raises
    CannotStart."""
    groups = {each.name: each for each in settings.grouping().all}
    if group not in groups:
        raise CannotStart(f"group: there is none named {group}; there are {', '.join(groups)}")
    await probe_postgresql(settings.postgresql)
    if settings.firestore.emulator is not None:
        await probe_firestore(settings.firestore.emulator)
    async with AsyncExitStack() as resources:
        database = Database(settings.firestore.project, settings.firestore.database)
        mappings = load_mappings(settings.migration.mappings)
        hide_ids(settings, mappings)
        lanes = Lanes(settings.postgresql.dsn, workers + SPARE_LANES)
        resources.push_async_callback(lanes.close)
        control = Control(lanes, None, {}, settings.postgresql.timeout, groups[group])
        try:
            if await control.row() is None:
                raise CannotStart("no sidecar has ever run on this database; start one first")
            await refuse_strays(lanes, mappings, timeout=CALL_SECONDS)
            await control.refresh()
        except CrossfadeError as error:
            raise CannotStart(
                f"PostgreSQL {settings.postgresql.target}: {error}; is its schema that of this "
                f"version (crossfade schema check)?"
            ) from error
        firestore = connect(
            database,
            settings.firestore.emulator,
            request_window=settings.migration.request_window,
        )
        resources.push_async_callback(firestore.close)
        mirror = Mirror(lanes, mappings, database, groups[group])
        resources.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*GC_THRESHOLDS)
        gc.freeze()
        budget = Budget(settings.shadow.daily_reads, BudgetTable(lanes))
        tasks = [supervise("control", control.follow), supervise("budget", budget.run)]
        resources.push_async_callback(_ended, tasks)
        if settles:
            recopy = Recopy(
                control,
                Pending(mirror, firestore, database, settings.postgresql.timeout),
                firestore,
                Telemetry(),
                database,
                request_window=settings.migration.request_window,
                **settings.recopy.model_dump(),
            )
            tasks.append(supervise("recopy", recopy.run))
            resources.push_async_callback(recopy.drain, CALL_SECONDS)
        both = Both(
            control,
            firestore,
            mirror,
            HeldPages(lanes, group),
            Jobs(lanes),
            mappings,
            database,
            CALL_SECONDS,
        )
        yield Apart(both, budget, lanes)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
