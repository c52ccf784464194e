"""Statistics of tables that a copy fills: what plans are made by.

A plan that was made while a table was empty goes through all of it, and a connection keeps
it: each task that came in looked at every document that might wait for one, 30 ms for 0.3
with 3,000 of them. The server's own daemon looks once a minute, which is thousands of
documents too late. Analyzing a table makes every connection plan anew.
"""

from collections import Counter
from collections.abc import Mapping

import structlog

from crossfade.errors import CrossfadeError
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.rows import DocumentTables

log = structlog.get_logger(__name__)

FIRST, GROWTH = 200, 8
"""Documents after which a table is analyzed first, and how many times as many the next time."""
ANALYZE_SECONDS = 60.0


class Statistics:
    """One per process."""

    def __init__(self, lanes: Lanes, tables: DocumentTables) -> None:
        self._lanes = lanes
        self._tables = tables
        self._grown: Counter[str] = Counter()
        self._next: dict[str, int] = {}

    async def grew(self, counts: Mapping[str, int]) -> None:
        """So many documents were put, by collection path. Never raises a store's error: without
        the right to analyze, the server's daemon has to do."""
        due = set()
        for collection, count in counts.items():
            name = self._tables.of_collection(collection).name
            self._grown[name] += count
            if self._grown[name] >= self._next.get(name, FIRST):
                self._next[name] = self._grown[name] * GROWTH
                due.add(name)
        for name in sorted(due):
            try:
                await self._lanes.execute(f"analyze {name}", timeout=ANALYZE_SECONDS)
            except CrossfadeError as error:
                log.info("a table is not analyzed", table=name, error=error.code)
