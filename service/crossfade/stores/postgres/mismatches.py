"""The table of mismatches: a row for each signature, and a bound on their number."""

from collections.abc import Sequence

from crossfade.samples import Mismatch
from crossfade.stores.postgres.lanes import Lanes

MAX_ROWS = 5_000
"""Of all collections together."""

# As JSON, because samples are seldom and an array for each column is long.
_PUT = """insert into crossfade.mismatches as m
    (collection_id, signature, verdict, operation, path, fields, first, latest, count,
     first_at, latest_at, given_up)
select collection_id, signature, verdict, operation, path, fields, first, latest, count,
    first_at, latest_at, given_up
from jsonb_to_recordset($1::jsonb) as given (collection_id text, signature text, verdict text,
    operation text, path text, fields text[], first jsonb, latest jsonb, count int8,
    first_at int8, latest_at int8, given_up boolean)
on conflict (collection_id, signature) do update set
    path = excluded.path, latest = excluded.latest, count = m.count + excluded.count,
    latest_at = greatest(m.latest_at, excluded.latest_at),
    given_up = m.given_up or excluded.given_up"""
_PRUNE = """delete from crossfade.mismatches where (collection_id, signature) in (
    select collection_id, signature from (
        select collection_id, signature,
            row_number() over (partition by collection_id order by latest_at desc) as among,
            row_number() over (order by latest_at desc) as overall
        from crossfade.mismatches) as ranked
    where among > $1 or overall > $2)"""
_LIST = """select collection_id, signature, verdict, operation, path, fields, first, latest,
    count, first_at, latest_at, given_up
from crossfade.mismatches
where ($1::text is null or collection_id = $1)
    and ($2::text is null or $2 = any (fields) or exists (
        select from unnest(fields) as field
        where starts_with(field, $2 || '.') or starts_with(field, $2 || '[')))
    and latest_at >= $3
order by latest_at desc limit $4"""


class Mismatches:
    """`per_collection`: signatures that are kept of each, the latest ones."""

    def __init__(self, lanes: Lanes, *, per_collection: int = 200) -> None:
        self._lanes = lanes
        self._per_collection = per_collection

    async def put(self, mismatches: Sequence[Mismatch], *, timeout: float) -> None:
        rows = [
            {
                "collection_id": each.collection,
                "signature": each.signature,
                "verdict": each.verdict,
                "operation": each.operation,
                "path": each.path,
                "fields": each.fields,
                "first": each.first,
                "latest": each.latest,
                "count": each.count,
                "first_at": each.first_at,
                "latest_at": each.latest_at,
                "given_up": each.given_up,
            }
            for each in mismatches
        ]
        await self._lanes.execute(_PUT, _without_nul(rows), timeout=timeout)
        await self._lanes.execute(_PRUNE, self._per_collection, MAX_ROWS, timeout=timeout)

    async def list(
        self,
        *,
        collection: str | None,
        field: str | None,
        since: int,
        limit: int,
        timeout: float,
    ) -> list[Mismatch]:
        """The latest first. `field`: a field path; those within it are meant, too. `since`:
        microseconds since 1970."""
        rows = await self._lanes.fetch(_LIST, collection, field, since, limit, timeout=timeout)
        return [Mismatch(*row.values()) for row in rows]


def _without_nul(value: object) -> object:
    """JSON that PostgreSQL can hold: names of documents and fields may have a NUL in them,
    which is shown as its symbol."""
    if isinstance(value, str):
        return value.replace("\0", "\u2400")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value
