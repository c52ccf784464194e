"""Every document of PostgreSQL whose name lies in a range, a chunk of rows at a time.

In no order that names have: each table is read along its key (intervals.py says where), so
that a chunk costs as much in a table of a billion rows as in one of a thousand.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from crossfade.content import Content, fields_bytes
from crossfade.document import Document
from crossfade.mapping import unescape_path
from crossfade.store import Version
from crossfade.stores.postgres.intervals import END, Interval, Span, behind, below, nested
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.rows import DocumentTable, DocumentTables
from crossfade_api.v1 import document_pb2 as pb

CHUNK = 1_000
_MANY = """select t.* from unnest($1::text[], $2::text[]) r (low, high) cross join lateral (
    select {columns} from {source} t where t.{key} >= r.low and t.{key} < r.high
    order by t.{key} limit $3) t order by 1 limit $3"""
_ONE = """select {columns} from {source} t where t.{key} >= $1 and t.{key} < $2
    order by t.{key} limit $3"""
_VERSIONS = """t.path, t.epoch, t.time, t.live,
    case when (t.peer_epoch, t.peer_version) = (t.epoch, t.time) then t.peer_time end"""


@dataclass(frozen=True, slots=True)
class Known:
    """What PostgreSQL knows of a path. `peer_time`: the update_time that Firestore has of this
    very version; None: not known. `live` false: a tombstone."""

    path: str
    version: Version
    live: bool
    peer_time: int | None


class Ranges:
    """Reads without asking for pending rows: whoever finds a difference looks again."""

    def __init__(self, lanes: Lanes, tables: DocumentTables) -> None:
        self._lanes = lanes
        self._tables = tables
        self._texts: dict[DocumentTable, tuple[str, str]] = {}

    async def documents(
        self, span: Span, *, timeout: float, chunk: int = CHUNK
    ) -> AsyncIterator[list[Content]]:
        """All live ones, each once, with their contents."""
        intervals = span.intervals()
        for table in self._tables.all:
            keys = _keys(table, intervals)
            if not keys:
                continue
            one, many = self._texts_of(table)
            async for rows in self._rows(one, many, keys, chunk, timeout):
                found = []
                for row in rows:
                    message = pb.Document()
                    table.decode(row, message)
                    path, time = table.path_of(row), row[table.update_index]
                    found.append(Content(path, time, fields_bytes(message)))
                yield found

    async def versions(
        self, span: Span, *, timeout: float, chunk: int = CHUNK
    ) -> AsyncIterator[list[Known]]:
        """The same, and tombstones, without contents: of a table that is small and has all."""
        parts = {"columns": _VERSIONS, "source": "crossfade.versions", "key": "path"}
        one, many = _ONE.format(**parts), _MANY.format(**parts)
        async for rows in self._rows(one, many, span.intervals(), chunk, timeout):
            yield [
                Known(unescape_path(path), (epoch, time), live, peer)
                for path, epoch, time, live, peer in rows
            ]

    async def everything(
        self, after: str | None, *, timeout: float, chunk: int = CHUNK
    ) -> AsyncIterator[tuple[list[Document], str]]:
        """All documents, table by table along their keys, and the position behind each chunk:
        `after` such a position it goes on."""
        begun, _, key = ("", "", "") if after is None else after.partition(":")
        for number, table in enumerate(self._tables.all):
            if begun and number < int(begun):
                continue
            keys: list[Interval] = [("", END)]
            if begun == str(number):
                keys = behind(keys, key)
            one, many = self._texts_of(table)
            async for rows in self._rows(one, many, keys, chunk, timeout):
                yield [table.document(row) for row in rows], f"{number}:{rows[-1][0]}"

    def _texts_of(self, table: DocumentTable) -> tuple[str, str]:
        if table not in self._texts:
            parts = {"columns": table.select, "source": table.source, "key": table.key}
            self._texts[table] = _ONE.format(**parts), _MANY.format(**parts)
        return self._texts[table]

    async def _rows(
        self, one: str, many: str, keys: list[Interval], chunk: int, timeout: float
    ) -> AsyncIterator[Sequence[Any]]:
        while keys:
            if len(keys) == 1:
                rows = await self._lanes.fetch(one, *keys[0], chunk, timeout=timeout)
            else:
                lows, highs = [low for low, _ in keys], [high for _, high in keys]
                rows = await self._lanes.fetch(many, lows, highs, chunk, timeout=timeout)
            if rows:
                yield rows
            if len(rows) < chunk:
                return
            keys = behind(keys, rows[-1][0])


def _keys(table: DocumentTable, intervals: list[Interval]) -> list[Interval]:
    """Where the table's rows lie."""
    if table.mapping is None:
        return intervals
    if table.mapping.parent is not None:
        return nested(intervals, table.mapping.parent.collection_id)
    return below(intervals, f"{table.mapping.collection_id}/")
