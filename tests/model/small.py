"""Three small models: a request_id sent again, snapshots of the Firestore mirror, tombstones."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tests.model.engine import Step
from tests.model.rules import RequestRules, SnapshotRules, TombstoneRules


class RequestState(NamedTuple):
    applied: int
    """The value of the counter, in whichever store is the authority."""
    in_firestore: bool
    in_postgresql: bool
    """The request_id is recorded there."""
    pending: bool
    in_flight: int
    postgresql_decides: bool
    tries: int
    waiting: bool
    told: bool


@dataclass(frozen=True)
class Requests:
    """A caller increments a counter once, and sends it again while it does not know the outcome."""

    rules: RequestRules = field(default_factory=RequestRules)
    change_of_authority: bool = True
    tries: int = 3

    def initial(self) -> RequestState:
        return RequestState(
            applied=0,
            in_firestore=False,
            in_postgresql=False,
            pending=False,
            in_flight=0,
            postgresql_decides=False,
            tries=0,
            waiting=False,
            told=False,
        )

    def wrong(self, state: RequestState) -> str | None:
        return "doubled: the increment was applied twice" if state.applied > 1 else None

    def at_rest(self, state: RequestState) -> str | None:
        if state.told and not state.applied:
            return "lost: the caller was told of an increment that was not applied"
        return None

    def steps(self, s: RequestState) -> Iterator[Step[RequestState]]:
        if not s.told and not s.waiting and s.tries < self.tries:
            yield self._send(s)
        if s.in_flight:
            yield from self._deliver(s._replace(in_flight=s.in_flight - 1))
        if s.waiting:
            yield Step("no answer in time: the caller is told 'unknown'", s._replace(waiting=False))
        if s.pending and not s.in_flight and not s.waiting:
            known = s.in_postgresql
            if self.rules.in_the_commit and self.rules.mirrored:
                known = known or s.in_firestore
            if not self.rules.in_the_commit:
                known = s.applied > 0
            yield Step(
                "a recopy settles the pending row, and the record with it",
                s._replace(pending=False, in_postgresql=known),
            )
        if self.change_of_authority and not s.postgresql_decides and not s.pending:
            yield Step("PostgreSQL becomes the authority", s._replace(postgresql_decides=True))

    def _send(self, s: RequestState) -> Step[RequestState]:
        looks_in_postgresql = s.postgresql_decides or not self.rules.in_the_commit
        if looks_in_postgresql and s.in_postgresql:
            return Step(
                "the caller sends it; PostgreSQL knows it: first result", s._replace(told=True)
            )
        s = s._replace(tries=s.tries + 1)
        if s.postgresql_decides:
            return Step(
                "the caller sends it; PostgreSQL applies and records it",
                s._replace(applied=s.applied + 1, in_postgresql=True, told=True),
            )
        return Step(
            "the caller sends it; pending row, then the commit to Firestore",
            s._replace(in_flight=s.in_flight + 1, waiting=True, pending=True),
        )

    def _deliver(self, s: RequestState) -> Iterator[Step[RequestState]]:
        if self.rules.in_the_commit and s.in_firestore:
            yield Step(
                "Firestore answers ALREADY_EXISTS: first result",
                s._replace(waiting=False, told=True),
            )
            return
        s = s._replace(applied=s.applied + 1, in_firestore=self.rules.in_the_commit)
        yield Step("Firestore applies it, the caller is told", s._replace(waiting=False, told=True))
        yield Step(
            "Firestore applies it, the sidecar crashes: the caller is told 'unknown'",
            s._replace(waiting=False),
        )


Pair = tuple[int, int]


class SnapshotState(NamedTuple):
    postgresql: Pair
    firestore: Pair
    history: tuple[Pair, ...]
    acknowledged: int
    pending: frozenset[tuple[int, int]]
    """(document, the value it was written with)."""
    commits: int
    at: Literal["idle", "checked", "looked", "read", "answered"]
    seen: Pair
    sequence: int


@dataclass(frozen=True)
class Snapshots:
    """PostgreSQL is the authority; one read goes to Firestore."""

    writes: tuple[tuple[int, ...], ...]
    """The documents of each commit."""
    docs: tuple[int, ...] = (0,)
    rules: SnapshotRules = field(default_factory=SnapshotRules)
    check_again: bool = False
    """After the read: nothing pending still, and no commit meanwhile."""

    def initial(self) -> SnapshotState:
        return SnapshotState((0, 0), (0, 0), ((0, 0),), 0, frozenset(), 0, "idle", (0, 0), 0)

    def wrong(self, state: SnapshotState) -> str | None:
        if state.at != "answered" or any(self._same(h, state.seen) for h in self._since(state)):
            return None
        if any(self._same(earlier, state.seen) for earlier in state.history):
            return f"stale read: {state.seen}, and something newer was acknowledged before it"
        return f"torn read: {state.seen} never were together"

    def at_rest(self, state: SnapshotState) -> str | None:
        return None

    def steps(self, s: SnapshotState) -> Iterator[Step[SnapshotState]]:
        if s.commits < len(self.writes):
            docs, value = self.writes[s.commits], s.commits + 1
            now = _with(s.postgresql, docs, value)
            yield Step(
                f"PostgreSQL commits {value} to documents {docs}, acknowledged, pending",
                s._replace(
                    postgresql=now,
                    history=(*s.history, now),
                    pending=s.pending | {(doc, value) for doc in docs},
                    commits=value,
                ),
            )
        for doc in {doc for doc, _ in s.pending}:
            yield Step(
                f"the reverse put of document {doc}",
                s._replace(
                    firestore=_with(s.firestore, (doc,), s.postgresql[doc]),
                    pending=frozenset(row for row in s.pending if row[0] != doc),
                ),
            )
        if len(self.docs) == 1 or not self.rules.single_documents:
            yield from self._read(s)
        elif s.at == "idle":
            yield Step("a query is answered by PostgreSQL", s._replace(at="looked"))

    def _read(self, s: SnapshotState) -> Iterator[Step[SnapshotState]]:
        clean = not any(doc in self.docs for doc, _ in s.pending)
        seen = s.firestore
        match s.at:
            case "idle":
                s = s._replace(acknowledged=len(s.history) - 1, sequence=s.commits)
                if not self.rules.check_first:
                    yield Step(f"the reader finds {seen}", s._replace(at="read", seen=seen))
                elif clean:
                    yield Step("the reader finds nothing pending", s._replace(at="checked"))
            case "checked" if self.check_again:
                yield Step(f"the reader finds {seen}", s._replace(at="read", seen=seen))
            case "checked":
                yield Step(
                    f"the reader finds {seen} and answers it", s._replace(at="answered", seen=seen)
                )
            case "read" if clean and not (self.check_again and s.sequence != s.commits):
                yield Step(
                    "the reader finds nothing pending and answers it", s._replace(at="answered")
                )
            case "read":
                yield Step("the reader asks PostgreSQL", s._replace(at="looked"))

    def _since(self, s: SnapshotState) -> tuple[Pair, ...]:
        return s.history[s.acknowledged :]

    def _same(self, one: Pair, other: Pair) -> bool:
        return all(one[doc] == other[doc] for doc in self.docs)


def _with(pair: Pair, docs: tuple[int, ...], value: int) -> Pair:
    return (value if 0 in docs else pair[0], value if 1 in docs else pair[1])


class TombstoneState(NamedTuple):
    row: int | None
    tombstone: int | None
    put: Literal["not begun", "guarded", "done"]
    delete: Literal["not begun", "open", "done"]


@dataclass(frozen=True)
class Tombstones:
    """A late put of version 1 beside a delete of version 2, in transactions of PostgreSQL whose
    statements see what was committed before them. Rows and tombstones are two tables."""

    rules: TombstoneRules = field(default_factory=TombstoneRules)

    def initial(self) -> TombstoneState:
        return TombstoneState(None, None, "not begun", "not begun")

    def wrong(self, state: TombstoneState) -> str | None:
        return None

    def at_rest(self, state: TombstoneState) -> str | None:
        if state.row and state.tombstone:
            return f"resurrected: version {state.row} beside the tombstone {state.tombstone}"
        return None

    def steps(self, s: TombstoneState) -> Iterator[Step[TombstoneState]]:
        locked = self.rules.path_lock
        if s.put == "not begun" and not (locked and s.delete == "open"):
            if s.tombstone is None:
                yield Step("the put sees neither row nor tombstone", s._replace(put="guarded"))
            else:
                yield Step("the put sees the tombstone: refused", s._replace(put="done"))
        if s.put == "guarded":
            yield Step("the put inserts its row and commits", s._replace(row=1, put="done"))
        if s.delete == "not begun" and not (locked and s.put == "guarded"):
            yield Step(
                "the delete deletes the row it sees, its tombstone is not committed",
                s._replace(row=None, delete="open"),
            )
        if s.delete == "open":
            yield Step("the delete commits", s._replace(tombstone=2, delete="done"))
