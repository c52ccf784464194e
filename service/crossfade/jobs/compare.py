"""Both stores document by document, merged in name order."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from crossfade.diff import diff
from crossfade.document import Database, Document, path_key
from crossfade.jobs.scan import scan
from crossfade.store import DocumentStore

MAX_SAMPLES = 20


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
    authority: DocumentStore, mirror: DocumentStore, database: Database, *, timeout: float
) -> Comparison:
    """Compares contents. Meant for stores at rest: what changes meanwhile shows as a difference."""
    result = Comparison()
    left = _documents(authority, database, timeout)
    right = _documents(mirror, database, timeout)
    ours, theirs = await anext(left, None), await anext(right, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and path_key(ours.path) < path_key(theirs.path)):
            assert ours is not None  # noqa: S101 - one of the two is there
            result.missing += 1
            result.note(f"{ours.path}: missing in the mirror")
            ours = await anext(left, None)
        elif ours is None or path_key(theirs.path) < path_key(ours.path):
            result.extra += 1
            result.note(f"{theirs.path}: only in the mirror")
            theirs = await anext(right, None)
        else:
            differences = diff(ours.fields, theirs.fields)
            if differences:
                result.wrong += 1
                places = ", ".join(map(str, differences[:5]))
                result.note(f"{ours.path}: {places}")
            else:
                result.equal += 1
            ours, theirs = await anext(left, None), await anext(right, None)
    return result


async def _documents(
    store: DocumentStore, database: Database, timeout: float
) -> AsyncIterator[Document]:
    async for page in scan(store, database, timeout=timeout):
        for document in page:
            yield document
