"""Write, Firestore is the authority: steps 2 to 5 of `docs/protocol.md`, and the outbox write."""

from collections.abc import Iterator

from tests.model.engine import Step
from tests.model.forward.state import Commit, Forward, Image, Pending, State, Writer, name


def steps(m: Forward, s: State) -> Iterator[Step[State]]:
    for i, writer in enumerate(s.writers):
        match writer.at:
            case "idle":
                if writer.number < len(m.operations[i]):
                    yield from _begin(m, s, i)
            case "gate":
                if not s.lease or not m.rules.wait_for_leases:
                    yield Step(
                        f"S{i + 1} has waited L: no stage lease is older than the closed gate",
                        s.writer(i, writer._replace(at="send")),
                    )
            case "send":
                sent = s._replace(in_flight=s.in_flight | {Commit(writer.intent, writer.gate)})
                yield Step(
                    f"S{i + 1} sends the Firestore commit of {writer.intent}",
                    sent.writer(i, writer._replace(at="sent")),
                )
            case "sent":
                yield from _unanswered(m, s, i)
            case "applied":
                yield from _settle(m, s, i)
            case "read":
                if i not in s.cut_off:
                    yield _put(m, s, i, writer.images, recopied=True)
        if writer.at != "idle" and s.crashes:
            yield Step(
                f"S{i + 1} crashes; what it sent stays in flight",
                s._replace(crashes=s.crashes - 1).writer(i, writer.next()),
            )


def deliveries(m: Forward, s: State) -> Iterator[Step[State]]:
    """Firestore decides what is in flight, in any order, whether or not somebody waits for it."""
    for commit in s.in_flight:
        s2 = s._replace(in_flight=s.in_flight - {commit})
        waiting = _waiting(s, commit.intent)
        op = m.intents[commit.intent]
        if commit.intent in s.revoked or not _gate_permits(m, s, commit):
            yield Step(f"Firestore refuses {commit.intent} (fence)", _skip(s2, waiting))
        elif op.kind == "update" and any(s.firestore[doc].value is None for doc in op.docs):
            if waiting is not None:
                s2 = s2._replace(pending=s2.pending - own_rows(m, s, commit.intent))
            yield Step(f"Firestore answers NOT_FOUND to {commit.intent}", _skip(s2, waiting))
        else:
            yield _apply(m, s2, commit, waiting)


def own_rows(m: Forward, s: State, intent: str) -> frozenset[Pending]:
    """Whoever holds them: taking them over from a claim is what makes that claim fail."""
    if m.rules.rows_per_intent:
        return frozenset(row for row in s.pending if row.intent == intent)
    return frozenset(row for row in s.pending if row.doc in m.intents[intent].docs)


def _begin(m: Forward, s: State, i: int) -> Iterator[Step[State]]:
    writer = s.writers[i]
    intent = name(i, writer.number)
    op = m.intents[intent]
    begun = writer._replace(intent=intent)
    if i not in s.cut_off:
        if m.rules.rows_per_intent:
            rows = frozenset(Pending(intent, doc) for doc in op.docs)
        else:
            rows = frozenset(Pending("any", doc) for doc in op.docs if not s.has_pending((doc,)))
        yield Step(
            f"S{i + 1} inserts the pending rows of {intent} ({op.kind})",
            s._replace(pending=s.pending | rows).writer(i, begun._replace(at="send")),
        )
    if i not in s.cut_off and not m.at_will:
        return
    why = "cannot reach PostgreSQL" if i in s.cut_off else "finds PostgreSQL slow"
    if not m.rules.gate:
        yield Step(
            f"S{i + 1} {why}: {intent} takes the outbox",
            s.writer(i, begun._replace(at="send", gate=0)),
        )
    else:
        closed = s._replace(gate=s.gate | 1)
        yield Step(
            f"S{i + 1} {why}: it closes the gate for {intent} ({op.kind})",
            closed.writer(i, begun._replace(at="gate", gate=closed.gate)),
        )


def _unanswered(m: Forward, s: State, i: int) -> Iterator[Step[State]]:
    """Step 3, no answer in time: revoke; if Firestore is silent then, too, it is unknown."""
    if not s.crashes:
        return
    writer = s.writers[i]
    gone = s._replace(crashes=s.crashes - 1).writer(i, writer.next())
    without_rows = gone._replace(pending=s.pending - own_rows(m, s, writer.intent))
    yield Step(
        f"S{i + 1} gets no answer in time and revokes {writer.intent}: it was not applied",
        without_rows._replace(revoked=s.revoked | {writer.intent}),
    )
    yield Step(
        f"S{i + 1} gets no answer in time: {writer.intent} is unknown",
        gone if m.rules.unknown_keeps_rows else without_rows,
    )


def _gate_permits(m: Forward, s: State, commit: Commit) -> bool:
    if commit.gate is None or not m.rules.gate:
        return True
    return s.gate == commit.gate if m.rules.gate_generation else s.gate % 2 == 1


def _waiting(s: State, intent: str) -> int | None:
    for i, writer in enumerate(s.writers):
        if writer.intent == intent and writer.at == "sent":
            return i
    return None


def _skip(s: State, waiting: int | None) -> State:
    return s if waiting is None else s.writer(waiting, s.writers[waiting].next())


def _apply(m: Forward, s: State, commit: Commit, waiting: int | None) -> Step[State]:
    op = m.intents[commit.intent]
    clock = s.clock + 1
    firestore = tuple(
        Image(doc.doc, op.after(doc.value, commit.intent), clock) if doc.doc in op.docs else doc
        for doc in s.firestore
    )
    s = s._replace(
        firestore=firestore,
        clock=clock,
        history=(*s.history, tuple(doc.value for doc in firestore)),
        outbox=s.outbox if commit.gate is None else s.outbox | {commit.intent},
    )
    if waiting is None:
        return Step(f"Firestore applies {commit.intent} at {clock}; nobody waits for it", s)
    writer = s.writers[waiting]
    done = commit.gate is not None and m.rules.outbox_recopies
    writer = writer.next() if done else writer._replace(at="applied", time=clock)
    s = s._replace(acknowledged=len(s.history) - 1).writer(waiting, writer)
    return Step(f"Firestore applies {commit.intent} at {clock}; its caller is told", s)


def _settle(m: Forward, s: State, i: int) -> Iterator[Step[State]]:
    """Step 5, from the answer on."""
    writer = s.writers[i]
    op = m.intents[writer.intent]
    if i in s.cut_off or writer.intent in s.outbox:
        yield Step(f"S{i + 1} leaves {writer.intent} to the recopy", s.writer(i, writer.next()))
    elif op.kind == "update" and m.rules.recopy_partial:
        images = tuple(s.read_firestore(doc) for doc in op.docs)
        yield Step(
            f"S{i + 1} reads Firestore for the partial write {writer.intent}",
            s.writer(i, writer._replace(at="read", images=images)),
        )
    else:
        images = tuple(
            Image(doc, op.after(s.held(doc), writer.intent), writer.time) for doc in op.docs
        )
        yield _put(m, s, i, images, recopied=False)


def _put(m: Forward, s: State, i: int, images: tuple[Image, ...], *, recopied: bool) -> Step[State]:
    writer: Writer = s.writers[i]
    own = own_rows(m, s, writer.intent)
    s2 = s._replace(pending=s.pending - own)
    docs = {row.doc for row in own}
    for image in images:
        if image.doc in docs or not m.rules.put_needs_row:
            s2 = m.put(s2, image, recopied=recopied)
    return Step(
        f"S{i + 1} puts {writer.intent} where its pending rows still are, and deletes them",
        s2.writer(i, writer.next()),
    )
