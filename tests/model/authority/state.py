"""Changes of authority, both ways, one document, two sidecars: what is remembered; bounds."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

from tests.model.rules import AuthorityRules

Content = str | None
Kind = Literal["set", "delete"]


class Authority(Enum):
    FIRESTORE = "Firestore"
    NONE = "none"
    POSTGRESQL = "PostgreSQL"

    # Members are one object each; the hash by name that Enum has costs a call per lookup.
    __hash__ = object.__hash__


FIRESTORE, NONE, POSTGRESQL = Authority


class Version(NamedTuple):
    epoch: int
    time: int


class Row(NamedTuple):
    """A row, or with no content a tombstone; with no version, not even that."""

    content: Content
    version: Version | None


class Document(NamedTuple):
    content: Content
    update_time: int


class ControlRow(NamedTuple):
    authority: Authority
    epoch: int


class ControlDocument(NamedTuple):
    open: bool
    epoch: int


class Barrier(NamedTuple):
    """A change under way: to which authority, and the step it takes next."""

    to: Authority
    step: int


class Commit(NamedTuple):
    """In flight to Firestore: a caller's writes, or a reverse put."""

    intent: str
    content: Content
    epoch: int
    kind: Literal["ordinary", "outbox", "reverse"]


class Sidecar(NamedTuple):
    """What it believes, and the caller's commit it works on."""

    believes: ControlRow
    lease: bool
    """Its stage lease has not run out: it may read Firestore as the authority."""
    at: Literal["idle", "insert", "commit", "send", "sent", "applied"] = "idle"
    number: int = 0
    intent: str = ""
    outbox: bool = False
    epoch: int = 0
    image: Document | None = None

    def next(self) -> "Sidecar":
        return Sidecar(self.believes, self.lease, "idle", self.number + 1)


class Worker(NamedTuple):
    """A recopy worker, in either direction."""

    at: Literal["idle", "read", "send", "sent", "applied"] = "idle"
    rows: frozenset[str] = frozenset()
    row: Row = Row(None, None)
    epoch: int = 0
    claim: str = ""


class State(NamedTuple):
    firestore: Document
    clock: int
    """Firestore's; PostgreSQL's is `skew` ahead of it."""
    row: Row
    history: tuple[Content, ...]
    acknowledged: int
    pending: frozenset[str]
    outbox: frozenset[str]
    control: ControlRow
    document: ControlDocument
    barrier: Barrier | None
    sidecars: tuple[Sidecar, ...]
    workers: tuple[Worker, ...]
    in_flight: frozenset[Commit]
    revoked: frozenset[str]
    claims: int
    cut_off: bool
    """The first sidecar has lost PostgreSQL."""
    changes: int
    aborts: int
    cuts: int
    crashes: int
    reads: int
    prunes: int

    def sidecar(self, number: int, sidecar: Sidecar) -> "State":
        sidecars = (*self.sidecars[:number], sidecar, *self.sidecars[number + 1 :])
        return self._replace(sidecars=sidecars)

    def worker(self, number: int, worker: Worker) -> "State":
        workers = (*self.workers[:number], worker, *self.workers[number + 1 :])
        return self._replace(workers=workers)

    def works(self, intent: str) -> bool:
        return any(car.intent == intent and car.at != "idle" for car in self.sidecars)

    def reaches_postgresql(self, number: int) -> bool:
        return number != 0 or not self.cut_off

    @property
    def forward(self) -> bool:
        """Firestore decides, or did until the barrier began: that is where recopies read."""
        if self.control.authority is NONE:
            return self.barrier is not None and self.barrier.to is POSTGRESQL
        return self.control.authority is FIRESTORE

    def stale(self, content: Content) -> str | None:
        if content in self.history[self.acknowledged :]:
            return None
        return f"stale read: {content}, and something newer was acknowledged before it"


@dataclass(frozen=True)
class Changes:
    """How much may happen, and which rules hold."""

    operations: tuple[tuple[Kind, ...], tuple[Kind, ...]]
    rules: AuthorityRules = field(default_factory=AuthorityRules)
    start: Authority = FIRESTORE
    changes: int = 1
    aborts: int = 0
    workers: int = 1
    crashes: int = 0
    cuts: int = 0
    at_will: bool = False
    """A sidecar may take the outbox though it reaches PostgreSQL, which is slow."""
    reads: int = 0
    prunes: int = 0
    skew: int = 0
    every_commit_checks_control: bool = False
    """More than the protocol asks for: ordinary commits check the control document, too."""
    reverse_in_steps: bool = False
    """The reverse put takes its steps one by one; else it is one step."""
    claims: int = 5

    def put(self, row: Row, content: Content, version: Version) -> Row:
        """The guard."""
        if row.version and not self._newer(version, row.version):
            return row
        return Row(content, version)

    def _newer(self, one: Version, other: Version) -> bool:
        return one > other if self.rules.version_has_epoch else one.time > other.time


def name(sidecar: int, number: int) -> str:
    return f"{'AB'[sidecar]}{number + 1}"
