"""Firestore is the authority, PostgreSQL the mirror: what the model remembers, and its bounds."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from tests.model.rules import ForwardRules

Value = tuple[str, str] | None
"""A document of two fields, each holding the intent that wrote it last; None: it is missing."""

FIRST: Value = ("0", "0")
EDITED: Value = ("edited", "by hand")


class Op(NamedTuple):
    """One commit's writes: all of its documents get the same."""

    kind: Literal["set", "update", "delete"]
    docs: tuple[int, ...] = (0,)
    field: int = 0

    def after(self, old: Value, intent: str) -> Value:
        if self.kind == "set":
            return (intent, intent)
        if self.kind == "delete" or old is None:
            return None
        return (intent, old[1]) if self.field == 0 else (old[0], intent)


class Image(NamedTuple):
    """A document as Firestore held it: the update_time, or the read_time of a missing one."""

    doc: int
    value: Value
    time: int


class Row(NamedTuple):
    """A row of the mirror; with no value, a tombstone. One epoch: the time is the version."""

    value: Value
    time: int


class Pending(NamedTuple):
    intent: str
    doc: int
    claim: int = 0
    """The recopy worker that holds it, from 1; 0: nobody."""


class Commit(NamedTuple):
    """Sent to Firestore, neither applied nor refused yet."""

    intent: str
    gate: int | None = None
    """An outbox write: the generation under which the gate must still be closed."""


class Writer(NamedTuple):
    """The sidecar that serves one caller, and how far it is with the commit it works on."""

    at: Literal["idle", "gate", "send", "sent", "applied", "read"] = "idle"
    number: int = 0
    intent: str = ""
    gate: int | None = None
    time: int = 0
    images: tuple[Image, ...] = ()

    def next(self) -> "Writer":
        return Writer("idle", self.number + 1)


class Worker(NamedTuple):
    """A recopy worker; it takes one document at a time."""

    at: Literal["idle", "claimed", "revoked", "read"] = "idle"
    rows: frozenset[Pending] = frozenset()
    image: Image | None = None


class Reader(NamedTuple):
    """The read that takes more than one step, which none should."""

    at: Literal["idle", "checked", "read", "mixed"] = "idle"
    docs: tuple[int, ...] = ()
    values: tuple[Value, ...] = ()
    acknowledged: int = 0


class State(NamedTuple):
    firestore: tuple[Image, ...]
    clock: int
    history: tuple[tuple[Value, ...], ...]
    """Every state the authority had, oldest first."""
    acknowledged: int
    """The newest of them that somebody was told of: no later read may show an older one."""
    mirror: tuple[Row | None, ...]
    pending: frozenset[Pending]
    outbox: frozenset[str]
    in_flight: frozenset[Commit]
    revoked: frozenset[str]
    gate: int
    """Its generation; odd: closed."""
    lease: bool
    """The reading sidecar holds a stage lease that saw the gate open."""
    writers: tuple[Writer, ...]
    workers: tuple[Worker, ...]
    reader: Reader
    page: tuple[Image, ...] | None
    copied: Literal["no", "page", "all"]
    cut_off: frozenset[int]
    crashes: int
    cuts: int
    reads: int
    prunes: int
    edits: int

    def writer(self, number: int, writer: Writer) -> "State":
        writers = (*self.writers[:number], writer, *self.writers[number + 1 :])
        return self._replace(writers=writers)

    def worker(self, number: int, worker: Worker) -> "State":
        workers = (*self.workers[:number], worker, *self.workers[number + 1 :])
        return self._replace(workers=workers)

    def held(self, doc: int) -> Value:
        """What the mirror would answer."""
        row = self.mirror[doc]
        return row.value if row else None

    def read_firestore(self, doc: int) -> Image:
        image = self.firestore[doc]
        return image if image.value is not None else image._replace(time=self.clock)

    def has_pending(self, docs: tuple[int, ...]) -> bool:
        return any(row.doc in docs for row in self.pending)

    def works(self, intent: str) -> bool:
        """Its owner is alive. That it is quick is not said."""
        return any(w.intent == intent and w.at != "idle" for w in self.writers)


@dataclass(frozen=True)
class Forward:
    """How much may happen, and which rules hold. Callers write through sidecars S1, S2, ...; S2
    reads, and is never cut off."""

    operations: tuple[tuple[Op, ...], ...]
    rules: ForwardRules = field(default_factory=ForwardRules)
    authority: tuple[Value, ...] = (FIRST,)
    mirror: tuple[Row | None, ...] | None = None
    """None: the same as the authority."""
    workers: int = 1
    crashes: int = 1
    """How often a sidecar crashes, an answer does not come, or a lease runs out."""
    overtaken: bool = False
    """Owners and workers may live and yet be overtaken: their leases run out."""
    cuts: int = 0
    """How often a sidecar loses PostgreSQL, which the others still have."""
    at_will: bool = False
    """A sidecar may take the outbox though it reaches PostgreSQL, which is slow."""
    reads: int = 1
    query: bool = False
    """A read is one of all documents."""
    backfill: bool = False
    prunes: int = 0
    edits: int = 0
    """How often somebody changes a row of the mirror by hand; a verdict `wrong` follows at once."""
    fence: Literal["document", "horizon"] = "document"
    gates: int = 4

    @cached_property
    def gated(self) -> bool:
        return (self.cuts > 0 or self.at_will) and self.rules.gate

    @cached_property
    def intents(self) -> dict[str, Op]:
        return {
            name(writer, number): op
            for writer, operations in enumerate(self.operations)
            for number, op in enumerate(operations)
        }

    @cached_property
    def questions(self) -> tuple[tuple[int, ...], ...]:
        docs = range(len(self.authority))
        return (tuple(docs),) if self.query else tuple((doc,) for doc in docs)

    def put(self, s: State, image: Image, *, recopied: bool) -> State:
        """The guard: a direct put needs a greater version, a recopy one that is not smaller."""
        row = s.mirror[image.doc]
        at_least = recopied and self.rules.recopy_at_least
        if row and self.rules.guard and not _newer(image, row, at_least=at_least):
            return s
        keeps = image.value is not None or self.rules.tombstones
        new = Row(image.value, image.time) if keeps else None
        return s._replace(mirror=(*s.mirror[: image.doc], new, *s.mirror[image.doc + 1 :]))


def name(writer: int, number: int) -> str:
    return f"{'ABC'[writer]}{number + 1}"


def _newer(image: Image, row: Row, *, at_least: bool) -> bool:
    if image.time != row.time:
        return image.time > row.time
    if image.value is None or row.value is None:
        return image.value is not None  # a document beats a tombstone of the same version
    return at_least
