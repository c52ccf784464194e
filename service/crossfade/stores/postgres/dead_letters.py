"""Documents that could not be put into the mirror: kept, shown, and tried again when told to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from crossfade.mapping import escape_path, unescape_path
from crossfade.stores.postgres.lanes import Lanes

# A document may have several dead rows, of several commits; what is told is the newest's.
_LIST = """select path, collection_id,
    (array_agg(reason order by id desc))[1] as reason,
    (array_agg(failure order by id desc))[1] as cause,
    max(attempts) as attempts, min(inserted_at) as since, max(epoch) as epoch,
    bool_or(foreign_time is not null) as is_foreign, count(*) as commits
from crossfade.pending
where dead and path > $1 and ($2::text is null or collection_id = $2)
group by path, collection_id order by path limit $3"""
_RETRY = """with revived as (
    update crossfade.pending
    set dead = false, claim = null, attempts = 0, lease_until = clock_timestamp(),
        overwrite = $3::bool and foreign_time is not null
    where dead and ($1::text is null or path = $1) and ($2::text is null or collection_id = $2)
    returning path)
select count(distinct path) from revived"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Never a value. `reason`: why it became pending; `cause`: why it could not be put (the
    name of an error). `commits`: how many wait. `since` the oldest of them was done.
    `foreign`: Firestore holds something, or nothing, that nobody here wrote."""

    path: str
    collection: str
    reason: str
    cause: str
    attempts: int
    since: datetime
    epoch: int
    foreign: bool
    commits: int


class DeadLetters:
    """The dead rows of `crossfade.pending`."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    async def list(
        self, *, collection: str | None = None, after: str = "", limit: int, timeout: float
    ) -> Sequence[DeadLetter]:
        """The first `limit` by path, of those that come after a path."""
        where = None if collection is None else escape_path(collection)
        rows = await self._lanes.fetch(_LIST, escape_path(after), where, limit, timeout=timeout)
        return [
            DeadLetter(
                unescape_path(row["path"]),
                unescape_path(row["collection_id"]),
                row["reason"],
                row["cause"] or "",
                row["attempts"],
                row["since"],
                row["epoch"],
                row["is_foreign"],
                row["commits"],
            )
            for row in rows
        ]

    async def retry(
        self,
        *,
        path: str | None = None,
        collection: str | None = None,
        overwrite_foreign: bool = False,
        timeout: float,
    ) -> int:
        """Gives dead letters to the workers again: of one path, of a collection, or all.
        Returns how many documents those are.

        `overwrite_foreign`: the document that was found in Firestore, exactly that one and
        none that came later, may be replaced by PostgreSQL's. Else it is looked at again.
        """
        where = [None if name is None else escape_path(name) for name in (path, collection)]
        count = await self._lanes.fetchval(_RETRY, *where, overwrite_foreign, timeout=timeout)
        return int(count)
