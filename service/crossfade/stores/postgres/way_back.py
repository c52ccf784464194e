"""The way back (PostgreSQL is the authority): what Firestore holds, and what was sent to it.

Before a commit is sent to Firestore, what it would leave there is written down
(`crossfade.attempts`), by whoever still holds the claim and nobody else. So whoever
takes the rows over, in another sidecar or after a crash, finds the intent that it has to
revoke, and can tell a commit of ours that nobody remembered from a foreign writer's.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from crossfade.document import Fields, Value
from crossfade.errors import EpochChanged
from crossfade.mapping import escape_path, to_json, unescape_path
from crossfade.store import Version
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.rows import DocumentTables

_CURRENT = """select 1 from crossfade.control
where grp = $1 and epoch = $2 and authority <> 'firestore' for share"""
# Held to the end of the transaction: a take-over skips rows that are locked, so it comes
# before this, and the rows are gone, or after it, and finds what was written down.
_OWN = """select id, path, intent, foreign_time, overwrite from crossfade.pending
where claim = $1 and path = any($2::text[]) order by id for {strength}"""
_EARLIER = """select intent, path, fingerprint from crossfade.attempts
where path = any($1::text[]) order by inserted_at"""
_ATTEMPT = """insert into crossfade.attempts (intent, path, fingerprint, epoch, time)
select $1::text, path, fingerprint, epoch, time
from unnest($2::text[], $3::text[], $4::int8[], $5::int8[]) as a (path, fingerprint, epoch, time)"""
_FORGET = "delete from crossfade.attempts where intent = $1"
_REQUESTS = """select intent, commit_time, update_times from crossfade.requests
where intent = any($1::text[]) order by intent"""
# Locked in the order that commits lock them in. Of two puts the one of the newer version is
# remembered, whichever was the last to be settled.
_REMEMBER = """with locked as materialized (
    select v.path from unnest($1::text[]) with ordinality s (path, n)
        join crossfade.versions v using (path) order by s.n for update of v)
update crossfade.versions v
set peer_time = s.peer_time, peer_epoch = s.epoch, peer_version = s.time
from unnest($1::text[], $2::int8[], $3::int8[], $4::int8[]) as s (path, peer_time, epoch, time)
where v.path = s.path and (select count(*) from locked) is not null
    and (v.peer_epoch is null or (v.peer_epoch, v.peer_version) <= (s.epoch, s.time))"""
_SETTLED = "delete from crossfade.pending where id = any($1::int8[])"
_DROP = """delete from crossfade.attempts
where path = any($1::text[]) and intent = any($2::text[])"""
_BURY = """update crossfade.pending
set claim = null, failure = $3::text, attempts = attempts + 1, dead = true,
    foreign_time = $4::int8, overwrite = false
where claim = $1 and path = $2"""


@dataclass(frozen=True, slots=True)
class Request:
    """A commit that was done under a request_id: one update_time per write, or none where
    only the commit is known. Each authority's are made known to the other store."""

    intent: str
    commit_time: int
    update_times: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """What PostgreSQL holds at a path, and the update_time Firestore is known to hold:
    0 for absent, None for not known.

    `overwrites`: the update_time of a foreign document (0: of its absence) that an
    operator gave up.
    """

    path: str
    fields: Fields | None
    version: Version | None
    peer_time: int | None
    overwrites: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a claim is about to put. `peers`: of the paths that it still holds.

    `earlier`: intents of former commits to these paths that nobody has settled; they have to
    be revoked before anything is sent. `attempted`: by path, the fingerprints of what those
    would have left. `requests`: done by the commits whose rows these are. `recorded`: the
    claim's own attempt is written down, and may be sent.
    """

    peers: tuple[Peer, ...]
    earlier: frozenset[str]
    attempted: dict[str, set[str | None]]
    requests: tuple[Request, ...]
    recorded: bool


def fingerprint(fields: Fields | None) -> str | None:
    """The same for identical documents, whatever the order of their names. None: no document."""
    if fields is None:
        return None
    text = orjson.dumps(to_json(_ordered(fields)))
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _ordered(value: Value) -> Any:
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    return value


class WayBack:
    """The bookkeeping of reverse puts. Raises EpochChanged, and then has changed nothing."""

    def __init__(self, lanes: Lanes, tables: DocumentTables, group: str) -> None:
        self._lanes = lanes
        self._tables = tables
        self._group = group

    async def peers(self, paths: Sequence[str], *, timeout: float) -> list[Peer]:
        """What PostgreSQL holds at the paths, at one moment, and what Firestore should hold."""
        async with self._lanes.transaction(timeout, "repeatable read, read only") as connection:
            return await self._peers(connection, paths, {})

    async def _peers(
        self, connection: Connection, paths: Sequence[str], overwrites: dict[str, int]
    ) -> list[Peer]:
        found: dict[str, Peer] = {}
        for table, positions in self._tables.grouped(paths).items():
            wanted = [paths[position] for position in positions]
            rows = await connection.fetch(*table.many(wanted, self._group))
            for path, row in zip(wanted, rows, strict=True):
                fields = None if row[0] is None else table.document(row).fields
                peer_time = row[table.extras.peer_time]
                version = table.version(row)
                found[path] = Peer(path, fields, version, peer_time, overwrites.get(path))
        return [found[path] for path in paths]

    async def prepare(
        self,
        claim: str,
        paths: Sequence[str],
        *,
        intent: str,
        epoch: int,
        resolved: Collection[str],
        timeout: float,
    ) -> Prepared:
        """Reads the claimed rows' documents, and writes down that `intent` will put them.

        Not written down while former attempts stand whose intents are not in `resolved`:
        revoke them, then prepare again. The documents are those of one moment. Raises
        Aborted when the rows are taken over meanwhile.
        """
        async with self._lanes.transaction(timeout, "repeatable read") as connection:
            await self._check(connection, epoch)
            rows = await self._own(connection, claim, paths, "share")
            mine = sorted({unescape_path(row["path"]) for row in rows})
            earlier = await connection.fetch(_EARLIER, [escape_path(path) for path in mine])
            attempted: dict[str, set[str | None]] = {}
            for row in earlier:
                attempted.setdefault(unescape_path(row[1]), set()).add(row[2])
            intents = frozenset(row[0] for row in earlier)
            recorded = intents <= set(resolved)
            overwrites = {
                unescape_path(row["path"]): row["foreign_time"]
                for row in rows
                if row["overwrite"] and row["foreign_time"] is not None
            }
            peers = await self._peers(connection, mine, overwrites)
            done = await connection.fetch(_REQUESTS, sorted({row["intent"] for row in rows}))
            if recorded and peers:
                await connection.execute(
                    _ATTEMPT,
                    intent,
                    [escape_path(peer.path) for peer in peers],
                    [fingerprint(peer.fields) for peer in peers],
                    [peer.version and peer.version[0] for peer in peers],
                    [peer.version and peer.version[1] for peer in peers],
                )
        return Prepared(
            tuple(peers),
            intents,
            attempted,
            tuple(Request(row[0], row[1], tuple(row[2])) for row in done),
            recorded,
        )

    async def forget(self, intent: str, *, timeout: float) -> None:
        """An attempt that Firestore definitely refused: it left nothing, and never will."""
        await self._lanes.execute(_FORGET, intent, timeout=timeout)

    async def settle(
        self,
        claim: str,
        settled: Sequence[tuple[Peer, int]],
        *,
        intents: Collection[str] = (),
        epoch: int,
        timeout: float,
    ) -> set[str]:
        """After a reverse put: remembers what Firestore answered (0: holds nothing) for the
        versions that were put, and deletes the claimed rows of their paths and the attempts
        of these intents. A path whose rows the claim has lost is left to who has them.

        Returns the intents of the commits whose rows went.
        """
        times = {escape_path(peer.path): (peer, time) for peer, time in settled}
        async with self._lanes.transaction(timeout) as connection:
            await self._check(connection, epoch)
            rows = await self._own(connection, claim, [peer.path for peer, _ in settled], "update")
            mine = sorted({row["path"] for row in rows})
            pairs = [(path, *times[path]) for path in mine]
            pairs = [pair for pair in pairs if pair[1].version is not None]
            versions = [peer.version or (0, 0) for _, peer, _ in pairs]
            await connection.execute(
                _REMEMBER,
                [path for path, _, _ in pairs],
                [time for _, _, time in pairs],
                [version[0] for version in versions],
                [version[1] for version in versions],
            )
            await connection.execute(_SETTLED, [row["id"] for row in rows])
            await connection.execute(_DROP, mine, list(intents))
        return {row["intent"] for row in rows}

    async def bury(
        self,
        claim: str,
        path: str,
        *,
        failure: str,
        foreign_time: int | None = None,
        timeout: float,
    ) -> bool:
        """Makes the claimed rows of a path dead letters: kept, shown, repaired by hand.
        False: the claim has lost them, and nothing was done."""
        tag = await self._lanes.execute(
            _BURY, claim, escape_path(path), failure, foreign_time, timeout=timeout
        )
        return tag != "UPDATE 0"

    async def _own(
        self, connection: Connection, claim: str, paths: Sequence[str], strength: str
    ) -> list[Any]:
        found: list[Any] = await connection.fetch(
            _OWN.format(strength=strength), claim, [escape_path(path) for path in paths]
        )
        return found

    async def _check(self, connection: Connection, epoch: int) -> None:
        """The first statement of a transaction: the epoch stands, and goes on standing."""
        if await connection.fetchrow(_CURRENT, self._group, epoch) is None:
            raise EpochChanged(f"epoch {epoch} is over, or the authority another")
