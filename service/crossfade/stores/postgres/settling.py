"""After a change of the mapping: every document into its table, every value into its column."""

from collections.abc import Callable
from typing import Any

from crossfade.document import Database
from crossfade.mapping import Cause, DerivedMapping, Mappings, from_json
from crossfade.stores.postgres.check import stray_arguments, stray_condition
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.rows import DocumentTable, DocumentTables

BATCH = 500
_NEWER = " where (t.epoch, t.update_time) < (excluded.epoch, excluded.update_time)"


class Settling:
    """Moves documents in batches, each a transaction of its own. May be interrupted, repeated,
    and run beside live traffic of sidecars that know the mapping."""

    def __init__(self, lanes: Lanes, mappings: Mappings, database: Database) -> None:
        self._lanes = lanes
        self._tables = DocumentTables(mappings, database)

    async def move(self, *, timeout: float) -> int:
        """Documents of mapped collections out of the generic table. Returns how many."""
        moved = 0
        for table in self._tables.all:
            while table.mapping is not None and (count := await self._move_some(table, timeout)):
                moved += count
        return moved

    async def _move_some(self, table: DocumentTable, timeout: float) -> int:
        mapping, generic = table.mapping, self._tables.generic
        if mapping is None:
            return 0
        async with self._lanes.transaction(timeout) as connection:
            rows = await connection.fetch(
                f"select {generic.select} from {generic.name} t "
                f"where {stray_condition(mapping)} order by path limit {BATCH} for update",
                *stray_arguments(mapping),
            )
            values = []
            for row in rows:
                document = generic.document(row)
                epoch = row[generic.epoch_index]
                values.append(
                    [
                        *table.values(document.path, document.fields),
                        document.create_time,
                        document.update_time,
                        epoch,
                    ]
                )
            await connection.executemany(table.upsert + _NEWER, values)
            await connection.execute(generic.delete, [row[0] for row in rows])
        return len(rows)

    async def promote(self, *, timeout: float) -> int:
        """Values that have a column by now and are still in a remainder. Returns in how many
        documents there were some."""
        changed = 0
        for table in self._tables.all:
            if table.mapping is None or isinstance(table.mapping, DerivedMapping):
                continue
            after = ""
            while True:
                last, count = await self._promote_some(table, after, timeout)
                changed += count
                if last is None:
                    break
                after = last
        return changed

    async def _promote_some(
        self, table: DocumentTable, after: str, timeout: float
    ) -> tuple[str | None, int]:
        """The last key that was looked at, None at the end; and how many rows were written."""
        waits = _waiting(table)
        async with self._lanes.transaction(timeout) as connection:
            rows = await connection.fetch(
                f"select {table.select} from {table.name} t where t.remainder is not null "
                f"and t.id > $1 order by t.id limit {BATCH} for update",
                after,
            )
            values = [
                [
                    *table.values(table.path_of(row), table.fields(row)),
                    row[table.update_index - 1],
                    row[table.update_index],
                    row[table.epoch_index],
                ]
                for row in rows
                if waits(row[table.rest_index])
            ]
            await connection.executemany(table.upsert, values)
        return (rows[-1][0] if len(rows) == BATCH else None), len(values)


def _waiting(table: DocumentTable) -> Callable[[Any], bool]:
    """Whether a remainder has a value that would be in a column if it were written today."""
    mapping = table.mapping

    def waits(remainder: Any) -> bool:
        fields = from_json(remainder)
        return (
            mapping is not None
            and isinstance(fields, dict)
            and any(mapping.cause(name, value) is Cause.WAITING for name, value in fields.items())
        )

    return waits
