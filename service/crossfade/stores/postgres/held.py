"""What PostgreSQL, the authority, holds and what it knows of Firestore's copy, page by page."""

from collections.abc import Sequence
from dataclasses import dataclass

from crossfade.document import collection_id, collection_path
from crossfade.errors import EpochChanged
from crossfade.mapping import escape_path, unescape_path
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Recorded

_PAGE = """select path, live, peer_time, coalesce((peer_epoch, peer_version) = (epoch, time), false)
    as known, exists (select from crossfade.pending p where p.path = v.path) as pending
from crossfade.versions v
where ($1::text is null or path >= $1) and ($2::text is null or path < $2)
    and ($3::text is null or path > $3)
order by path limit $4"""
_COUNT = """select count(*) from crossfade.versions
where ($1::text is null or path >= $1) and ($2::text is null or path < $2)"""
_POINTS = """select percentile_disc($3::float8[]) within group (order by path)
from crossfade.versions tablesample system ({share})
where ($1::text is null or path >= $1) and ($2::text is null or path < $2)"""
_CURRENT = """select 1 from crossfade.control
where grp = $1 and epoch = $2 and generation = $3 and authority = 'postgresql' for share"""
_QUEUE = """insert into crossfade.pending
    (intent, path, collection_path, collection_id, epoch, lease_until, reason)
select $1, path, collection_path, collection_id, $2, clock_timestamp(), 'backfill'
from unnest($3::text[], $4::text[], $5::text[]) as r (path, collection_path, collection_id)
on conflict (intent, path) do nothing"""
_SAMPLE = 20_000.0
"""Rows that points are taken from."""


@dataclass(frozen=True, slots=True)
class Held:
    """`live` false: a tombstone. `peer_time`: the update_time that Firestore is known to hold for
    exactly this version, 0 for nothing; None: not known. `pending`: it is on its way."""

    path: str
    live: bool
    peer_time: int | None
    pending: bool


class HeldPages:
    """Ranges are of paths as PostgreSQL sorts them: `begin` included, `end` not."""

    def __init__(self, lanes: Lanes, group: str) -> None:
        self._lanes = lanes
        self._group = group

    async def count(self, begin: str | None, end: str | None, *, timeout: float) -> int:
        return int(await self._lanes.fetchval(_COUNT, begin, end, timeout=timeout))

    async def points(
        self, begin: str | None, end: str | None, parts: int, count: int, *, timeout: float
    ) -> list[str]:
        """Paths that cut a range of about `count` rows into parts."""
        share = min(100.0, max(0.01, 100 * _SAMPLE / max(count, 1)))
        found = await self._lanes.fetchval(
            _POINTS.format(share=f"{share:f}"),
            begin,
            end,
            [number / parts for number in range(1, parts)],
            timeout=timeout,
        )
        return sorted({unescape_path(text) for text in found or () if text is not None})

    async def page(
        self,
        begin: str | None,
        end: str | None,
        after: str | None,
        *,
        limit: int,
        timeout: float,
    ) -> list[Held]:
        bounds = [None if path is None else escape_path(path) for path in (begin, end, after)]
        rows = await self._lanes.fetch(_PAGE, *bounds, limit, timeout=timeout)
        return [
            Held(
                unescape_path(row["path"]),
                row["live"],
                row["peer_time"] if row["known"] else None,
                row["pending"],
            )
            for row in rows
        ]

    async def queue(
        self,
        intent: str,
        paths: Sequence[str],
        *,
        epoch: int,
        generation: int,
        also: Recorded,
        timeout: float,
    ) -> None:
        """Makes the paths pending, for the workers to put them into Firestore, and remembers what
        `also` does in the same transaction. Raises EpochChanged."""
        texts = [escape_path(path) for path in paths]
        async with self._lanes.transaction(timeout) as connection:
            if await connection.fetchrow(_CURRENT, self._group, epoch, generation) is None:
                raise EpochChanged(f"epoch {epoch} is over, or the authority another")
            await also.record(connection)
            if texts:
                await connection.execute(
                    _QUEUE,
                    intent,
                    epoch,
                    texts,
                    [collection_path(text) for text in texts],
                    [collection_id(text) for text in texts],
                )
