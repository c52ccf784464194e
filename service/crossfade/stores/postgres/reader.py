"""Reads: documents by path and by query, each with the state that shows how fresh they are."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import asyncpg

from crossfade import aggregate as aggregates
from crossfade import query as queries
from crossfade.aggregate import Aggregation
from crossfade.document import Document, collection_id, id_key
from crossfade.errors import InvalidArgument
from crossfade.mapping import escape_path, unescape_path
from crossfade.query import Order, Query
from crossfade.store import (
    PAGE_BYTES,
    PAGE_DOCUMENTS,
    Aggregated,
    Asked,
    MirrorState,
    Page,
    Reading,
    Result,
    Stored,
)
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.rows import DocumentTable, DocumentTables
from crossfade.stores.postgres.statement import Statement, compile_query
from crossfade.turns import Turns
from crossfade.wire import document_bytes, encode_time, field_bytes, identity_of
from crossfade_api.v1 import crossfade_pb2

SNAPSHOT = "repeatable read, read only"
# From each collection the first path of the next one is looked for: "0" follows "/".
_COLLECTION_IDS = """with recursive ids (id) as (
    (select split_part(path, '/', $2::int) from crossfade.versions
        where live and path >= $1::text and starts_with(path, $1) order by path limit 1)
    union all
    select (select split_part(v.path, '/', $2) from crossfade.versions v
        where v.live and v.path >= $1 || ids.id || '0' and starts_with(v.path, $1)
        order by v.path limit 1)
    from ids where ids.id is not null)
select id from ids where id is not null"""
_DOCUMENT_IDS = """select distinct split_part(path, '/', $3::int) from crossfade.versions
where live and path >= $1::text and path < $2::text"""
_DONE = "select exists (select from crossfade.requests where intent = any($1::text[]))"


class Reader:
    """The reading half of the PostgreSQL store."""

    def __init__(self, lanes: Lanes, tables: DocumentTables, group: str) -> None:
        self._lanes = lanes
        self._tables = tables
        self._group = group

    # --- by path ------------------------------------------------------------------------------

    async def get(
        self, paths: Sequence[str], timeout: float, turns: Turns | None = None
    ) -> Reading:
        """One statement for documents of one table; of several, one snapshot."""
        if len(paths) == 1:
            path = paths[0]
            table = self._tables.of(path)
            text = escape_path(path)
            row = await self._lanes.read(
                table.get_one,
                table.key_of(path),
                text,
                collection_id(text),
                self._group,
                timeout=timeout,
            )
            if row is not None:
                return _one(table.stored(row, path), row, table)
        if not paths:
            raise InvalidArgument("names: at least one document must be named")
        groups = self._tables.grouped(paths)
        if len(groups) == 1:
            ((table, _),) = groups.items()
            rows = [await self._lanes.fetch(*table.many(paths, self._group), timeout=timeout)]
        else:
            async with self._lanes.transaction(timeout, SNAPSHOT) as connection:
                rows = [
                    await connection.fetch(
                        *table.many([paths[position] for position in positions], self._group)
                    )
                    for table, positions in groups.items()
                ]
        found: list[tuple[Stored, Any, DocumentTable]] = [None] * len(paths)  # type: ignore[list-item]
        for (table, positions), several in zip(groups.items(), rows, strict=True):
            for position, row in zip(positions, several, strict=True):
                found[position] = (table.stored(row, paths[position]), row, table)
                if turns is not None:
                    await turns.over()
        return _reading(found)

    async def load(
        self, connection: Connection, paths: Sequence[str]
    ) -> list[tuple[DocumentTable, asyncpg.Record]]:
        """The rows of the paths, in their order, on a connection of the caller's."""
        found: list[tuple[DocumentTable, asyncpg.Record]] = [None] * len(paths)  # type: ignore[list-item]
        for table, positions in self._tables.grouped(paths).items():
            wanted = [paths[position] for position in positions]
            rows = await connection.fetch(*table.many(wanted, self._group))
            for position, row in zip(positions, rows, strict=True):
                found[position] = (table, row)
        return found

    async def was_done(self, intents: Sequence[str], timeout: float) -> bool:
        """Whether one of these intents is recorded as a request that was done."""
        return bool(await self._lanes.fetchval(_DONE, intents, timeout=timeout))

    # --- names --------------------------------------------------------------------------------

    async def collection_ids(self, parent: str, timeout: float) -> list[str]:
        """The ids of the collections right below a document, which may be missing, or below the
        root for "", in order."""
        prefix = escape_path(f"{parent}/" if parent else "")
        rows = await self._lanes.fetch(
            _COLLECTION_IDS, prefix, prefix.count("/") + 1, timeout=timeout
        )
        return sorted((unescape_path(row[0]) for row in rows), key=id_key)

    async def document_ids(self, collection: str, timeout: float) -> list[str]:
        """The ids of a collection's documents, and of those that are missing and have
        descendants, in order."""
        prefix = escape_path(f"{collection}/")
        rows = await self._lanes.fetch(
            _DOCUMENT_IDS, prefix, f"{prefix[:-1]}0", prefix.count("/") + 1, timeout=timeout
        )
        return sorted((unescape_path(row[0]) for row in rows), key=id_key)

    # --- by query -----------------------------------------------------------------------------

    async def query(self, query: Query, timeout: float) -> AsyncIterator[Page]:
        """The result, complete before its first page: one statement, one snapshot."""
        found = await self._find(query, queries.check(query), timeout)
        state, now = found.state
        for page in _pages(self._evaluate(found), now, state):
            yield page

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], timeout: float
    ) -> Aggregated:
        """Every document that they are of is read: sums are exact in the pure core, and in no
        column alone."""
        orders = aggregates.check(query, aggregations)
        return self._aggregated(await self._find(query, orders, timeout), aggregations)

    def _aggregated(self, found: "_Found", aggregations: Sequence[Aggregation]) -> Aggregated:
        documents, _ = _matching(found)
        documents = queries.finish(found.query, found.orders, documents)
        database = self._tables.database
        state, now = found.state
        return Aggregated(
            aggregates.evaluate(aggregations, documents),
            now,
            state,
            tuple((database.full(document.path), document.update_time) for document in documents),
        )

    async def _find(self, query: Query, orders: tuple[Order, ...], timeout: float) -> "_Found":
        """A legal query's rows of all its tables, of one snapshot."""
        ends = monotonic() + timeout
        tables = self._tables.reached(query)
        statements = [compile_query(query, orders, table, self._group) for table in tables]
        if len(tables) == 1:
            rows = await self._lanes.fetch(
                statements[0].sql, *statements[0].values, timeout=timeout
            )
            results = [rows]
        else:
            results = []
            async with self._lanes.transaction(ends - monotonic(), SNAPSHOT) as connection:
                for statement in statements:
                    results.append(await connection.fetch(statement.sql, *statement.values))
        return _Found(query, orders, tables, statements, results)

    # --- on a connection of the caller's ------------------------------------------------------

    async def get_on(self, connection: Connection, paths: Sequence[str]) -> Reading:
        rows = await self.load(connection, paths)
        return _reading(
            [
                (table.stored(row, path), row, table)
                for path, (table, row) in zip(paths, rows, strict=True)
            ]
        )

    async def query_on(self, connection: Connection, query: Query) -> list[Page]:
        found = await self._find_on(connection, query, queries.check(query))
        state, now = found.state
        return list(_pages(self._evaluate(found), now, state))

    async def aggregate_on(
        self, connection: Connection, query: Query, aggregations: Sequence[Aggregation]
    ) -> Aggregated:
        orders = aggregates.check(query, aggregations)
        return self._aggregated(await self._find_on(connection, query, orders), aggregations)

    async def rerun(self, connection: Connection, asked: Asked) -> Result:
        """What a query that was answered before finds now."""
        query = asked.query
        if asked.aggregations:
            return (await self.aggregate_on(connection, query, asked.aggregations)).result
        found = await self._find_on(connection, query, queries.check(query))
        return tuple(identity_of(data) for data in self._evaluate(found))

    async def _find_on(
        self, connection: Connection, query: Query, orders: tuple[Order, ...]
    ) -> "_Found":
        tables = self._tables.reached(query)
        statements = [compile_query(query, orders, table, self._group) for table in tables]
        results = [
            await connection.fetch(statement.sql, *statement.values) for statement in statements
        ]
        return _Found(query, orders, tables, statements, results)

    def _evaluate(self, found: "_Found") -> Iterable[bytes]:
        """The result's documents as bytes, in order."""
        query, orders, statements = found.query, found.orders, found.statements
        table, rows = found.tables[0], found.results[0]
        odd = table.epoch_index + 1
        plain = query.nearest is None and all(not row[odd] for row in rows)
        if len(statements) == 1 and statements[0].exact and plain and query.select is None:
            kept = [row for row in rows if row[0] is not None]
            kept.sort(key=lambda row: id_key(_last(row[0])), reverse=orders[0].descending)
            stop = None if query.limit is None else query.offset + query.limit
            return [
                table.document_bytes(row, table.path_of(row)) for row in kept[query.offset : stop]
            ]
        documents, sources = _matching(found)
        finished = queries.finish(query, orders, documents)
        if not query.whole:
            return [document_bytes(document, self._tables.database) for document in finished]
        return [
            table.document_bytes(row, document.path)
            for document in finished
            for table, row in [sources[document.path]]
        ]


@dataclass(frozen=True, slots=True)
class _Found:
    """The rows that a query's statements answered, by table."""

    query: Query
    orders: tuple[Order, ...]
    tables: Sequence[DocumentTable]
    statements: Sequence[Statement]
    results: Sequence[Sequence[Any]]

    @property
    def state(self) -> tuple[MirrorState, int]:
        """The state, and the time of the read."""
        return _state(self.results[0][0], self.tables[0])


def _matching(found: _Found) -> tuple[list[Document], dict[str, tuple[DocumentTable, Any]]]:
    """The documents that the query matches, in no order, and the row of each path."""
    matches = queries.matcher(found.query, found.orders)
    sources: dict[str, tuple[DocumentTable, Any]] = {}
    documents: list[Document] = []
    for table, rows in zip(found.tables, found.results, strict=True):
        for row in rows:
            if row[0] is not None and matches(document := table.document(row)):
                documents.append(document)
                sources[document.path] = (table, row)
    return documents, sources


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _one(stored: Stored, row: Any, table: DocumentTable) -> Reading:
    """`_reading` of one."""
    epoch, generation, pending, read_time = row[table.state]
    version = stored.version
    if version is not None and version[1] > read_time:
        read_time = version[1]
    return Reading((stored,), read_time, MirrorState(epoch, generation, pending))


def _reading(found: Sequence[tuple[Stored, Any, DocumentTable]]) -> Reading:
    """The state is that of all: pending if one is."""
    _, row, table = found[0]
    epoch, generation, pending, read_time = row[table.state]
    for stored, row, table in found:
        pending = pending or row[table.extras.pending]
        # A version may be ahead of this clock; an answer is never older than what it holds.
        if stored.version is not None and stored.version[1] > read_time:
            read_time = stored.version[1]
    state = MirrorState(epoch or 0, generation or 0, pending)
    return Reading(tuple([stored for stored, _, _ in found]), read_time, state)


def _state(row: Any, table: DocumentTable) -> tuple[MirrorState, int]:
    first = table.epoch_index + 2
    epoch, generation, pending, now = row[first : first + 4]
    return MirrorState(epoch or 0, generation or 0, pending), now


def _pages(documents: Iterable[bytes], now: int, state: MirrorState) -> Iterable[Page]:
    message = crossfade_pb2.QueryReply()
    encode_time(now, message.read_time)
    tail = message.SerializeToString()
    frames: list[bytes] = []
    size = 0
    first: MirrorState | None = state
    for data in documents:
        frames.append(field_bytes(1, data))
        size += len(data)
        if size >= PAGE_BYTES or len(frames) >= PAGE_DOCUMENTS:
            yield Page(b"".join([*frames, tail]), first)
            frames, size, first = [], 0, None
    if frames or first is not None:
        yield Page(b"".join([*frames, tail]), first)
