"""The table of the daily budget of Firestore reads."""

from datetime import date

from crossfade.stores.postgres.lanes import Lanes

# The row is made first: an upsert that inserts could not see what is left.
_DAY = "insert into crossfade.budget (day, reserved) values ($1, 0) on conflict do nothing"
_RESERVE = """with before as (select day, reserved from crossfade.budget where day = $1 for update)
update crossfade.budget as b
set reserved = least(greatest($3::int8, before.reserved), before.reserved + $2::int8)
from before where b.day = before.day
returning b.reserved - before.reserved as got, b.reserved as given"""


class BudgetTable:
    def __init__(self, lanes: Lanes, timeout: float = 5.0) -> None:
        self._lanes = lanes
        self._timeout = timeout

    async def reserve(self, day: date, reads: int, daily: int) -> tuple[int, int]:
        await self._lanes.execute(_DAY, day, timeout=self._timeout)
        row = await self._lanes.fetchrow(_RESERVE, day, reads, daily, timeout=self._timeout)
        assert row is not None  # noqa: S101 - it was made just now
        return row["got"], row["given"]
