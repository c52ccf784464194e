"""The reverse put: PostgreSQL is the authority, Firestore the mirror, one document, some workers.

The application's commit writes row and pending row in one transaction. A worker claims the rows,
writes down in PostgreSQL what it is about to send, under an intent of its own, sends it, and
remembers what Firestore answered. Whoever finds an attempt that nobody has settled revokes its
intent and looks into Firestore. Claims and intents are numbered; an update_time of 0 means that
the document is missing. A worker may stand still anywhere: its lease runs out, another claims.
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


class Pending(NamedTuple):
    """A pending row, by the version that its commit wrote. `claim` 0: nobody's."""

    version: int
    claim: int = 0


class Attempt(NamedTuple):
    """`crossfade.attempts`: what a commit with this intent would leave in Firestore."""

    intent: int
    content: Content


class Commit(NamedTuple):
    """In flight to Firestore."""

    intent: int
    content: Content
    precondition: int | None


class Worker(NamedTuple):
    """`former`: attempts that it found, and has to revoke (`revokes`) before it writes down its
    own. `look`: Firestore refused a precondition, so it is looked into whatever was found."""

    at: Literal["idle", "claimed", "look", "send", "sent", "refused", "applied"] = "idle"
    claim: int = 0
    intent: int = 0
    row: Row | None = None
    former: frozenset[Attempt] = frozenset()
    revokes: frozenset[int] = frozenset()
    resolved: frozenset[int] = frozenset()
    look: bool = False
    update_time: int = 0


class State(NamedTuple):
    row: Row
    firestore: Document
    clock: int
    operation: int
    pending: frozenset[Pending]
    attempts: frozenset[Attempt]
    claims: int
    intents: int
    revoked: frozenset[int]
    in_flight: frozenset[Commit]
    workers: tuple[Worker, ...]
    alarm: Content | Literal[False]
    crashes: int
    foreign: int

    def worker(self, number: int, worker: Worker) -> "State":
        workers = (*self.workers[:number], worker, *self.workers[number + 1 :])
        return self._replace(workers=workers)

    def own(self, worker: Worker) -> frozenset[Pending]:
        """The rows that its claim still holds."""
        return frozenset(row for row in self.pending if row.claim == worker.claim)


@dataclass(frozen=True)
class Reverse:
    """How much may happen, and which rules hold."""

    operations: tuple[Literal["set", "delete"], ...]
    rules: ReverseRules = field(default_factory=ReverseRules)
    exists: bool = True
    workers: int = 2
    crashes: int = 1
    """How often a worker crashes, gets no answer, or is overtaken while it lives."""
    foreign: int = 0
    """How often somebody writes to Firestore, around the sidecar."""
    claims: int = 5
    intents: int = 6

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
            intents=0,
            revoked=frozenset(),
            in_flight=frozenset(),
            workers=(Worker(),) * self.workers,
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
        if state.claims >= self.claims or state.intents >= self.intents:
            return None  # a bound of the model, not of the protocol
        if state.alarm is not False:
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
        if state.attempts:
            return f"unsettled: {len(state.attempts)} attempts that nobody forgets"
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
                pending=s.pending | {Pending(version)},
                operation=s.operation + 1,
            ),
        )

    # --- a worker -------------------------------------------------------------------------------

    def _work(self, s: State, j: int) -> Iterator[Step[State]]:
        worker, who = s.workers[j], f"R{j + 1}"
        match worker.at:
            case "idle":
                yield from self._claim(s, j)
            case "claimed" if worker.revokes:
                yield self._revoke(s, j, worker)
            case "claimed":
                if s.intents < self.intents:
                    yield self._prepare(s, j, worker)
            case "look":
                yield self._look(s, j, worker)
            case "send":
                yield self._send(s, j, worker)
            case "refused":
                again = Worker("claimed", worker.claim, resolved=worker.resolved, look=True)
                mine = Attempt(worker.intent, worker.row.content if worker.row else None)
                yield Step(
                    f"{who} forgets the attempt that was refused",
                    s._replace(attempts=s.attempts - {mine}).worker(j, again),
                )
            case "applied":
                yield self._settle(s, j, worker)
        if worker.at != "idle" and s.crashes:
            yield Step(
                f"{who} crashes, or gets no answer; what it sent stays in flight",
                s.worker(j, Worker())._replace(crashes=s.crashes - 1),
            )

    def _claim(self, s: State, j: int) -> Iterator[Step[State]]:
        """Rows that nobody has, or whose claimant is gone; or lives, and is overtaken."""
        if not s.pending or s.claims >= self.claims:
            return
        held = {worker.claim for worker in s.workers if worker.at != "idle"}
        overtakes = any(row.claim in held for row in s.pending)
        if overtakes and not s.crashes:
            return
        claim = s.claims + 1
        yield Step(
            f"R{j + 1} {'takes over' if overtakes else 'claims'} the rows (claim {claim})",
            s._replace(
                claims=claim,
                pending=frozenset(row._replace(claim=claim) for row in s.pending),
                crashes=s.crashes - overtakes,
            ).worker(j, Worker("claimed", claim)),
        )

    def _prepare(self, s: State, j: int, worker: Worker) -> Step[State]:
        """One transaction, while the rows are its own: reads the document and what was attempted;
        writes down its own attempt, unless there are former ones to be revoked first."""
        who = f"R{j + 1}"
        if self.rules.still_claimant and not s.own(worker):
            return Step(f"{who} finds its claim lost", s.worker(j, Worker()))
        former = s.attempts
        unresolved = frozenset(attempt.intent for attempt in former) - worker.resolved
        if unresolved and self.rules.revoke_former:
            found = worker._replace(revokes=unresolved)
            return Step(f"{who} finds attempts that nobody has settled", s.worker(j, found))
        intent = s.intents + 1
        at: Literal["look", "send"] = "look" if former or worker.look else "send"
        prepared = worker._replace(at=at, intent=intent, row=s.row, former=former)
        mine = {Attempt(intent, s.row.content)} if self.rules.remember_attempt else set()
        return Step(
            f"{who} reads {s.row.content} (version {s.row.version}), and writes it down as "
            f"attempt {intent}",
            s._replace(attempts=s.attempts | mine, intents=intent).worker(j, prepared),
        )

    def _revoke(self, s: State, j: int, worker: Worker) -> Step[State]:
        """One at a time. One that was applied stays so; the look finds it."""
        intent = min(worker.revokes)
        after = worker._replace(
            revokes=worker.revokes - {intent}, resolved=worker.resolved | {intent}
        )
        return Step(
            f"R{j + 1} revokes attempt {intent}",
            s._replace(revoked=s.revoked | {intent}).worker(j, after),
        )

    def _look(self, s: State, j: int, worker: Worker) -> Step[State]:
        """What did former attempts leave in Firestore, or who refused this one?"""
        who = f"R{j + 1}"
        assert worker.row
        content, time = s.firestore
        ours = {worker.row.content, *(attempt.content for attempt in worker.former)}
        if time == worker.row.peer_time or content in ours:
            known = worker.row._replace(peer_time=time)
            return Step(
                f"{who} looks: {content} of time {time} is ours",
                s.worker(j, worker._replace(at="send", row=known)),
            )
        own = s.own(worker) if self.rules.still_claimant else s.pending
        if not own:
            return Step(
                f"{who} finds {content}, and its claim lost: that is not for it to judge",
                s.worker(j, Worker()),
            )
        return Step(
            f"{who} finds {content}, which nobody here attempted: alarm, nothing is overwritten",
            s.worker(j, Worker())._replace(alarm=content, pending=s.pending - own),
        )

    def _send(self, s: State, j: int, worker: Worker) -> Step[State]:
        who = f"R{j + 1}"
        assert worker.row
        if worker.row.content is None and not worker.row.peer_time:
            done = worker._replace(at="applied", update_time=0)
            return Step(f"{who} has nothing to send: Firestore holds nothing", s.worker(j, done))
        precondition = worker.row.peer_time if self.rules.precondition else None
        commit = Commit(worker.intent, worker.row.content, precondition)
        return Step(
            f"{who} sends {commit.content} (attempt {commit.intent}) under the precondition "
            f"{precondition}",
            s._replace(in_flight=s.in_flight | {commit}).worker(j, worker._replace(at="sent")),
        )

    def _settle(self, s: State, j: int, worker: Worker) -> Step[State]:
        """One transaction, while the rows are its own."""
        own = s.own(worker)
        if self.rules.still_claimant and not own:
            return Step(
                f"R{j + 1} finds its claim lost and remembers nothing", s.worker(j, Worker())
            )
        assert worker.row
        version, time = worker.row.version, worker.update_time
        gone = own if self.rules.own_rows_only else s.pending
        settled = {worker.intent, *(attempt.intent for attempt in worker.former)}
        return Step(
            f"R{j + 1} remembers the peer ({version}, {time}), deletes its rows and the attempts",
            s._replace(
                row=s.row._replace(peer_version=version, peer_time=time),
                pending=s.pending - gone,
                attempts=frozenset(a for a in s.attempts if a.intent not in settled),
            ).worker(j, Worker()),
        )

    # --- Firestore ------------------------------------------------------------------------------

    def _deliver(self, s: State, commit: Commit) -> Step[State]:
        s = s._replace(in_flight=s.in_flight - {commit})
        waiting = next(
            (j for j, w in enumerate(s.workers) if w.at == "sent" and w.intent == commit.intent),
            None,
        )
        if commit.intent in s.revoked:
            if waiting is not None:
                s = s.worker(waiting, Worker())
            return Step(f"Firestore refuses attempt {commit.intent}: it was revoked", s)
        if commit.precondition not in (None, s.firestore.update_time):
            if waiting is not None:
                s = s.worker(waiting, s.workers[waiting]._replace(at="refused"))
            return Step(f"Firestore refuses attempt {commit.intent}: it holds another time", s)
        if commit.content != s.firestore.content:  # a no-op keeps its update_time
            clock = s.clock + 1
            time = 0 if commit.content is None else clock
            s = s._replace(firestore=Document(commit.content, time), clock=clock)
        if waiting is not None:
            applied = s.workers[waiting]._replace(at="applied", update_time=s.firestore.update_time)
            s = s.worker(waiting, applied)
        return Step(f"Firestore applies {commit.content} of attempt {commit.intent}", s)
