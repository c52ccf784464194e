"""Where the values of the documents are: in columns, or in remainders and why."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from dataclasses import field as made
from datetime import datetime
from typing import Any

from crossfade import redaction
from crossfade.document import Value
from crossfade.mapping import (
    REFUSED,
    Cause,
    CollectionMapping,
    DerivedMapping,
    Mappings,
    from_json,
    unescape_path,
)
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.naming import name_of

MAX_WORDS = 200
PREFETCH = 500
ALL_FIELDS = "*"
"""The field of the one line of a collection without a mapping."""


@dataclass(slots=True)
class FieldCensus:
    """One field of one collection. `seen`: documents that have it. `types`: of the values in
    remainders. `words`: texts that an enum does not have, the first MAX_WORDS of them."""

    collection: str
    field: str
    in_column: int = 0
    causes: Counter[Cause] = made(default_factory=Counter)
    types: Counter[str] = made(default_factory=Counter)
    words: Counter[str] = made(default_factory=Counter)
    example: str | None = None

    @property
    def in_remainder(self) -> int:
        return self.causes.total()

    @property
    def seen(self) -> int:
        return self.in_column + self.in_remainder

    @property
    def refused(self) -> int:
        """Values that a type or a constraint refused."""
        return sum(count for cause, count in self.causes.items() if cause in REFUSED)

    def add(self, cause: Cause, value: Value, path: str) -> None:
        self.causes[cause] += 1
        self.types[_TYPES.get(type(value), type(value).__name__.lower())] += 1
        if self.example is None or (cause in REFUSED and self.refused == 1):
            self.example = path
        if cause is Cause.WORD and isinstance(value, str):
            self._count_word(value)

    def _count_word(self, word: str) -> None:
        if word in self.words or len(self.words) < MAX_WORDS:
            self.words[word] += 1

    def suggestion(self, *, words: bool = False) -> str:
        """The change of schema that would make most of the values fit, or what else to do.
        `words`: also which words the enum does not have; they are contents of documents."""
        if not self.causes:
            return ""
        cause = max(self.causes, key=lambda cause: (cause in REFUSED, self.causes[cause]))
        if self.field == ALL_FIELDS:
            return "map the collection (docs/mapping.md)"
        if cause is Cause.NO_COLUMN:
            return _column(self.field, self.types)
        if cause is Cause.TYPE:
            types = Counter({name: n for name, n in self.types.items() if name != "null"})
            most, count = types.most_common(1)[0]
            return f"if the writers mean it, another type: {most} in {count} of {self.seen}"
        if cause is Cause.WORD and words:
            listed = ", ".join(f'"{word}" ({n})' for word, n in self.words.most_common(5))
            return f"add to the words, or clean: {listed}"
        return _ADVICE[cause]


_ADVICE = {
    Cause.NULL: "none needed: an explicit null is kept beside the column",
    Cause.RANGE: "clean the values, or take the column out of its index",
    Cause.WORD: "add the words to the enum, or clean them (--words shows them)",
    Cause.REFERENCE: "bring the missing documents, or clean the references",
    Cause.DUPLICATE: "clean the second holders, or give the unique up",
    Cause.OWNER: "none needed: kept as it is",
    Cause.WAITING: "run crossfade schema upgrade",
}
_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "double",
    datetime: "timestamp",
    str: "string",
    list: "array",
    dict: "map",
}
_COLUMNS = {
    "boolean": 'Column("{0}", Boolean)',
    "integer": 'Column("{0}", BigInteger)',
    "double": 'Column("{0}", Double)',
    "timestamp": 'Column("{0}", DateTime(timezone=True))',
    "string": 'text_column("{0}")',
    "bytes": 'Column("{0}", LargeBinary)',
    "array": 'Column("{0}", JSONB)',
    "map": 'Column("{0}", JSONB)',
}


def _column(name: str, types: Counter[str]) -> str:
    known = Counter({which: n for which, n in types.items() if which != "null"})
    if not known:
        return "none needed: nothing but nulls"
    most, count = known.most_common(1)[0]
    if most not in _COLUMNS:
        return f"none: there are no columns for values of type {most}"
    mixed = "" if len(known) == 1 else f" (fits {count} of {known.total()})"
    return _COLUMNS[most].format(name) + mixed


async def census(lanes: Lanes, mappings: Mappings, *, timeout: float) -> AsyncIterator[FieldCensus]:
    """Every field of every mapped collection; of an unmapped one, a single line.

    Reads every remainder. Each collection is a snapshot of its own.
    """
    for mapping in mappings:
        for found in await _collection(lanes, mapping, timeout):
            yield found
    rows = await lanes.fetch(
        "select collection_id, count(*), min(path) from crossfade.documents group by 1 order by 1",
        timeout=timeout,
    )
    for name, count, path in rows:
        unmapped = FieldCensus(unescape_path(name), ALL_FIELDS, example=unescape_path(path))
        unmapped.causes[Cause.NO_COLUMN] = count
        yield unmapped


async def _collection(
    lanes: Lanes, mapping: CollectionMapping, timeout: float
) -> list[FieldCensus]:
    found = {entry.field: FieldCensus(mapping.pattern, entry.field) for entry in mapping.columns}
    table = name_of(mapping.table)
    async with lanes.transaction(timeout, "repeatable read, read only") as connection:
        if isinstance(mapping, DerivedMapping):
            held = await connection.fetchval(f"select count(owner) from {table}")
            for entry in mapping.columns:
                found[entry.field].in_column = held
        else:
            counts = ", ".join(f'count("{entry.column}")' for entry in mapping.columns)
            row = await connection.fetchrow(f"select {counts} from {table}")
            for entry, count in zip(mapping.columns, row or (), strict=True):
                found[entry.field].in_column = count
        cursor = connection.cursor(
            f"select id, remainder from {table} where remainder is not null", prefetch=PREFETCH
        )
        async for key, remainder in cursor:
            fields: Any = from_json(remainder)
            for name, value in fields.items():
                path = redaction.present().path(mapping.path_of(unescape_path(key)))
                one = found.setdefault(name, FieldCensus(mapping.pattern, name))
                one.add(mapping.cause(name, value), value, path)
    return list(found.values())
