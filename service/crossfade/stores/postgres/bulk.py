"""Many rows of one table in one statement: their columns travel as arrays.

`insert … select … from unnest(…)` costs a tenth more than a bare COPY of the rows, and can
do what COPY cannot: keep the rows that are there. An array of arrays would be taken
apart to its last elements, and the driver would take a JSON list for one, so these travel
as texts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import orjson

MAX_ROWS = 1_000
MAX_SIZE = 8 * 1_048_576
"""Characters and bytes in a statement's arguments: a message of PostgreSQL's has to fit in
1 GiB, and a thousand documents of the largest size would not."""

Call: TypeAlias = tuple[str, list[list[Any]]]
"""A statement and its arguments, one list per column."""


class Bulk:
    """The upserts of one table. `columns`: name and SQL type of each that is written, the
    key first; `changed`: those that a row that is there is given."""

    def __init__(
        self, name: str, columns: Sequence[tuple[str, str]], changed: Sequence[str]
    ) -> None:
        key = columns[0][0]
        kinds = [kind for _, kind in columns] + ["int8"] * 3
        names = [f"c{number}" for number in range(len(kinds))]
        self._converters = [_CONVERTERS.get(kind) for kind in kinds]
        self._wide = [n for n, kind in enumerate(kinds) if kind not in _NARROW]
        selected = [
            f"r.{column}" + ("" if convert is None else f"::{kind}")
            for column, kind, convert in zip(names, kinds, self._converters, strict=True)
        ]
        create, update, epoch = selected[-3:]
        arrays = ", ".join(
            f"${number}::{kind if convert is None else 'text'}[]"
            for number, (kind, convert) in enumerate(
                zip(kinds, self._converters, strict=True), start=1
            )
        )
        written = ", ".join(column for column, _ in columns)
        assignments = [f"{column} = excluded.{column}" for column in changed]

        def text(*more: str) -> str:
            return f"""insert into {name} ({written}, create_time, update_time, epoch)
                select {", ".join(selected[:-3])}, coalesce({create}, {update}), {update}, {epoch}
                from unnest({arrays}) r ({", ".join(names)})
                on conflict ({key}) do update set {", ".join([*assignments, *more])}"""

        self._known, self._kept = text("create_time = excluded.create_time"), text()

    def calls(self, rows: Sequence[Sequence[Any]]) -> Iterator[Call]:
        """What puts the rows: their columns, create_time (None: a row that is there keeps
        its own), update_time and epoch. No key may come twice."""
        known = [row for row in rows if row[-3] is not None]
        kept = [row for row in rows if row[-3] is None]
        for statement, some in ((self._known, known), (self._kept, kept)):
            if some:
                columns = self._columns(some)
                for begin, end in self._cuts(columns):
                    yield statement, [column[begin:end] for column in columns]

    def _columns(self, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
        return [
            list(values)
            if convert is None
            else [None if value is None else convert(value) for value in values]
            for values, convert in zip(zip(*rows, strict=True), self._converters, strict=True)
        ]

    def _cuts(self, columns: Sequence[Sequence[Any]]) -> Iterator[tuple[int, int]]:
        """Beginnings and ends of the statements' rows."""
        wide = [columns[number] for number in self._wide]
        begin = size = 0
        for number, values in enumerate(zip(*wide, strict=True)):
            own = sum([len(value) for value in values if value is not None])
            if number > begin and (number - begin >= MAX_ROWS or size + own > MAX_SIZE):
                yield begin, number
                begin, size = number, 0
            size += own
        yield begin, len(columns[0])


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _integers(values: Sequence[int]) -> str:
    return f"{{{','.join(map(str, values))}}}"


def _texts(values: Sequence[str]) -> str:
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


_CONVERTERS: dict[str, Callable[[Any], str]] = {
    "jsonb": _json,
    "int8[]": _integers,
    "text[]": _texts,
}
_NARROW = frozenset({"int8", "float8", "bool", "timestamptz"})
