"""The audit trail, for changes that may be made while PostgreSQL is away."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from crossfade.errors import CrossfadeError
from crossfade.jobs.settings_watch import Changed
from crossfade.stores.postgres.audit import Audit, Change

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 2.0
MOST = 1_000


class Trail:
    """Writes changes down at once, or as soon as PostgreSQL takes them: a rollback by force is
    made just when it does not. That a change cannot be written down does not undo it."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._unwritten: deque[Change] = deque(maxlen=MOST)
        self._arrived = asyncio.Event()
        self._writing = asyncio.Lock()

    async def add(self, change: Change) -> None:
        """Raises nothing, and waits for PostgreSQL no longer than for one statement."""
        self._unwritten.append(replace(change, at=datetime.now(UTC)))
        try:
            await self._write()
        except CrossfadeError as error:
            log.warning(
                "a change is written into the audit trail later",
                action=change.action,
                error=error.code,
            )
            self._arrived.set()

    async def add_of_file(self, file: str, changed: Sequence[Changed]) -> None:
        """What a settings file has changed."""
        for each in changed:
            await self.add(
                Change("settings file", "traffic", each.before, each.after, file, each.collection)
            )

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self._write()
            except CrossfadeError:
                continue
            self._arrived.clear()

    async def _write(self) -> None:
        async with self._writing:
            while self._unwritten:
                first = self._unwritten[0]
                await self._audit.add(first)
                # It may have been pushed out meanwhile, by too many that wait.
                if self._unwritten[0] is first:
                    self._unwritten.popleft()
