"""In front of the hearts of several groups: which of them a read, a query or a commit is of.

With one group there is no dispatcher, and nothing costs anything. What spans groups goes to the
authority if all of them have the same one. If they have not, documents are read group by
group, each as fresh as ever but not of one moment, and a commit is refused.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from crossfade.aggregate import Aggregation
from crossfade.call import Call
from crossfade.document import collection_id
from crossfade.errors import InfrastructureError
from crossfade.groups import DEFAULT, Groups
from crossfade.migrator import Migrator
from crossfade.query import Query
from crossfade.store import Aggregated, CommitOutcome, Page, Reading, Seen
from crossfade.write import Write


class Dispatch:
    """The hearts by the names of their groups, as one."""

    def __init__(self, groups: Groups, hearts: Mapping[str, Migrator]) -> None:
        self._groups = groups
        self._hearts = hearts

    def _heart(self, collection: str | None) -> Migrator:
        return self._hearts[DEFAULT if collection is None else self._groups.of(collection)]

    async def read(self, paths: tuple[str, ...], call: Call) -> Reading:
        """The documents at the paths, in their order."""
        if len(paths) == 1:
            return await self._heart(collection_id(paths[0])).read(paths, call)
        names = self._groups.spanned(paths)
        first, *others = [self._hearts[name] for name in names]
        if not others or call.pin is not None:
            return await first.read(paths, call)
        try:
            reading = await first.read_beside(paths, call, others)
        except InfrastructureError:
            reading = None  # what a mirror can vouch for, it can vouch for by group
        return reading or await self._read_each(paths, names, call)

    async def _read_each(self, paths: tuple[str, ...], names: Sequence[str], call: Call) -> Reading:
        calls = {name: replace(call, served_by="") for name in names}
        wanted = {
            name: tuple(path for path in paths if self._groups.of(collection_id(path)) == name)
            for name in names
        }
        readings = await asyncio.gather(
            *(self._hearts[name].read(wanted[name], calls[name]) for name in names)
        )
        found = {stored.path: stored for reading in readings for stored in reading.documents}
        for name in names:
            call.served(f"{name}: {calls[name].served_by}")
        read_time = max(reading.read_time for reading in readings)
        return Reading(tuple(found[path] for path in paths), read_time)

    def query(self, query: Query, call: Call) -> AsyncIterator[Page]:
        """A query's pages: it names one collection id, so it is of one group."""
        return self._heart(query.collection).query(query, call)

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], call: Call
    ) -> Aggregated:
        return await self._heart(query.collection).aggregate(query, aggregations, call)

    async def commit(
        self,
        writes: Sequence[Write],
        call: Call,
        request_id: str | None = None,
        seen: Seen | None = None,
    ) -> CommitOutcome:
        """All writes or none. Raises FailedPrecondition where they are of groups with different
        authorities."""
        written = self._groups.spanned(write.path for write in writes)
        read = () if seen is None else seen.epochs
        names = [*written, *(name for name in sorted(read) if name not in written)]
        first, *others = [self._hearts[name] for name in names]
        return await first.commit(writes, call, request_id, seen, others)
