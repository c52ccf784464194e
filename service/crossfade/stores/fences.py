"""What Crossfade keeps in the application's own Firestore to fence it: the control document
and the outbox.

The control document `_crossfade_control/{group}` says whether Firestore takes writes, under
which epoch, and whether PostgreSQL's copies may be read (the gate). It is changed by
compare-and-set only: whoever stalls between reading and writing it changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossfade.document import Fields
from crossfade.errors import Aborted, AlreadyExists, CrossfadeError, FailedPrecondition, NotFound
from crossfade.groups import Group, shown
from crossfade.query import FieldFilter, Op, Query
from crossfade.store import Stored
from crossfade.stores.firestore import EXPIRY, INTENTS, FirestoreStore, outbox_mark
from crossfade.wire import parse_document
from crossfade.write import Write

CONTROL = "_crossfade_control"
ENTRIES = 50
"""Outbox entries that are drained at once."""


@dataclass(frozen=True, slots=True)
class ControlDocument:
    """Firestore's side of who is in charge. Without the document it is as here: nobody has
    begun a migration.

    `gate`: its generation; odd while it is closed, which is while commits may be in Firestore
    that PostgreSQL has no pending rows of. `mirrored`: whether commits have to be.
    `update_time`: microseconds, 0 without the document.
    """

    epoch: int = 0
    open: bool = True
    gate: int = 0
    mirrored: bool = False
    update_time: int = 0

    @property
    def gate_open(self) -> bool:
        return self.gate % 2 == 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A commit that PostgreSQL has to be told of: its intent's document and its paths."""

    id: str
    paths: tuple[str, ...]
    epoch: int


class Fences:
    """Control document and outbox of one group. Raises the errors of the Firestore store."""

    def __init__(self, firestore: FirestoreStore, group: Group | None = None) -> None:
        self._firestore = firestore
        self._group = group or Group()
        self.path = f"{CONTROL}/{self._group.name}"
        """Of the control document."""
        self._mark = outbox_mark(self._group.name)

    # --- the control document -----------------------------------------------------------------

    async def read(self, *, timeout: float) -> ControlDocument:
        reading = await self._firestore.get([self.path], timeout=timeout)
        return self._parsed(reading.documents[0])

    async def change(
        self, before: ControlDocument, after: ControlDocument, *, timeout: float
    ) -> ControlDocument:
        """Writes `after` where the document is still `before`. Raises Aborted when it is not."""
        write = self._write(before, after)
        try:
            outcome = await self._firestore.commit([write], timeout=timeout)
        except (FailedPrecondition, AlreadyExists, NotFound) as error:
            raise Aborted("the control document was changed by another") from error
        return replace(after, update_time=outcome.writes[0].update_time or 0)

    def _write(self, before: ControlDocument, after: ControlDocument) -> Write:
        fields: Fields = {
            "epoch": after.epoch,
            "open": after.open,
            "gate": after.gate,
            "mirrored": after.mirrored,
        }
        if self._group.layout:
            fields["groups"] = self._group.layout
        return Write(
            self.path,
            fields,
            exists=None if before.update_time else False,
            update_time=before.update_time or None,
        )

    def _parsed(self, stored: Stored) -> ControlDocument:
        document, layout = self._read(stored)
        # Whoever has other groups does not know which document is about which collection.
        if layout not in {None, self._group.layout}:
            raise FailedPrecondition(other_groups(self._group.layout, str(layout)))
        return document

    async def read_any(self, *, timeout: float) -> ControlDocument:
        """What the document says, whichever groups it is for: for whoever changes those."""
        reading = await self._firestore.get([self.path], timeout=timeout)
        return self._read(reading.documents[0])[0]

    async def remove(self, before: ControlDocument, *, timeout: float) -> None:
        """Deletes the document where it is still `before`. Raises Aborted when it is not."""
        write = Write(self.path, None, update_time=before.update_time)
        try:
            await self._firestore.commit([write], timeout=timeout)
        except (FailedPrecondition, NotFound) as error:
            raise Aborted("the control document was changed by another") from error

    def _read(self, stored: Stored) -> tuple[ControlDocument, str | None]:
        """The document, and the layout that it is for; None: there is no document."""
        if stored.data is None:
            return ControlDocument(), None
        document = parse_document(stored.data, self._firestore.database)
        fields = document.fields
        layout = str(fields.get("groups", ""))
        match fields:
            case {
                "epoch": int(epoch),
                "open": bool(opened),
                "gate": int(gate),
                "mirrored": bool(m),
            }:
                return ControlDocument(epoch, opened, gate, m, document.update_time), layout
        raise FailedPrecondition(
            f"{self.path} in Firestore is not as Crossfade writes it; delete the document, "
            f"and it is written anew"
        )

    async def begin(self, *, timeout: float) -> tuple[bytes, ControlDocument]:
        """A transaction that has read the control document, and what that says: a commit in it
        is Aborted if anybody changes the document before."""
        transaction, stored = await self._firestore.begin_reading(self.path, timeout=timeout)
        try:
            return transaction, self._parsed(stored)
        except CrossfadeError:
            await self.give_up(transaction, timeout=timeout)
            raise

    async def read_in(self, transaction: bytes, *, timeout: float) -> ControlDocument:
        """The same in a transaction that is open already."""
        [stored] = await self._firestore.get_in(transaction, [self.path], timeout=timeout)
        return self._parsed(stored)

    async def give_up(self, transaction: bytes, *, timeout: float) -> None:
        """Lets its locks go; one that cannot be told runs out by itself."""
        try:
            await self._firestore.rollback(transaction, timeout=timeout)
        except CrossfadeError:
            return

    # --- the outbox ---------------------------------------------------------------------------

    async def entries(self, *, timeout: float, transaction: bytes | None = None) -> list[Entry]:
        """The oldest commits whose pending rows are still to be made; at most ENTRIES."""
        query = Query(
            collection=INTENTS,
            where=FieldFilter(("outbox",), Op.EQUAL, value=self._mark),
            limit=ENTRIES if transaction is None else 1,
        )
        found = await self._firestore.find(query, timeout=timeout, transaction=transaction)
        return [
            Entry(
                document.path.partition("/")[2],
                tuple(str(path) for path in _list(document.fields.get("paths"))),
                _int(document.fields.get("epoch")),
            )
            for document in found
        ]

    async def clear(self, entries: Sequence[Entry], *, timeout: float) -> None:
        """After their pending rows are durable. What another has cleared stays cleared."""
        fields: Fields = {"outbox": False, EXPIRY: self._firestore.expiry()}
        writes = [
            Write(f"{INTENTS}/{entry.id}", fields, mask=(("outbox",), (EXPIRY,)), exists=True)
            for entry in entries
        ]
        await self._firestore.commit(writes, timeout=timeout)

    async def reopen(self, *, timeout: float) -> ControlDocument | None:
        """Opens the gate if the outbox is empty, both seen by one transaction. None: it is not,
        or somebody writes to it now."""
        transaction, found = await self.begin(timeout=timeout)
        if found.gate_open:
            await self.give_up(transaction, timeout=timeout)
            return found
        if await self.entries(timeout=timeout, transaction=transaction):
            await self.give_up(transaction, timeout=timeout)
            return None
        after = replace(found, gate=found.gate + 1)
        try:
            outcome = await self._firestore.commit(
                [self._write(found, after)], timeout=timeout, transaction=transaction
            )
        except (Aborted, FailedPrecondition):
            return None
        return replace(after, update_time=outcome.writes[0].update_time or 0)


def other_groups(ours: str, theirs: str) -> str:
    """Why a sidecar cannot work on a control state of other groups."""
    return (
        f"the groups of the settings are not those of the migration, where each has its own "
        f"stage: the settings name {shown(ours)}; the control state is of {shown(theirs)} "
        f"(docs/groups.md says how they are changed)"
    )


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
