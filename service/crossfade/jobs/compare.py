"""Both stores side by side, a range of names at a time: the one comparison there is.

Firestore is read in name order, page by page. What PostgreSQL holds between the first and
the last name of a page is read along its own keys, in no order, and met with the page;
what is left on either side is on one side only. Contents are compared as bytes, and only
those that differ are handed on. A page is no snapshot: who compares beside live traffic
looks at what differs again (validate.py); at rest, `compare` is enough.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from crossfade.content import Content, contents
from crossfade.diff import diff
from crossfade.document import (
    NAME,
    OWN_COLLECTION_PREFIX,
    Database,
    Reference,
    collection_id,
    is_own,
)
from crossfade.jobs.tally import Tally
from crossfade.plan import StoreName
from crossfade.query import Cursor, Order, Query
from crossfade.store import DocumentStore, Stored
from crossfade.stores.postgres.intervals import Span
from crossfade.stores.postgres.ranges import Ranges
from crossfade.stores.postgres.store import PostgresStore
from crossfade.verdict import Judge, Verdict

PAGE = 1_000
MAX_SAMPLES = 20
PAST_OWN = f"{OWN_COLLECTION_PREFIX}{chr(0x10FFFF) * 9}/a"
"""Behind Crossfade's own, of which there may be more than of all else."""

Apart = dict[str, tuple[Content | None, Content | None]]
"""Documents that differ by path: as Firestore has them, and PostgreSQL; None: it has none."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A page of Firestore, and all the names that it stands for. `reads`: documents that it
    held, Crossfade's own too."""

    span: Span
    documents: Mapping[str, Content]
    reads: int


async def slices(
    firestore: DocumentStore, database: Database, *, timeout: float, page: int = PAGE
) -> AsyncIterator[Slice]:
    """Firestore's documents, and in between them every name, in order. The next page is read
    while this one is worked on."""
    reading = asyncio.create_task(
        read_slice(firestore, database, Span(), limit=page, timeout=timeout)
    )
    try:
        while True:
            piece, rest = await reading
            if rest is not None:
                reading = asyncio.create_task(
                    read_slice(firestore, database, rest, limit=page, timeout=timeout)
                )
            yield piece
            if rest is None:
                return
    finally:
        reading.cancel()


async def read_slice(
    firestore: DocumentStore,
    database: Database,
    span: Span,
    *,
    limit: int,
    timeout: float,
    names_only: bool = False,
) -> tuple[Slice, Span | None]:
    """The first documents of a span, and what is left of it; None: nothing. `names_only`: without
    contents."""
    query = Query(
        all_descendants=True,
        order_by=(Order(NAME),),
        start=_cursor(span.after, before=span.included),
        end=_cursor(span.upto, before=span.excluded),
        limit=limit,
        select=(NAME,) if names_only else None,
    )
    root = len(database.root) + 1
    found: list[Content] = []
    async for each in firestore.query(query, timeout=timeout):
        found += contents(each.frames, root)
    documents = {each.path: each for each in found if not is_own(each.path)}
    if len(found) < limit:
        return Slice(span, documents, len(found)), None
    last = found[-1].path
    upto = PAST_OWN if is_own(last) else last
    return (
        Slice(Span(span.after, upto, included=span.included), documents, len(found)),
        Span(upto, span.upto, excluded=span.excluded),
    )


def _cursor(path: str | None, *, before: bool) -> Cursor | None:
    return None if path is None else Cursor((Reference(path),), before=before)


def everybody(path: str) -> bool:
    """All but what is Crossfade's own."""
    return not is_own(path)


async def apart(
    ranges: Ranges,
    piece: Slice,
    tally: Tally,
    *,
    timeout: float,
    mine: Callable[[str], bool] = everybody,
) -> AsyncIterator[Apart]:
    """What differs in a slice, a few documents at a time; `tally` counts what is equal. `mine`:
    which documents of PostgreSQL's are looked at."""
    waiting = dict(piece.documents)
    async for chunk in ranges.documents(piece.span, timeout=timeout):
        found: Apart = {}
        for theirs in chunk:
            path = theirs.path
            ours = waiting.pop(path, None)
            if ours is None:
                # Most of what has no counterpart is another page's.
                if piece.span.holds(path) and mine(path):
                    found[path] = (None, theirs)
            elif ours.data == theirs.data:
                tally.equal(collection_id(path), ours.lanes())
            else:
                found[path] = (ours, theirs)
        if found:
            yield found
    if waiting:
        yield {path: (ours, None) for path, ours in waiting.items()}


# --- at rest -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Comparison:
    """Counts of documents; `missing` and `extra` are said of the mirror.

    `samples`: what differs, by path and field, never by value.
    """

    equal: int = 0
    wrong: int = 0
    missing: int = 0
    extra: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return self.wrong + self.missing + self.extra

    def note(self, text: str) -> None:
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append(text)


async def compare(
    authority: DocumentStore,
    mirror: DocumentStore,
    database: Database,
    *,
    timeout: float,
) -> Comparison:
    """Compares contents. Meant for stores at rest: what changes meanwhile shows as a difference."""
    firestore, postgres = authority, mirror
    if isinstance(firestore, PostgresStore):
        firestore, postgres = postgres, firestore
    if not isinstance(postgres, PostgresStore):
        raise TypeError("a comparison is one of Firestore with PostgreSQL")
    result, tally, judge = Comparison(), Tally(), Judge(database)
    mirrored = authority.name is StoreName.FIRESTORE
    async for piece in slices(firestore, database, timeout=timeout):
        async for found in apart(postgres.ranges, piece, tally, timeout=timeout):
            for path, pair in found.items():
                ours, theirs = pair if mirrored else pair[::-1]
                _note(result, judge, path, ours, theirs)
    result.equal += tally.total(Verdict.MATCH)
    return result


def _note(
    result: Comparison, judge: Judge, path: str, ours: Content | None, theirs: Content | None
) -> None:
    if theirs is None:
        result.missing += 1
        result.note(f"{path}: missing in the mirror")
        return
    if ours is None:
        result.extra += 1
        result.note(f"{path}: only in the mirror")
        return
    found = judge.differences(collection_id(path), as_stored(ours), as_stored(theirs))
    if found is None:
        result.equal += 1  # as NaN and NaN of other bits
        return
    result.wrong += 1
    places = ", ".join(map(str, diff(found[0].fields, found[1].fields)[:5]))
    result.note(f"{path}: {places}")


def as_stored(content: Content) -> Stored:
    """For a judge, who asks for the fields alone."""
    return Stored(content.path, content.data, (0, content.update_time))
