"""Read, routed to the PostgreSQL mirror at S2 (step 4), and the stage lease that it needs."""

from collections.abc import Iterator

from tests.model.engine import Step
from tests.model.forward.state import Forward, Reader, State, Value

ASKED: Value = ("asked", "asked")
"""In place of what the mirror has not answered."""


def steps(m: Forward, s: State) -> Iterator[Step[State]]:
    match s.reader.at:
        case "idle":
            if s.reads:
                for docs in m.questions:
                    yield from _begin(m, s._replace(reads=s.reads - 1), docs)
        case "checked":
            values = _values(s, s.reader.docs)
            yield Step(
                f"S2 reads {values} and answers it",
                s._replace(reader=Reader()),
                _stale(s, s.reader.acknowledged, s.reader.docs, values),
            )
        case "read":
            if _clean(m, s, s.reader.docs):
                yield Step(
                    "S2 finds nothing pending and answers it",
                    s._replace(reader=Reader()),
                    _stale(s, s.reader.acknowledged, s.reader.docs, s.reader.values),
                )
            else:
                yield Step("S2 asks the authority instead", s._replace(reader=Reader()))
        case "mixed":
            values = tuple(
                s.firestore[doc].value if value == ASKED else value
                for doc, value in zip(s.reader.docs, s.reader.values, strict=True)
            )
            yield Step(
                f"S2 reads the rest in Firestore and answers {values}",
                s._replace(reader=Reader()),
                _stale(s, s.reader.acknowledged, s.reader.docs, values),
            )


def lease(m: Forward, s: State) -> Iterator[Step[State]]:
    if not m.gated:
        return
    if s.lease:
        yield Step("S2's stage lease runs out", s._replace(lease=False))
    elif s.gate % 2 == 0 and s.reads:
        yield Step("S2 renews its stage lease: the gate is open", s._replace(lease=True))


def _begin(m: Forward, s: State, docs: tuple[int, ...]) -> Iterator[Step[State]]:
    values = _values(s, docs)
    if not m.rules.check_before_read:
        reader = Reader("read", docs, values, s.acknowledged)
        yield Step(f"S2 reads documents {docs} in the mirror: {values}", s._replace(reader=reader))
    elif _clean(m, s, docs):
        if m.rules.one_statement:
            shown = _shown(s, s.acknowledged, docs, values)
            yield Step(
                f"S2 reads documents {docs} in the mirror, nothing pending: {values}",
                s if shown is None else s._replace(acknowledged=shown),
                _stale(s, s.acknowledged, docs, values),
            )
        else:
            reader = Reader("checked", docs, (), s.acknowledged)
            yield Step(f"S2 finds nothing pending for {docs}", s._replace(reader=reader))
    elif not m.rules.whole_call and any(_clean(m, s, (doc,)) for doc in docs):
        parts = tuple(s.held(doc) if _clean(m, s, (doc,)) else ASKED for doc in docs)
        reader = Reader("mixed", docs, parts, s.acknowledged)
        yield Step(
            f"S2 reads those of {docs} that are not pending in the mirror: {parts}",
            s._replace(reader=reader),
        )


def _clean(m: Forward, s: State, docs: tuple[int, ...]) -> bool:
    """Nothing pending, no wildcard row, and where there is a gate, a lease that saw it open."""
    if s.copied != "all" and m.rules.wildcard:
        return False
    if m.gated and not s.lease:
        return False
    return not s.has_pending(docs)


def _values(s: State, docs: tuple[int, ...]) -> tuple[Value, ...]:
    return tuple(s.held(doc) for doc in docs)


def _shown(s: State, since: int, docs: tuple[int, ...], values: tuple[Value, ...]) -> int | None:
    """The first state of the authority since then that looks so: read once, never undone."""
    for moment in range(since, len(s.history)):
        if tuple(s.history[moment][doc] for doc in docs) == values:
            return moment
    return None


def _stale(s: State, since: int, docs: tuple[int, ...], values: tuple[Value, ...]) -> str | None:
    if _shown(s, since, docs, values) is not None:
        return None
    if _shown(s, 0, docs, values) is not None:
        return f"stale read: {values}, and something newer was acknowledged before it"
    if len(docs) == 1:
        return f"false read: document {docs[0]} never was {values[0]}"
    return f"torn read: {values} of documents {docs} never were together"
