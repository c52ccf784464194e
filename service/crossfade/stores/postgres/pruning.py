"""What may go: tombstones, request rows, attempts, and copies that nobody works on.

A tombstone keeps an older image of its document from being put after the delete. So it
goes only when no such image can be under way, and never because it is old: no pending
row of the path (its writer, or a worker, may be about to put), none that stands for its
collection or for everything, no copy under way (a page of it may have been read before
the delete), and Firestore is known to hold nothing for exactly this version.
"""

from crossfade.stores.postgres.lanes import Lanes

_SETTLED = """not v.live and v.peer_time = 0
    and (v.peer_epoch, v.peer_version) = (v.epoch, v.time)"""
# Whoever holds one of these rows is putting the path: the next round is for it.
_LOCK = f"""select v.path from crossfade.versions v
where {_SETTLED} and v.path > $1 order by v.path limit $2 for update skip locked"""
# A statement of its own, begun behind the locks: a put that was under way when they were
# taken has ended, and an intent whose row it does not see writes after this delete.
_PRUNE = f"""delete from crossfade.versions v
where v.path = any($1::text[]) and {_SETTLED}
    and not exists (select from crossfade.pages)
    and not exists (select from crossfade.pending p where p.path = any(array[v.path,
        regexp_replace(regexp_replace(v.path, '/[^/]*$', ''), '^.*/', ''), '']))"""
_EXPIRED_PAGES = "delete from crossfade.pages where lease_until <= clock_timestamp()"
# A request whose rows are pending is not known to the other store yet.
_REQUESTS = """delete from crossfade.requests r
where inserted_at < now() - $1::float8 * interval '1 second'
    and not exists (select from crossfade.pending p where p.intent = r.intent)"""
_ATTEMPTS = """delete from crossfade.attempts a
where inserted_at < now() - $1::float8 * interval '1 second'
    and not exists (select from crossfade.pending p where p.path = a.path)"""


class Pruning:
    """Every method may be called at any time, by any number of sidecars."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    async def tombstones(self, after: str, *, limit: int, timeout: float) -> tuple[int, str | None]:
        """Looks at the first `limit` tombstones whose (escaped) path comes after one.

        Returns how many went, and after which path to go on; None at the end.
        """
        async with self._lanes.transaction(timeout) as connection:
            await connection.execute(_EXPIRED_PAGES)
            paths = [row[0] for row in await connection.fetch(_LOCK, after, limit)]
            tag = await connection.execute(_PRUNE, paths) if paths else "DELETE 0"
        return int(tag.rpartition(" ")[2]), paths[-1] if len(paths) == limit else None

    async def requests(self, seconds: float, *, timeout: float) -> None:
        """Deletes request rows that are older, and known to both stores."""
        await self._lanes.execute(_REQUESTS, seconds, timeout=timeout)

    async def attempts(self, seconds: float, *, timeout: float) -> None:
        """Deletes attempts that are older, of paths that nobody has still to settle. Settling
        takes its own along; these are left where a copy or stage off ended the matter."""
        await self._lanes.execute(_ATTEMPTS, seconds, timeout=timeout)
