"""The barriers, and the whole: who may do something next, and what must never be."""

from collections.abc import Iterator

from tests.model.authority import recopy, write
from tests.model.authority.state import (
    FIRESTORE,
    NONE,
    POSTGRESQL,
    Barrier,
    Changes,
    ControlDocument,
    ControlRow,
    Document,
    Row,
    Sidecar,
    State,
    Version,
    Worker,
)
from tests.model.engine import Step


class AuthoritySystem:
    def __init__(self, model: Changes) -> None:
        self.model = model

    def initial(self) -> State:
        m = self.model
        control = ControlRow(m.start, 0)
        firestore_decides = m.start is FIRESTORE
        return State(
            firestore=Document("v0", 1),
            clock=1,
            row=Row("v0", Version(0, 1)),
            history=("v0",),
            acknowledged=0,
            pending=frozenset(),
            outbox=frozenset(),
            control=control,
            document=ControlDocument(firestore_decides, 0),
            barrier=None,
            sidecars=(Sidecar(control, firestore_decides),) * 2,
            workers=(Worker(),) * m.workers,
            in_flight=frozenset(),
            revoked=frozenset(),
            claims=0,
            cut_off=False,
            changes=m.changes,
            aborts=m.aborts,
            cuts=m.cuts,
            crashes=m.crashes,
            reads=m.reads,
            prunes=m.prunes,
        )

    def steps(self, state: State) -> Iterator[Step[State]]:
        m = self.model
        yield from write.steps(m, state)
        for commit in state.in_flight:
            if commit.kind == "reverse":
                yield recopy.deliver(m, state, commit)
            else:
                yield write.deliver(m, state, commit)
        yield from recopy.steps(m, state)
        yield from recopy.drain(state)
        yield from recopy.prune(state)
        yield from _barrier(m, state)
        yield from _cuts(state)

    def wrong(self, state: State) -> str | None:
        return None

    def at_rest(self, state: State) -> str | None:
        s, m = state, self.model
        if s.claims >= m.claims:
            return None  # a bound of the model, not of the protocol
        if s.pending or s.outbox:
            return f"unsettled: {len(s.pending)} pending rows, {len(s.outbox)} outbox entries"
        if s.row.content != s.firestore.content:
            return f"lost: PostgreSQL holds {s.row.content}, Firestore {s.firestore.content}"
        if s.row.content != s.history[-1]:
            return f"lost: both hold {s.row.content}, and {s.history[-1]} was accepted last"
        return None


def _barrier(m: Changes, s: State) -> Iterator[Step[State]]:
    if s.barrier is None:
        if s.changes:
            to = POSTGRESQL if s.control.authority is FIRESTORE else FIRESTORE
            yield Step(
                f"barrier to {to.value}, 1: under the exclusive lock nobody decides",
                s._replace(
                    barrier=Barrier(to, 2),
                    control=s.control._replace(authority=NONE),
                    changes=s.changes - 1,
                ),
            )
    elif s.barrier.to is POSTGRESQL:
        yield from _to_postgresql(m, s, s.barrier.step)
    else:
        yield from _to_firestore(s, s.barrier.step)
    if s.barrier and s.control.authority is NONE and s.aborts:
        yield _abort(s, s.barrier)


def _to_postgresql(m: Changes, s: State, step: int) -> Iterator[Step[State]]:
    epoch = s.control.epoch + 1
    if step == 2:
        yield Step(
            "barrier to PostgreSQL, 2: the control document is closed",
            s._replace(document=ControlDocument(False, epoch), barrier=Barrier(POSTGRESQL, 3)),
        )
        return
    drained = not s.pending and (not s.outbox or not m.rules.outbox_drained)
    leases = m.rules.stage_lease and s.reads and any(car.lease for car in s.sidecars)
    if drained and not leases:
        yield Step(
            f"barrier to PostgreSQL, 5: nothing pending, no lease left: epoch {epoch}",
            s._replace(barrier=None, control=ControlRow(POSTGRESQL, epoch)),
            _differ(s),
        )


def _to_firestore(s: State, step: int) -> Iterator[Step[State]]:
    if step == 2 and not s.pending:
        epoch = s.control.epoch + 1
        yield Step(
            f"barrier to Firestore, 3: nothing pending: epoch {epoch}",
            s._replace(barrier=Barrier(FIRESTORE, 4), control=ControlRow(FIRESTORE, epoch)),
            _differ(s),
        )
    elif step == 4:
        yield Step(
            "barrier to Firestore, 4: the control document is open",
            s._replace(barrier=None, document=ControlDocument(True, s.control.epoch)),
        )


def _abort(s: State, barrier: Barrier) -> Step[State]:
    """The former authority opens again, in a new epoch."""
    epoch = s.control.epoch + 1
    if barrier.to is FIRESTORE:
        control = ControlRow(POSTGRESQL, epoch)
        after = s._replace(barrier=None, control=control, aborts=s.aborts - 1)
    else:
        control = ControlRow(FIRESTORE, epoch)
        after = s._replace(barrier=Barrier(FIRESTORE, 4), control=control, aborts=s.aborts - 1)
    return Step(f"the barrier to {barrier.to.value} is aborted: epoch {epoch}", after)


def _differ(s: State) -> str | None:
    if s.row.content == s.firestore.content:
        return None
    return f"lost at the change: PostgreSQL {s.row.content}, Firestore {s.firestore.content}"


def _cuts(s: State) -> Iterator[Step[State]]:
    if s.cut_off:
        yield Step("S1 reaches PostgreSQL again", s._replace(cut_off=False))
    elif s.cuts:
        yield Step(
            "S1 loses PostgreSQL, the other keeps it", s._replace(cut_off=True, cuts=s.cuts - 1)
        )
