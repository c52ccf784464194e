"""PostgreSQL as the mirror: pending rows, guarded puts, claims, and the copy's sweep.

Every statement that changes something reads the control row FOR SHARE and checks
the epoch in it, so that nothing outlives a change of authority. While a barrier is
under way (authority `none`) puts go on and no row is opened.

A put is tied to its own rows: it deletes them in the same transaction and skips a
path whose row is gone, because then somebody else has settled it, perhaps with a
newer document whose tombstone is pruned already.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from crossfade.document import Database, Fields, collection_id, collection_path
from crossfade.errors import Aborted, EpochChanged
from crossfade.groups import Group
from crossfade.mapping import Mappings, escape_path, unescape_path
from crossfade.plan import StoreName
from crossfade.stores.postgres.dead_letters import DeadLetters
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.membership import OF_PATH, listed, of_group
from crossfade.stores.postgres.placement import ALONE, ALONE_ROWS
from crossfade.stores.postgres.pruning import Pruning
from crossfade.stores.postgres.rows import GUARD, DocumentTable, DocumentTables
from crossfade.stores.postgres.statistics import Statistics
from crossfade.stores.postgres.way_back import Request, WayBack

_CONTROL = """c as materialized (select 1 from crossfade.control
    where grp = $1::text and epoch = $2::int8 and authority = any($9::text[]) for share)"""
_CURRENT = """select 1 from crossfade.control
where grp = $1 and epoch = $2 and authority <> $3 for share"""
_OPEN = f"""with {_CONTROL},
done as (
    select commit_time, update_times from crossfade.requests
    where intent = any($10::text[]) limit 1),
opened as (
    insert into crossfade.pending as p
        (intent, path, collection_path, collection_id, epoch, lease_until, reason)
    select $3::text, path, collection_path, collection_id, $2,
        clock_timestamp() + $7::float8 * interval '1 second', $8::text
    from c, unnest($4::text[], $5::text[], $6::text[]) as r (path, collection_path, collection_id)
    where not exists (select from done)
    on conflict (intent, path) do update set lease_until = case
        when $7::float8 > 0 then greatest(p.lease_until, excluded.lease_until)
        else excluded.lease_until end)
select exists (select from c), done.* from (select) one left join done on true"""
_TAKES_ROWS = """select epoch = $2 and not pg_is_in_recovery()
    and not current_setting('transaction_read_only')::bool
from crossfade.control where grp = $1"""
_DROP = "delete from crossfade.pending where intent = $1"
_EXPIRE = """update crossfade.pending set lease_until = clock_timestamp()
where intent = $1 and claim is null"""
# Rows are locked in one order, so that a writer and a worker that took over from it
# do not wait for one another.
_OWN = """delete from crossfade.pending p using (
    select id from crossfade.pending where {owner} = $1 and path = any($2::text[])
    order by id for update) own
where p.id = own.id returning p.path"""
_GUARD = f"""insert into crossfade.versions as v
    (path, epoch, time, live, peer_time, peer_epoch, peer_version, seen)
select path, $1::int8, time, live, case when live then time else 0 end, $1, time, $6::int8
from unnest($2::text[], $3::int8[], $4::bool[]) as i (path, time, live)
{GUARD.format(equal="$5::bool")} returning path"""
_SEEN = "update crossfade.versions set seen = $1 where path = any($2::text[])"
# A path that somebody has claimed is left to him with all its rows.
_CLAIM = f"""with picked as (
    select path from crossfade.pending p
    where not dead and lease_until <= clock_timestamp() and position('/' in path) > 0
        and {of_group("p.collection_id", 4)}
        and not exists (select from crossfade.pending o where o.path = p.path
            and o.claim is not null and o.lease_until > clock_timestamp())
    order by id limit $3 for update skip locked),
free as (
    select id from crossfade.pending
    where path in (select path from picked)
        and not dead and lease_until <= clock_timestamp()
    order by id for update skip locked)
update crossfade.pending p
set claim = $1, lease_until = clock_timestamp() + $2::float8 * interval '1 second'
from free where p.id = free.id
returning p.id, p.intent, p.path, p.epoch, p.reason, p.attempts,
    extract(epoch from clock_timestamp() - p.inserted_at)::float8 as age"""
# The pause doubles with every failure, up to a minute. Without a limit of attempts the
# failure is not the row's: a store's outage makes no dead letters, however long it is.
_RELEASE = """update crossfade.pending
set claim = null, failure = $2::text,
    attempts = attempts + ($3::int is not null)::int,
    dead = coalesce(attempts + 1 >= $3::int, dead),
    lease_until = clock_timestamp()
        + least(60, 0.1 * 2 ^ least(attempts, 20)) * interval '1 second'
where claim = $1 and ($4::text is null or path = $4::text)"""
_IS_PENDING = "select exists (select from crossfade.pending where intent = $1 and not dead)"
# A tombstone may be newer than a change that it ended. Another epoch's clock says nothing.
_BEHIND = """select path
from unnest($1::text[], $2::int8[], $3::bool[]) as c (path, time, there)
    left join crossfade.versions v using (path)
where coalesce(v.peer_time, 0) < c.time and case when c.there
    then v.path is null or v.live or v.epoch <> $4 or v.time < c.time
    else v.live end"""
_SUMMARY = f"""select count(*) filter (where position('/' in path) > 0) as pending,
    count(*) filter (where position('/' in path) = 0) as wildcards,
    count(*) filter (where dead) as dead,
    count(*) filter (where dead and foreign_time is not null) as foreign,
    coalesce(extract(epoch from clock_timestamp()
        - min(inserted_at) filter (where position('/' in path) > 0)), 0)::float8 as oldest
from crossfade.pending where {of_group("collection_id", 1)}"""
_WRITTEN = f"""select count(*) from crossfade.versions
where epoch = $1 and {of_group(OF_PATH, 2)}"""
_STANDS = """select generation from crossfade.control
where grp = $1 and epoch = $2 and generation = $3 and authority = 'firestore' for share"""
# The collection of a path is what stands before its last "/".
_SWEEP = f"""insert into crossfade.pending
    (intent, path, collection_path, collection_id, epoch, lease_until, reason)
select $1::text, path, parent, regexp_replace(parent, '^.*/', ''), $2::int8,
    clock_timestamp(), 'sweep'
from (select path, regexp_replace(path, '/[^/]*$', '') as parent from crossfade.versions
    where live and (seen is null or seen < $3::int8) and {of_group(OF_PATH, 4)}
        and ($6::text[] is null or split_part(path, '/', 1) = any($6))) as unseen
on conflict (intent, path) do nothing"""
_REQUEST = """insert into crossfade.requests (intent, commit_time, update_times)
values ($1, $2, $3::int8[]) on conflict (intent) do nothing"""
_COPIED = f"""delete from crossfade.pending
where position('/' in path) = 0 and {of_group("collection_id", 1)}"""
_BEGIN_PAGES = """insert into crossfade.pages (token, lease_until)
values ($1, clock_timestamp() + $2::float8 * interval '1 second')"""
_RENEW_PAGES = """update crossfade.pages
set lease_until = clock_timestamp() + $2::float8 * interval '1 second'
where token = $1 and lease_until > clock_timestamp()"""
_END_PAGES = "delete from crossfade.pages where token = $1"


COPY_LEASE = 120.0
"""Seconds that a copy may take over a page."""


@dataclass(frozen=True, slots=True)
class Image:
    """A document as the authority holds it; `fields` None: it holds none.

    `time`: update_time, or for a deleted one the commit's or read's time; microseconds.
    `create_time` None: not known, the mirror keeps the one it has.
    """

    path: str
    fields: Fields | None
    time: int
    create_time: int | None

    @property
    def live(self) -> bool:
        return self.fields is not None

    def values(self, table: DocumentTable) -> list[Any]:
        """Of its row (DocumentTable.values)."""
        return table.values(self.path, self.fields or {})


class Sent(NamedTuple):
    """The same of a live document, as Firestore sent it: `message` is a Document."""

    path: str
    message: Any
    time: int
    create_time: int

    @property
    def live(self) -> bool:
        return True

    def values(self, table: DocumentTable) -> list[Any]:
        return table.values_sent(self.path, self.message)


Imaged: TypeAlias = Image | Sent

Tally: TypeAlias = Counter[tuple[str, str]]
"""Documents by collection id and a word: "beside" for those that have something beside their
columns, "misfits" for those of which a column refused something, "unmapped"."""


class Recorded(Protocol):
    """What else is remembered in the transaction of a page."""

    async def record(self, connection: Connection) -> None:
        """Raises what undoes the page."""
        ...


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A claimed row of `crossfade.pending`. `age`: seconds since it was made, at the claim."""

    id: int
    intent: str
    path: str
    epoch: int
    reason: str
    attempts: int
    age: float


@dataclass(frozen=True, slots=True)
class Change:
    """What somebody did in Firestore: `time` is the document's update_time, or (`there`
    false: it is gone) a time at which it was not there any more."""

    path: str
    time: int
    there: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """`pending` counts the documents' rows, dead ones too; `wildcards` stand for collections;
    `foreign` are the dead ones for which Firestore holds what nobody here wrote."""

    pending: int
    oldest_seconds: float
    dead: int
    foreign: int
    wildcards: int


class Mirror:
    """Both directions' bookkeeping. Raises EpochChanged, and then has changed nothing."""

    def __init__(
        self, lanes: Lanes, mappings: Mappings, database: Database, group: Group | None = None
    ) -> None:
        group = group or Group()
        self._lanes = lanes
        self._tables = DocumentTables(mappings, database)
        self._group = group.name
        self._listed = listed(group)
        self.way_back = WayBack(lanes, self._tables, group.name)
        self.dead_letters = DeadLetters(lanes)
        self.pruning = Pruning(lanes)
        self.statistics = Statistics(lanes, self._tables)

    # --- pending rows ----------------------------------------------------------------------------

    async def open_intent(
        self,
        intent: str,
        paths: Sequence[str],
        *,
        epoch: int,
        lease: float,
        reason: str,
        timeout: float,
        done: Sequence[str] = (),
    ) -> Request | None:
        """One row per path, the caller's own for `lease` seconds. The same intent again
        only prolongs the lease. Where one of the intents `done` is recorded as a request
        that was done, that is returned, and no row opened."""
        by = (StoreName.FIRESTORE.value,)
        return await self._open(intent, paths, epoch, lease, reason, by, timeout, done)

    async def takes_rows(self, epoch: int, *, timeout: float) -> bool:
        """Whether pending rows can be written now, under this epoch. A server that only reads
        takes none."""
        return bool(await self._lanes.fetchval(_TAKES_ROWS, self._group, epoch, timeout=timeout))

    async def queue(
        self, intent: str, paths: Sequence[str], *, epoch: int, reason: str, timeout: float
    ) -> None:
        """Rows for a worker of a commit that Firestore has applied, during a barrier, too. One
        that its writer was not told of in time is the worker's at once: nobody will put it."""
        by = (StoreName.FIRESTORE.value, "none")
        await self._open(intent, paths, epoch, 0.0, reason, by, timeout)

    async def mark(
        self,
        intent: str,
        paths: Sequence[str],
        *,
        epoch: int,
        reason: str,
        authority: StoreName,
        timeout: float,
    ) -> None:
        """Queues paths for a worker, under whichever authority it is."""
        await self._open(intent, paths, epoch, 0.0, reason, (authority.value,), timeout)

    async def _open(
        self,
        intent: str,
        paths: Sequence[str],
        epoch: int,
        lease: float,
        reason: str,
        authorities: Sequence[str],
        timeout: float,
        done: Sequence[str] = (),
    ) -> Request | None:
        unique = sorted({escape_path(path) for path in paths})
        row = await self._lanes.fetchrow(
            _OPEN,
            self._group,
            epoch,
            intent,
            unique,
            [collection_path(path) for path in unique],
            [collection_id(path) for path in unique],
            lease,
            reason,
            list(authorities),
            list(done),
            timeout=timeout,
        )
        if row is None or not row[0]:
            raise _over(epoch)
        return None if row[1] is None else Request(intent, row[1], tuple(row[2]))

    async def drop_intent(self, intent: str, *, timeout: float) -> None:
        """Deletes the rows of an intent that is known not to have been applied."""
        await self._lanes.execute(_DROP, intent, timeout=timeout)

    async def expire_intent(self, intent: str, *, timeout: float) -> None:
        """Ends the writer's own lease: a worker takes the rows over at once."""
        await self._lanes.execute(_EXPIRE, intent, timeout=timeout)

    async def claim(
        self, claim: str, *, limit: int, lease: float, timeout: float
    ) -> list[PendingRow]:
        """Takes over rows whose lease is over: the `limit` oldest, and with each every
        other free row of its path."""
        rows = await self._lanes.fetch(_CLAIM, claim, lease, limit, *self._listed, timeout=timeout)
        return [
            PendingRow(row[0], row[1], unescape_path(row[2]), *row[3:])
            for row in sorted(rows, key=lambda row: row[0])
        ]

    async def release(
        self,
        claim: str,
        path: str | None = None,
        *,
        failure: str,
        attempts: int | None,
        timeout: float,
    ) -> None:
        """Gives the claimed rows (of one path) back after a failure, to be tried again after
        a pause; after `attempts` failures they are dead letters. None: not counted."""
        where = None if path is None else escape_path(path)
        await self._lanes.execute(_RELEASE, claim, failure, attempts, where, timeout=timeout)

    async def behind(self, changes: Sequence[Change], *, epoch: int, timeout: float) -> list[str]:
        """The paths of changes in Firestore, the authority, that the mirror does not know."""
        rows = await self._lanes.fetch(
            _BEHIND,
            [escape_path(change.path) for change in changes],
            [change.time for change in changes],
            [change.there for change in changes],
            epoch,
            timeout=timeout,
        )
        return [unescape_path(row[0]) for row in rows]

    async def is_pending(self, intent: str, *, timeout: float) -> bool:
        """Whether a worker has still to settle a row of the commit; dead letters nobody will."""
        return bool(await self._lanes.fetchval(_IS_PENDING, intent, timeout=timeout))

    async def summary(self, *, timeout: float) -> Summary:
        row = await self._lanes.fetchrow(_SUMMARY, *self._listed, timeout=timeout)
        assert row is not None  # noqa: S101 - an aggregate has one row
        return Summary(row["pending"], row["oldest"], row["dead"], row["foreign"], row["wildcards"])

    async def written_in(self, epoch: int, *, timeout: float) -> int:
        """How many documents were last written, or deleted, in an epoch. Reads the whole table."""
        found = await self._lanes.fetchval(_WRITTEN, epoch, *self._listed, timeout=timeout)
        return int(found)

    # --- puts (Firestore is the authority) -------------------------------------------------------

    async def put(
        self,
        images: Sequence[Image],
        *,
        epoch: int,
        intent: str | None = None,
        claim: str | None = None,
        allow_equal: bool,
        timeout: float,
        requests: Sequence[Request] = (),
    ) -> set[str]:
        """Puts images under the version guard, tied to the rows of an intent or a claim.

        Returns the paths that were put. A path without such a row is skipped; a path
        whose version was refused loses its row all the same: it is settled. With
        neither an intent nor a claim nothing ties the images. `requests` are recorded with
        them: before the row goes, so that a change of authority finds either.
        """
        owner = "intent" if intent is not None else "claim" if claim is not None else None
        row = claim if intent is None else intent
        alone = not requests or [request.intent for request in requests] == [intent]
        if alone and len(images) == 1 and images[0].fields is not None:
            done = requests[0] if requests else None
            return await self._put_one(images[0], epoch, owner, row, allow_equal, timeout, done)
        async with self._lanes.transaction(timeout) as connection:
            await self._check(connection, epoch, StoreName.POSTGRESQL)
            await self._record(connection, requests)
            ordered = sorted(images, key=lambda image: image.path)
            if owner is not None:
                paths = [escape_path(image.path) for image in ordered]
                mine = {r[0] for r in await connection.fetch(_OWN.format(owner=owner), row, paths)}
                ordered = [image for image in ordered if escape_path(image.path) in mine]
            return await self._put_all(connection, ordered, epoch, allow_equal=allow_equal)

    async def begin_copy(self, token: int, *, timeout: float) -> None:
        """Before the first page is read: from here on no tombstone is pruned, until the copy
        ends or has put no page for COPY_LEASE seconds."""
        await self._lanes.execute(_BEGIN_PAGES, token, COPY_LEASE, timeout=timeout)

    async def renew_copy(self, token: int, *, timeout: float) -> None:
        """For a copy that puts no page for a while. One whose lease is over stays over."""
        await self._lanes.execute(_RENEW_PAGES, token, COPY_LEASE, timeout=timeout)

    async def end_copy(self, token: int, *, timeout: float) -> None:
        """For a copy that is broken off; one that ends well needs no more."""
        await self._lanes.execute(_END_PAGES, token, timeout=timeout)

    async def put_page(
        self,
        images: Sequence[Imaged],
        *,
        epoch: int,
        generation: int,
        token: int,
        timeout: float,
        requests: Sequence[Request] = (),
        seen: int | None = None,
        also: Recorded | None = None,
        tally: Tally | None = None,
    ) -> set[str]:
        """A page of the first copy: untied, equal versions too. Its paths are marked as
        seen by the copy `seen` (else `token`), whether they were put or not. `requests` that
        Firestore alone knew of are recorded with it, and what `also` is. Raises EpochChanged as
        `finish_copy` does: stage off leaves no tombstones that would keep an old page out.
        Raises Aborted when the copy took too long over it, for the same reason. `also` comes
        last, when the `tally` of what was put is known."""
        mark = token if seen is None else seen
        async with self._lanes.transaction(timeout) as connection:
            await self._check_copy(connection, epoch, generation, token)
            await self._record(connection, requests)
            ordered = sorted(images, key=lambda image: image.path)
            put = await self._put_all(
                connection, ordered, epoch, allow_equal=True, seen=mark, tally=tally
            )
            refused = [escape_path(image.path) for image in ordered if image.path not in put]
            if refused:
                await connection.execute(_SEEN, mark, refused)
            if also is not None:
                await also.record(connection)
            return put

    async def finish_copy(
        self,
        token: int,
        *,
        epoch: int,
        generation: int,
        timeout: float,
        seen: int | None = None,
        roots: Sequence[str] | None = None,
        also: Recorded | None = None,
    ) -> int:
        """Ends a copy: documents it did not meet become pending, the wildcard goes. `roots`: it
        was only of these root collections, and leaves the wildcard where it is.

        Returns how many those are. Raises EpochChanged when the epoch or the mirror's
        generation is another than the copy began under.
        """
        mark = token if seen is None else seen
        names = None if roots is None else [escape_path(root) for root in roots]
        async with self._lanes.transaction(timeout) as connection:
            await self._check_copy(connection, epoch, generation, token)
            tag = await connection.execute(
                _SWEEP, f"sweep-{mark}", epoch, mark, *self._listed, names
            )
            if roots is None:
                await connection.execute(_COPIED, *self._listed)
            await connection.execute(_END_PAGES, token)
            if also is not None:
                await also.record(connection)
        return int(tag.rpartition(" ")[2])

    async def _record(self, connection: Connection, requests: Sequence[Request]) -> None:
        for request in sorted(requests, key=lambda request: request.intent):
            times = list(request.update_times)
            await connection.execute(_REQUEST, request.intent, request.commit_time, times)

    async def _check_copy(
        self, connection: Connection, epoch: int, generation: int, token: int
    ) -> None:
        """The copy stands, and goes on standing for the transaction."""
        if await connection.fetchrow(_STANDS, self._group, epoch, generation) is None:
            raise _over(epoch)
        if await connection.execute(_RENEW_PAGES, token, COPY_LEASE) != "UPDATE 1":
            raise Aborted(
                f"the copy put no page for {COPY_LEASE:g} s, so what it has read may have been "
                f"deleted since; begin it again"
            )

    async def _put_one(
        self,
        image: Image,
        epoch: int,
        owner: str | None,
        row: str | None,
        allow_equal: bool,
        timeout: float,
        request: Request | None,
    ) -> set[str]:
        table = self._tables.of(image.path)
        answer = await self._lanes.fetchrow(
            table.put_one[owner],
            *table.values(image.path, image.fields or {}),
            image.create_time,
            image.time,
            epoch,
            escape_path(image.path),
            self._group,
            allow_equal,
            *([] if row is None else [row]),
            *([] if owner != "intent" else _recorded(request)),
            timeout=timeout,
        )
        if answer is None or not answer[0]:
            raise _over(epoch)
        return {image.path} if answer[1] else set()

    async def _put_all(
        self,
        connection: Connection,
        images: Sequence[Imaged],
        epoch: int,
        *,
        allow_equal: bool,
        seen: int | None = None,
        tally: Tally | None = None,
    ) -> set[str]:
        """The guard first, then the data, in statements of their own: a delete in the
        guard's statement would not see what was committed while it waited for the lock.
        One statement puts the documents of a table."""
        accepted = {
            unescape_path(row[0])
            for row in await connection.fetch(
                _GUARD,
                epoch,
                [escape_path(image.path) for image in images],
                [image.time for image in images],
                [image.live for image in images],
                allow_equal,
                seen,
            )
        }
        upserts: dict[DocumentTable, list[list[Any]]] = {}
        deletes: dict[DocumentTable, list[str]] = {}
        for image in images:
            if image.path not in accepted:
                continue
            table = self._tables.of(image.path)
            if image.live:
                values = image.values(table)
                values += (image.create_time, image.time, epoch)
                upserts.setdefault(table, []).append(values)
            else:
                deletes.setdefault(table, []).append(table.key_of(image.path))
        if tally is not None:
            for table, rows in upserts.items():
                table.count(rows, tally)
        if len(accepted) > ALONE_ROWS:
            await connection.execute(ALONE)
        for table, rows in upserts.items():
            for statement, columns in table.bulk.calls(rows):
                await connection.execute(statement, *columns)
        for table, keys in deletes.items():
            for several in table.deletions(keys):
                await connection.execute(table.delete, several)
        return accepted

    async def _check(self, connection: Connection, epoch: int, refused: StoreName) -> None:
        """The first statement of a transaction: the epoch stands, and goes on standing."""
        if await connection.fetchrow(_CURRENT, self._group, epoch, refused.value) is None:
            raise _over(epoch)


def _over(epoch: int) -> EpochChanged:
    return EpochChanged(f"epoch {epoch} is over, or the authority another")


def _recorded(request: Request | None) -> list[Any]:
    return [None, []] if request is None else [request.commit_time, list(request.update_times)]
