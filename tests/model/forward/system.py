"""Firestore as the authority, whole: who may do something next, and what must never be."""

from collections.abc import Iterator

from tests.model.engine import Step
from tests.model.forward import read, recopy, write
from tests.model.forward.state import (
    EDITED,
    Forward,
    Image,
    Pending,
    Reader,
    Row,
    State,
    Worker,
    Writer,
)


class ForwardSystem:
    def __init__(self, model: Forward) -> None:
        self.model = model

    def initial(self) -> State:
        m = self.model
        same = tuple(Row(value, 1) if value is not None else None for value in m.authority)
        return State(
            firestore=tuple(Image(doc, value, 1) for doc, value in enumerate(m.authority)),
            clock=1,
            history=(m.authority,),
            acknowledged=0,
            mirror=same if m.mirror is None else m.mirror,
            pending=frozenset(),
            outbox=frozenset(),
            in_flight=frozenset(),
            revoked=frozenset(),
            gate=0,
            lease=True,
            writers=(Writer(),) * len(m.operations),
            workers=(Worker(),) * m.workers,
            reader=Reader(),
            page=None,
            copied="no" if m.backfill else "all",
            cut_off=frozenset(),
            crashes=m.crashes,
            cuts=m.cuts,
            reads=m.reads,
            prunes=m.prunes,
            edits=m.edits,
        )

    def steps(self, state: State) -> Iterator[Step[State]]:
        m = self.model
        yield from write.steps(m, state)
        yield from write.deliveries(m, state)
        yield from recopy.recopy(m, state)
        yield from recopy.drain(m, state)
        yield from recopy.backfill(m, state)
        yield from recopy.prune(m, state)
        yield from read.steps(m, state)
        yield from read.lease(m, state)
        yield from _cuts(state)
        yield from _edits(state)

    def wrong(self, state: State) -> str | None:
        for doc in range(len(state.mirror)):
            value = state.held(doc)
            old = self.model.mirror and self.model.mirror[doc]
            if value in (None, EDITED) or (old and value == old.value):
                continue
            if all(value != held[doc] for held in state.history):
                return f"mixed: the mirror holds {value}, which Firestore never held"
        return None

    def at_rest(self, state: State) -> str | None:
        if state.pending:
            return f"unsettled: {len(state.pending)} pending rows that nobody settles"
        for doc, image in enumerate(state.firestore):
            value = state.held(doc)
            if value is not None and image.value is None:
                return f"resurrected: the mirror holds {value}, deleted in Firestore"
            if value != image.value:
                return f"lost: the mirror holds {value}, Firestore {image.value}, nothing pending"
        return None


def _cuts(s: State) -> Iterator[Step[State]]:
    for i in range(len(s.writers)):
        if i in s.cut_off:
            yield Step(f"S{i + 1} reaches PostgreSQL again", s._replace(cut_off=s.cut_off - {i}))
        elif s.cuts and i != 1:
            yield Step(
                f"S{i + 1} loses PostgreSQL, the others keep it",
                s._replace(cut_off=s.cut_off | {i}, cuts=s.cuts - 1),
            )


def _edits(s: State) -> Iterator[Step[State]]:
    """Of the same version as before: the guard alone would refuse the repair for ever."""
    for doc, row in enumerate(s.mirror):
        if s.edits and row and row.value is not None:
            edited = Row(EDITED, row.time)
            yield Step(
                f"somebody edits document {doc} in the mirror; its verdict makes it pending",
                s._replace(
                    mirror=(*s.mirror[:doc], edited, *s.mirror[doc + 1 :]),
                    pending=s.pending | {Pending("verdict", doc)},
                    edits=s.edits - 1,
                ),
            )
