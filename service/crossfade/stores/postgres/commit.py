"""Commits with PostgreSQL as the authority: one transaction, in the order the protocol needs.

1. The control row, FOR SHARE, in a statement of its own: a change of authority waits
   for this commit, or this commit sees it.
2. The locks of the collections and of the paths, sorted, in a statement of their own. Those of
   the collections are shared by all that write there; a transaction that queried one has it
   for itself. Those of the paths that a transaction only read are shared. A commit of very
   many paths has the one lock that all others share for itself instead: it waits for all
   commits, and all wait for it.
3. Only now what the documents are, in a statement that began behind the locks; and whether
   they, and the results of its queries, are what the transaction read.
4. The pure core decides what becomes of them.
5. Rows, versions, tombstones, pending rows and the request row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias

from crossfade import write as writing
from crossfade.document import Database, Document, collection_id, collection_path
from crossfade.errors import Aborted, EpochChanged, FailedPrecondition
from crossfade.mapping import EXPLAINED, REFUSED, CollectionMapping, escape_path
from crossfade.store import Asked, CommitOutcome, Intent, Version, WriteOutcome
from crossfade.stores.postgres.changes import NOTIFY, UNHEARD, notifications
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.placement import ALONE, ALONE_ROWS
from crossfade.stores.postgres.reader import Reader
from crossfade.stores.postgres.rows import NOW, DocumentTable, DocumentTables, from_rest
from crossfade.write import Write

ATTEMPTS = 5
_CONTROL = "select epoch, authority from crossfade.control where grp = $1 for share"
MOST_LOCKS = 400
"""Paths that a commit locks one by one. PostgreSQL's lock table has room for 6,400 locks of all
connections together, if nobody made it larger: some commits of 10 MiB would not fit alone."""
EVERYTHING = "*"
# Sorted, so that two commits never wait for one another. What all share comes first, then the
# request's own lock: the second of two commits with one id finds the first one's row.
_LOCKS = f"""select count(case when shared
    then pg_advisory_xact_lock_shared(hashtextextended(name, 7))::text
    else pg_advisory_xact_lock(hashtextextended(name, 7))::text end), {UNHEARD}
from unnest($1::text[], $2::bool[]) as l (name, shared)"""
_REQUEST = """select commit_time, update_times from crossfade.requests
where intent = any($1::text[])"""
_RECORD = """with changed as (
    insert into crossfade.versions as v (path, epoch, time, live)
    select path, epoch, $2::int8, live
    from unnest($1::int8[], $3::text[], $4::bool[]) as c (epoch, path, live)
    on conflict (path) do update
        set epoch = excluded.epoch, time = excluded.time, live = excluded.live),
behind as (
    insert into crossfade.pending
        (intent, path, collection_path, collection_id, epoch, lease_until, reason)
    select $5::text, path, collection_path, collection_id, epoch, now(), 'commit'
    from unnest($1::int8[], $3::text[], $6::text[], $7::text[], $8::bool[])
        as c (epoch, path, collection_path, collection_id, mirrored)
    where mirrored)
insert into crossfade.requests (intent, commit_time, update_times)
select $5::text, $2, $9::int8[] where $10::bool"""
# A request that changed nothing was done, too: its row brings that to the other store.
_NOTHING = """insert into crossfade.pending
    (intent, path, collection_path, collection_id, epoch, lease_until, reason)
values ($1, $2, $3, $4, $5, now(), 'commit')"""


Read: TypeAlias = tuple[str, Version | None]
"""A path and the version of what was read there: the document's or its tombstone's, None
where there was neither."""


class _Changed(Aborted):
    """Something that was read has changed: to try the same again would not help."""


@dataclass(slots=True)
class _Staged:
    """A path as the commit found it and as it leaves it."""

    before: Document | None
    table: DocumentTable
    after: Document | None
    version: Version | None


class Committer:
    """The writing half of the PostgreSQL store."""

    def __init__(
        self,
        lanes: Lanes,
        tables: DocumentTables,
        reader: Reader,
        group: str,
        *,
        enforce: bool = False,
    ) -> None:
        self._lanes = lanes
        self._tables = tables
        self._reader = reader
        self._group = group
        self._enforce = enforce

    async def commit(
        self,
        writes: Sequence[Write],
        timeout: float,
        intent: Intent | None,
        reads: Sequence[Read] = (),
        results: Sequence[Asked] = (),
    ) -> CommitOutcome:
        """Tried again where PostgreSQL ended it to resolve a deadlock: nothing was done then.
        Paths are locked in one order, but commits may meet crosswise in the rows of others
        that they refer to (placement.py). The second try waits until no other commit is
        placing anything, and has the placing for itself: it does not meet them again."""
        for write in writes:
            writing.check(write)
        ends = monotonic() + timeout
        attempt = 1
        while True:
            try:
                return await self._commit(
                    writes, ends - monotonic(), intent, reads, results, alone=attempt > 1
                )
            except _Changed:
                raise
            except Aborted:
                if attempt == ATTEMPTS or monotonic() > ends:
                    raise
            attempt += 1

    async def _commit(
        self,
        writes: Sequence[Write],
        timeout: float,
        intent: Intent | None,
        reads: Sequence[Read],
        results: Sequence[Asked],
        *,
        alone: bool,
    ) -> CommitOutcome:
        written = {write.path for write in writes}
        paths = sorted(written.union(path for path, _ in reads))
        replayable = intent is not None and intent.request_id is not None
        async with self._lanes.transaction(timeout) as connection:
            epoch = await self._epoch(connection, intent)
            request = [f"i:{intent.id}"] if intent is not None and replayable else []
            queried = {asked.query.collection for asked in results}
            [(_, unheard)] = await connection.fetch(
                _LOCKS, *_locks(request, paths, written, queried)
            )
            if intent is not None and replayable:
                done = await connection.fetchrow(_REQUEST, [intent.id, *intent.others])
                if done is not None:
                    return replayed(done[0], done[1], len(writes))
            under = _under(intent, epoch)
            staged, now = await self._load(connection, paths)
            for path, version in reads:
                if staged[path].version != version:
                    raise _Changed(f"document {path} has changed since the transaction read it")
            for asked in results:
                if await self._reader.rerun(connection, asked) != asked.result:
                    raise _Changed("a query of the transaction has another result by now")
            outcomes = _apply(writes, staged, now, self._tables.database)
            changed = [path for path in paths if staged[path].after is not staged[path].before]
            # While Firestore follows it has to be followed, whatever it takes.
            strict = self._enforce and not any(under(path)[1] for path in changed)
            if alone or len(changed) > ALONE_ROWS:
                await connection.execute(ALONE)
            await self._write(connection, staged, changed, under, strict=strict)
            if changed or replayable:
                await connection.execute(
                    _RECORD,
                    [under(path)[0] for path in changed],
                    now,
                    *_columns(changed, staged),
                    *_pending_columns(changed, intent),
                    [under(path)[1] for path in changed],
                    [outcome.update_time for outcome in outcomes],
                    replayable,
                )
            if changed and not unheard:
                await connection.execute(NOTIFY, notifications(changed))
            followed = [path for path in sorted(written) if under(path)[1]]
            if intent is not None and followed and replayable and not changed:
                path = followed[0]
                places = escape_path(collection_path(path)), escape_path(collection_id(path))
                await connection.execute(
                    _NOTHING, intent.id, escape_path(path), *places, under(path)[0]
                )
        return CommitOutcome(tuple(outcomes), now)

    async def _epoch(self, connection: Connection, intent: Intent | None) -> int:
        """The epoch, behind a lock on it and on those of all groups of the commit."""
        row = await connection.fetchrow(_CONTROL, self._group)
        if intent is None:
            return 0 if row is None else int(row[0])
        _check_control(row, intent.epoch)
        for each in intent.beside:
            row = await connection.fetchrow(_CONTROL, each.group.name)
            _check_control(row, each.epoch)
        return intent.epoch

    async def _load(
        self, connection: Connection, paths: Sequence[str]
    ) -> tuple[dict[str, _Staged], int]:
        """The documents as they are behind the locks, and the time of the commit: the
        clock's, but later than every version its paths ever had."""
        staged: dict[str, _Staged] = {}
        now = 0 if paths else int(await connection.fetchval(f"select {NOW}"))
        found = await self._reader.load(connection, paths)
        for path, (table, row) in zip(paths, found, strict=True):
            document = None if row[0] is None else table.document(row)
            staged[path] = _Staged(document, table, document, table.version(row))
            known = (row[table.extras.version_time], row[table.update_index])
            now = max(now, row[table.extras.now], *(time + 1 for time in known if time is not None))
        return staged, now

    async def _write(
        self,
        connection: Connection,
        staged: dict[str, _Staged],
        changed: Sequence[str],
        under: Callable[[str], tuple[int, bool]],
        *,
        strict: bool,
    ) -> None:
        upserts: dict[DocumentTable, list[list[Any]]] = {}
        deletes: dict[DocumentTable, list[str]] = {}
        for path in changed:
            table, after = staged[path].table, staged[path].after
            if after is None:
                deletes.setdefault(table, []).append(table.key_of(path))
            else:
                values = table.values(path, after.fields)
                values += [after.create_time, after.update_time, under(path)[0]]
                upserts.setdefault(table, []).append(values)
        # Deletes first: what they let go of is free for what is written.
        for table, keys in deletes.items():
            for several in table.deletions(keys):
                await connection.execute(table.delete, several)
        for table, rows in upserts.items():
            if len(rows) == 1:
                await connection.execute(table.upsert, *rows[0])
            else:
                await connection.executemany(table.upsert, rows)
        # Only now: a reference may come before its parent, holders may change places.
        for table, rows in upserts.items() if strict else ():
            if table.mapping is not None:
                for row in await connection.fetch(table.held_back, [values[0] for values in rows]):
                    _refuse(table, table.mapping, row)


def _check_control(row: Any, epoch: int) -> None:
    if row is None or row[0] != epoch or row[1] != "postgresql":
        raise EpochChanged(f"epoch {epoch} is over, or PostgreSQL not in charge")


def _under(intent: Intent | None, epoch: int) -> Callable[[str], tuple[int, bool]]:
    """The epoch of a document's group, and whether the other store follows it."""
    own = epoch, intent is not None and intent.mirrored
    if intent is None or not intent.beside:
        return lambda _: own

    def under(path: str) -> tuple[int, bool]:
        collection = collection_id(path)
        for each in intent.beside:
            if each.group.holds(collection):
                return each.epoch, each.mirrored
        return own

    return under


def _refuse(table: DocumentTable, mapping: CollectionMapping, row: Any) -> None:
    """Raises FailedPrecondition where a type or a constraint refused a value of the row."""
    for field, value in from_rest(row[1]).items():
        cause = mapping.cause(field, value)
        if cause in REFUSED:
            raise FailedPrecondition(
                f"document {table.path_of(row)}, field {field}: {EXPLAINED[cause]} "
                f'(cause "{cause}"; [migration] constraints = "enforce" refuses it)'
            )


def _locks(
    request: Sequence[str],
    paths: Sequence[str],
    written: set[str],
    queried: set[str | None],
) -> tuple[list[str], list[bool]]:
    """Names, and which of them are shared. A collection's is that of its id, wherever it lies:
    a query may be of a collection group. A query of all collections has the lock of all."""
    if len(paths) > MOST_LOCKS or None in queried:
        return [EVERYTHING], [False]
    changing = {collection_id(path) for path in written}
    collections = sorted(changing | {name for name in queried if name is not None})
    names = [
        EVERYTHING,
        *request,
        *(f"c:{escape_path(name)}" for name in collections),
        *(f"p:{escape_path(path)}" for path in paths),
    ]
    shared = [True, *(False for _ in request)]
    shared += [name not in queried for name in collections]
    return names, shared + [path not in written for path in paths]


def _apply(
    writes: Sequence[Write], staged: dict[str, _Staged], now: int, database: Database
) -> list[WriteOutcome]:
    """The pure core's result. All writes of a document answer the time that it is left with."""
    documents, results = writing.apply_all(writes, lambda path: staged[path].before, now, database)
    for path, document in documents.items():
        staged[path].after = document
    times = {path: None if left is None else left.update_time for path, left in documents.items()}
    return [
        WriteOutcome(times[write.path], values)
        for write, values in zip(writes, results, strict=True)
    ]


def _columns(changed: Sequence[str], staged: dict[str, _Staged]) -> tuple[list[str], list[bool]]:
    return (
        [escape_path(path) for path in changed],
        [staged[path].after is not None for path in changed],
    )


def _pending_columns(
    changed: Sequence[str], intent: Intent | None
) -> tuple[str | None, list[str], list[str]]:
    return (
        None if intent is None else intent.id,
        [escape_path(collection_path(path)) for path in changed],
        [escape_path(collection_id(path)) for path in changed],
    )


def replayed(commit_time: int, update_times: Sequence[int | None], size: int) -> CommitOutcome:
    """The first result of `size` writes, as far as it is remembered: times, and no
    transforms' values. Of a commit that a crash interrupted, only its own time is known."""
    times = update_times if len(update_times) == size else [commit_time] * size
    return CommitOutcome(tuple(map(WriteOutcome, times)), commit_time, replayed=True)
