"""The reverse put: PostgreSQL is the authority, Firestore the mirror, one document, two workers.

The application's commit writes row and pending row in one transaction. Claims are numbered;
a claim's number is its intent. An update_time of 0 means that the document is missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tests.model.engine import Step
from tests.model.rules import ReverseRules

Content = str | None


class Row(NamedTuple):
    """What PostgreSQL holds, and the peer: which update_time Firestore had for which version."""

    content: Content
    version: int
    peer_version: int
    peer_time: int


class Document(NamedTuple):
    content: Content
    update_time: int


class Commit(NamedTuple):
    claim: int
    content: Content
    precondition: int | None


class Worker(NamedTuple):
    at: Literal["idle", "claimed", "look", "send", "sent", "refused", "applied"] = "idle"
    claim: int = 0
    rows: frozenset[int] = frozenset()
    row: Row | None = None
    update_time: int = 0


class State(NamedTuple):
    row: Row
    firestore: Document
    clock: int
    operation: int
    pending: frozenset[int]
    """By the version that each was written with."""
    attempts: frozenset[Content]
    claims: int
    revoked: frozenset[int]
    in_flight: frozenset[Commit]
    workers: tuple[Worker, ...]
    lock: int | None
    alarm: Content | Literal[False]
    crashes: int
    foreign: int

    def worker(self, number: int, worker: Worker) -> "State":
        workers = (*self.workers[:number], worker, *self.workers[number + 1 :])
        return self._replace(workers=workers)

    def leave(self, number: int) -> "State":
        """Whoever holds the advisory lock lets go of it."""
        return self.worker(number, Worker())._replace(
            lock=None if self.lock == number else self.lock
        )


@dataclass(frozen=True)
class Reverse:
    """How much may happen, and which rules hold."""

    operations: tuple[Literal["set", "delete"], ...]
    rules: ReverseRules = field(default_factory=ReverseRules)
    exists: bool = True
    workers: int = 2
    crashes: int = 1
    advisory_lock: bool = False
    """Held from the claim to the end by the session; the protocol does without."""
    foreign: int = 0
    """How often somebody writes to Firestore, around the sidecar."""
    claims: int = 6

    def initial(self) -> State:
        content, time = ("v0", 1) if self.exists else (None, 0)
        return State(
            row=Row(content, 1, 1, time),
            firestore=Document(content, time),
            clock=1,
            operation=0,
            pending=frozenset(),
            attempts=frozenset(),
            claims=0,
            revoked=frozenset(),
            in_flight=frozenset(),
            workers=(Worker(),) * self.workers,
            lock=None,
            alarm=False,
            crashes=self.crashes,
            foreign=self.foreign,
        )

    def steps(self, state: State) -> Iterator[Step[State]]:
        yield from self._application(state)
        for j in range(len(state.workers)):
            yield from self._work(state, j)
        for commit in state.in_flight:
            yield self._deliver(state, commit)
        if state.foreign:
            clock = state.clock + 1
            yield Step(
                "somebody writes to Firestore, around the sidecar",
                state._replace(
                    firestore=Document("foreign", clock), clock=clock, foreign=state.foreign - 1
                ),
            )

    def wrong(self, state: State) -> str | None:
        if state.alarm is not False and not self.foreign:
            return f"false alarm: nobody went around the sidecar, Firestore holds {state.alarm}"
        return None

    def at_rest(self, state: State) -> str | None:
        if state.alarm is not False or state.claims >= self.claims:
            return None
        content = state.firestore.content
        if self.foreign:
            return None if content == "foreign" else f"overwritten: foreign content by {content}"
        if state.pending:
            return f"unsettled: {len(state.pending)} pending rows that nobody settles"
        if content is not None and state.row.content is None:
            return f"resurrected: Firestore holds {content}, deleted in PostgreSQL"
        if content != state.row.content:
            return f"lost: Firestore holds {content}, PostgreSQL {state.row.content}"
        if state.firestore.update_time != state.row.peer_time:
            return f"wrong peer: {state.row.peer_time}, Firestore {state.firestore.update_time}"
        return None

    def _application(self, s: State) -> Iterator[Step[State]]:
        if s.operation == len(self.operations):
            return
        version = s.row.version + 1
        kind = self.operations[s.operation]
        content = None if kind == "delete" else f"v{s.operation + 1}"
        yield Step(
            f"PostgreSQL commits {content} (version {version}) with its pending row",
            s._replace(
                row=s.row._replace(content=content, version=version),
                pending=s.pending | {version},
                operation=s.operation + 1,
            ),
        )

    def _work(self, s: State, j: int) -> Iterator[Step[State]]:
        worker = s.workers[j]
        who = f"R{j + 1}"
        match worker.at:
            case "idle":
                free = s.lock is None or not self.advisory_lock
                if s.pending and s.claims < self.claims and free:
                    yield self._claim(s, j)
            case "claimed":
                attempts = (
                    s.attempts | {s.row.content} if self.rules.remember_attempt else s.attempts
                )
                taken_over = worker.claim > 1 and self.rules.fence_per_claim
                read = worker._replace(
                    at="look" if taken_over else "send", row=s.row, rows=s.pending
                )
                yield Step(
                    f"{who} reads {s.row.content} (version {s.row.version}), remembers the attempt",
                    s._replace(attempts=attempts).worker(j, read),
                )
            case "look":
                yield self._look(s, j, worker)
            case "send":
                assert worker.row
                precondition = worker.row.peer_time if self.rules.precondition else None
                commit = Commit(worker.claim, worker.row.content, precondition)
                yield Step(
                    f"{who} sends {commit.content} under the precondition {precondition}",
                    s._replace(in_flight=s.in_flight | {commit}).worker(
                        j, worker._replace(at="sent")
                    ),
                )
            case "refused":
                yield self._look(s, j, worker)
            case "applied":
                yield self._remember(s, j, worker)
        if worker.at != "idle" and s.crashes:
            yield Step(
                f"{who} crashes; what it sent stays in flight",
                s.leave(j)._replace(crashes=s.crashes - 1),
            )

    def _claim(self, s: State, j: int) -> Step[State]:
        """Steps 1 and 2. Revoking one that has applied changes nothing; step 4 finds it."""
        claim = s.claims + 1
        earlier = frozenset(range(1, claim)) if self.rules.fence_per_claim else frozenset()
        revokes = " and revokes the claims before" if earlier else ""
        return Step(
            f"R{j + 1} claims the rows (claim {claim}){revokes}",
            s._replace(
                claims=claim,
                revoked=s.revoked | earlier,
                lock=j if self.advisory_lock else None,
            ).worker(j, Worker("claimed", claim)),
        )

    def _look(self, s: State, j: int, worker: Worker) -> Step[State]:
        """Step 4: what did the claim before leave in Firestore, or who refused this one?"""
        who = f"R{j + 1}"
        if self._lost(s, worker):
            return Step(f"{who} finds its claim lost", s.leave(j))
        assert worker.row
        content, time = s.firestore
        if worker.at == "look" and time == worker.row.peer_time:
            return Step(f"{who} looks: the peer is as remembered", _send(s, j, worker, time))
        if content == worker.row.content or content in s.attempts:
            return Step(
                f"{who} finds {content}, which was attempted: its update_time {time} is adopted",
                _send(s, j, worker, time),
            )
        return Step(
            f"{who} finds {content}, which nobody here attempted: alarm, nothing is overwritten",
            s.leave(j)._replace(alarm=content, pending=s.pending - worker.rows),
        )

    def _lost(self, s: State, worker: Worker) -> bool:
        return self.rules.still_claimant and worker.claim in s.revoked

    def _remember(self, s: State, j: int, worker: Worker) -> Step[State]:
        """Step 6."""
        if self._lost(s, worker):
            return Step(f"R{j + 1} finds its claim lost and remembers nothing", s.leave(j))
        assert worker.row
        version, time = worker.row.version, worker.update_time
        gone = worker.rows if self.rules.rows_seen_only else s.pending
        return Step(
            f"R{j + 1} remembers the peer ({version}, {time}) and deletes the rows it has seen",
            s.leave(j)._replace(
                row=s.row._replace(peer_version=version, peer_time=time),
                pending=s.pending - gone,
                attempts=frozenset(),
            ),
        )

    def _deliver(self, s: State, commit: Commit) -> Step[State]:
        s = s._replace(in_flight=s.in_flight - {commit})
        waiting = next(
            (j for j, w in enumerate(s.workers) if w.at == "sent" and w.claim == commit.claim), None
        )
        revoked = commit.claim in s.revoked and self.rules.fence_per_claim
        if revoked or commit.precondition not in (None, s.firestore.update_time):
            if waiting is not None:
                s = s.worker(waiting, s.workers[waiting]._replace(at="refused"))
            return Step(f"Firestore refuses {commit.content} of claim {commit.claim}", s)
        if commit.content != s.firestore.content:  # a no-op keeps its update_time
            clock = s.clock + 1
            time = 0 if commit.content is None else clock
            s = s._replace(firestore=Document(commit.content, time), clock=clock)
        if waiting is not None:
            applied = s.workers[waiting]._replace(at="applied", update_time=s.firestore.update_time)
            s = s.worker(waiting, applied)
        return Step(f"Firestore applies {commit.content} of claim {commit.claim}", s)


def _send(s: State, j: int, worker: Worker, peer_time: int) -> State:
    assert worker.row
    row = worker.row._replace(peer_time=peer_time)
    return s.worker(j, worker._replace(at="send", row=row))
