"""An archive back into a store, as ordinary commits of what is not there yet.

A document that is newer than the archive is left alone, unless it is to be overwritten.
Every write has a precondition on what was read just before, so that nobody's write is
undone that came in between; and it may be broken off and begun again: what is there already
is passed over. So a batch that the store refused, or did not answer, is simply read anew.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from crossfade import redaction
from crossfade.document import Database, Document, check_document, identical
from crossfade.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound
from crossfade.jobs.brake import REFUSALS, Brake
from crossfade.store import DocumentStore, Intent, Stored
from crossfade.wire import parse_document
from crossfade.write import Write

BATCH, BATCH_BYTES = 100, 4 * 1_048_576
ATTEMPTS = 5
MAX_NEWER = 20


class Outcome(StrEnum):
    SAME = "same"
    CREATED = "created"
    REPLACED = "replaced"
    NEWER = "newer"
    """Refused: the store holds a newer one."""
    MOVED = "moved"
    """Refused: somebody went on writing it."""


@dataclass(slots=True)
class Restored:
    """Documents by outcome; `refused`: the first paths that were."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    refused: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.counts[Outcome.NEWER] or self.counts[Outcome.MOVED])

    def count(self, outcome: Outcome, path: str) -> None:
        self.counts[outcome] += 1
        if outcome in {Outcome.NEWER, Outcome.MOVED} and len(self.refused) < MAX_NEWER:
            self.refused.append(redaction.present().path(path))


def decide(
    archived: Document, held: Document | None, *, overwrite: bool
) -> tuple[Outcome, Write | None]:
    """What becomes of an archived document where the store holds another, or none. Pure."""
    if held is None:
        return Outcome.CREATED, Write(archived.path, archived.fields, exists=False)
    if identical(archived.fields, held.fields):
        return Outcome.SAME, None
    if held.update_time > archived.update_time and not overwrite:
        return Outcome.NEWER, None
    write = Write(archived.path, archived.fields, update_time=held.update_time)
    return Outcome.REPLACED, write


class Restorer:
    """Into `store`, which is the authority. `intent` makes what its commits have to know."""

    def __init__(
        self,
        store: DocumentStore,
        database: Database,
        *,
        intent: Callable[[], Intent | None] = lambda: None,
        overwrite: bool = False,
        timeout: float = 30.0,
        brake: Brake | None = None,
    ) -> None:
        self._store = store
        self._database = database
        self._intent = intent
        self._overwrite = overwrite
        self._timeout = timeout
        self._brake = brake or Brake()
        self.restored = Restored()

    async def run(self, documents: Iterable[Document]) -> AsyncIterator[int]:
        """Yields after every batch how many documents have been dealt with."""
        done = 0
        for batch in _batches(documents):
            await self._batch(batch)
            done += len(batch)
            yield done

    async def _batch(self, batch: Sequence[Document]) -> None:
        if not await self._done(batch):
            # Somebody writes one of them: that is not the others' fault.
            for document in batch:
                await self._alone(document)

    async def _alone(self, document: Document) -> None:
        for _ in range(ATTEMPTS):
            if await self._done([document]):
                return
        self.restored.count(Outcome.MOVED, document.path)

    async def _done(self, batch: Sequence[Document]) -> bool:
        """As _once, as soon as the store answers."""
        while True:
            await self._brake.allow(len(batch))
            try:
                done = await self._once(batch)
            except REFUSALS as error:
                self._brake.refused(error)
            else:
                self._brake.spend(len(batch), 0)
                return done

    async def _once(self, batch: Sequence[Document]) -> bool:
        """False: nothing was done, because what was read is not there any more."""
        paths = [document.path for document in batch]
        reading = await self._store.get(paths, timeout=self._timeout)
        decisions = [
            decide(document, self._parsed(stored), overwrite=self._overwrite)
            for document, stored in zip(batch, reading.documents, strict=True)
        ]
        writes = [write for _, write in decisions if write is not None]
        if writes:
            try:
                await self._store.commit(writes, timeout=self._timeout, intent=self._intent())
            except (AlreadyExists, FailedPrecondition, NotFound, Aborted):
                return False
        for document, (outcome, _) in zip(batch, decisions, strict=True):
            self.restored.count(outcome, document.path)
        return True

    def _parsed(self, stored: Stored) -> Document | None:
        return None if stored.data is None else parse_document(stored.data, self._database)


def _batches(documents: Iterable[Document]) -> Iterable[list[Document]]:
    """Few enough for one commit."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        more = check_document(document.path, document.fields)
        if batch and (len(batch) == BATCH or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += more
    if batch:
        yield batch
