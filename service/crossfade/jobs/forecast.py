"""What a backfill would copy, what it would cost, and what would not fit, from a sample."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from crossfade.document import Document, collection_id, collection_path, is_own
from crossfade.jobs.backfill import Asked
from crossfade.jobs.both import Both
from crossfade.jobs.census import ALL_FIELDS, FieldCensus
from crossfade.jobs.partitions import NameRange
from crossfade.jobs.planning import count_in, plan_firestore, plan_postgresql, within
from crossfade.mapping import Cause, DerivedMapping
from crossfade.plan import StoreName
from crossfade.stores.firestore import INTENTS, FirestoreStore

SAMPLE = 200
"""Documents that are read of a root collection."""


@dataclass(slots=True)
class Forecast:
    """`documents` by root collection with what lies below it; None: they cannot be counted.
    `sampled`, `beside` by collection id: documents of the sample, and those of them with
    something beside their columns. `fields`: what that is. `reads`: billed for the copy;
    `spent` for the sample."""

    partitions: int = 0
    documents: dict[str, int | None] = field(default_factory=dict)
    sampled: Counter[str] = field(default_factory=Counter)
    beside: Counter[str] = field(default_factory=Counter)
    fields: dict[tuple[str, str], FieldCensus] = field(default_factory=dict)
    spent: int = 0

    @property
    def reads(self) -> int | None:
        counts = list(self.documents.values())
        return None if None in counts else sum(count or 0 for count in counts)


async def forecast(both: Both, asked: Asked, *, sample: int = SAMPLE) -> Forecast:
    """Changes nothing. Constraints between documents are not in a sample: references and uniques
    that are refused show when everything is there (`crossfade drift`)."""
    snapshot = await both.control.refresh()
    made = Forecast()
    if snapshot.authority is StoreName.POSTGRESQL:
        placed, _ = await plan_postgresql(
            both.held, asked.collections, asked.parts, timeout=both.timeout
        )
        for _, each in placed:
            count = await both.held.count(each.begin, each.end, timeout=both.timeout)
            made.documents[each.collection] = count + (made.documents.get(each.collection) or 0)
        made.partitions = len(placed)
        return made
    placed, _ = await plan_firestore(
        both.firestore,
        both.mappings,
        collections=asked.collections,
        parts=asked.parts,
        small=0,
        timeout=both.timeout,
    )
    ranges = [each for _, each in placed if each.collection != INTENTS]
    made.partitions = len(ranges)
    for name, several in itertools.groupby(ranges, key=lambda each: each.collection):
        await _root(both, made, name, list(several), sample)
    return made


async def _root(
    both: Both, made: Forecast, name: str, ranges: list[NameRange], sample: int
) -> None:
    counts = [await count_in(both.firestore, each, timeout=both.timeout) for each in ranges]
    known = [count for count in counts if count is not None]
    if any(known) or len(known) < len(counts):
        made.documents[name] = sum(known) if len(known) == len(counts) else None
    for each in ranges:
        async for document in _first(both.firestore, each, -(-sample // len(ranges)), both.timeout):
            made.spent += 1
            if not is_own(document.path):
                _look(both, made, document)


async def _first(
    firestore: FirestoreStore, names: NameRange, limit: int, timeout: float
) -> AsyncIterator[Document]:
    for document in await firestore.find(within(names, limit=limit), timeout=timeout):
        yield document


def _look(both: Both, made: Forecast, document: Document) -> None:
    mapping = both.mappings.get(collection_path(document.path))
    name = collection_id(document.path)
    made.sampled[name] += 1
    if mapping is None:
        made.beside[name] += 1
        _census(made, name, ALL_FIELDS).causes[Cause.NO_COLUMN] += 1
        return
    if isinstance(mapping, DerivedMapping):
        return  # what fits is what its owner says, who is not in the sample
    refused = {
        each: value
        for each, value in document.fields.items()
        if (column := mapping.by_field.get(each)) is None or not column.codec.fits(value)
    }
    made.beside[name] += bool(refused)
    for each in document.fields.keys() - refused.keys():
        _census(made, name, each).in_column += 1
    for each, value in refused.items():
        _census(made, name, each).add(mapping.cause(each, value), value, document.path)


def _census(made: Forecast, collection: str, name: str) -> FieldCensus:
    return made.fields.setdefault((collection, name), FieldCensus(collection, name))
