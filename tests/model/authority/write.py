"""Commits, reads and what a sidecar knows, while the authority may change under its feet."""

from collections.abc import Iterator
from typing import Literal

from tests.model.authority.state import (
    FIRESTORE,
    NONE,
    POSTGRESQL,
    Changes,
    Commit,
    ControlRow,
    Document,
    Kind,
    Row,
    State,
    Version,
    name,
)
from tests.model.engine import Step


def steps(m: Changes, s: State) -> Iterator[Step[State]]:
    for i, car in enumerate(s.sidecars):
        match car.at:
            case "idle":
                if car.number < len(m.operations[i]):
                    yield from _begin(m, s, i)
                yield from _learn(s, i)
            case "insert":
                yield _insert(s, i, f"... the pending row of {car.intent} commits")
            case "commit":
                yield _commit(m, s, i)
            case "send":
                kind = m.operations[i][car.number]
                commit = Commit(
                    car.intent, _content(kind, car.intent), car.epoch, _kind(outbox=car.outbox)
                )
                yield Step(
                    f"S{i + 1} sends the Firestore commit of {car.intent} (epoch {car.epoch})",
                    s._replace(in_flight=s.in_flight | {commit}).sidecar(
                        i, car._replace(at="sent")
                    ),
                )
            case "applied":
                yield _put(m, s, i)
        if car.at != "idle" and s.crashes:
            yield Step(
                f"S{i + 1} crashes; what it sent stays in flight",
                s._replace(crashes=s.crashes - 1).sidecar(i, car.next()),
            )
        if s.reads:
            yield from _read(m, s, i)
            if car.lease and not s.document.open:
                yield Step(
                    f"S{i + 1}'s stage lease runs out",
                    s.sidecar(i, car._replace(lease=False)),
                )


def deliver(m: Changes, s: State, commit: Commit) -> Step[State]:
    """Firestore decides a caller's commit."""
    s = s._replace(in_flight=s.in_flight - {commit})
    waiting = next(
        (i for i, c in enumerate(s.sidecars) if c.intent == commit.intent and c.at == "sent"), None
    )
    if _refused(m, s, commit):
        if waiting is not None:
            s = s._replace(pending=s.pending - {commit.intent})
            s = s.sidecar(waiting, s.sidecars[waiting].next())
        return Step(f"Firestore refuses {commit.intent} (fence)", s)
    old_authority = s.control.authority is POSTGRESQL
    clock = s.clock + 1
    image = Document(commit.content, clock)
    s = s._replace(
        firestore=image,
        clock=clock,
        history=(*s.history, commit.content),
        outbox=s.outbox | {commit.intent} if commit.kind == "outbox" else s.outbox,
    )
    told = ""
    if waiting is not None:
        told = "; its caller is told"
        car = s.sidecars[waiting]
        car = car.next() if car.outbox else car._replace(at="applied", image=image)
        s = s._replace(acknowledged=len(s.history) - 1).sidecar(waiting, car)
    return Step(
        f"Firestore applies {commit.intent} at {clock}{told}",
        s,
        f"two authorities: Firestore accepts {commit.intent}, PostgreSQL decides"
        if old_authority
        else None,
    )


def _begin(m: Changes, s: State, i: int) -> Iterator[Step[State]]:
    """Another epoch than expected, or none in charge: it waits, and never takes the outbox."""
    car = s.sidecars[i]
    intent = name(i, car.number)
    begun = s.sidecar(i, car._replace(intent=intent, epoch=car.believes.epoch))
    expected = s.control == car.believes
    if car.believes.authority is FIRESTORE:
        reaches = s.reaches_postgresql(i)
        if not reaches or m.at_will:
            why = "finds PostgreSQL slow" if reaches else "cannot reach PostgreSQL"
            yield Step(
                f"S{i + 1} {why}: {intent} takes the outbox",
                begun.sidecar(i, begun.sidecars[i]._replace(at="send", outbox=True)),
            )
        if not reaches:
            return
        if expected and m.rules.epoch_under_lock:
            yield _insert(begun, i, f"inserts the pending row of {intent}, epoch and lock")
        elif expected:
            yield Step(
                f"S{i + 1} reads the control row: {intent} may insert its pending row",
                begun.sidecar(i, begun.sidecars[i]._replace(at="insert")),
            )
    elif s.reaches_postgresql(i) and expected:
        if m.rules.epoch_under_lock:
            yield _commit(m, begun, i)
        else:
            yield Step(
                f"S{i + 1} reads the control row: {intent} may be committed to PostgreSQL",
                begun.sidecar(i, begun.sidecars[i]._replace(at="commit")),
            )


def _learn(s: State, i: int) -> Iterator[Step[State]]:
    """The control row says who decides, the open control document gives a stage lease."""
    car = s.sidecars[i]
    if s.control.authority is NONE or not s.reaches_postgresql(i):
        return
    lease = s.control.authority is FIRESTORE and s.document.open
    if car.believes != s.control:
        yield Step(
            f"S{i + 1} learns that {s.control.authority.value} decides, epoch {s.control.epoch}",
            s.sidecar(i, car._replace(believes=s.control, lease=lease)),
        )
    elif lease and not car.lease and s.reads:
        yield Step(f"S{i + 1} gets a stage lease", s.sidecar(i, car._replace(lease=True)))


def _insert(s: State, i: int, words: str) -> Step[State]:
    car = s.sidecars[i]
    return Step(
        f"S{i + 1} {words}",
        s._replace(pending=s.pending | {car.intent}).sidecar(i, car._replace(at="send")),
    )


def _commit(m: Changes, s: State, i: int) -> Step[State]:
    """PostgreSQL decides: data, version and pending row in one transaction."""
    car = s.sidecars[i]
    content = _content(m.operations[i][car.number], car.intent)
    old = s.row.version.time if s.row.version else -1
    version = Version(s.control.epoch, max(s.clock + m.skew, 0, old + 1))
    old_authority = s.control.authority is FIRESTORE
    return Step(
        f"S{i + 1} commits {car.intent} ({content}) to PostgreSQL, version {tuple(version)}",
        s._replace(
            row=Row(content, version),
            pending=s.pending | {car.intent},
            history=(*s.history, content),
            acknowledged=len(s.history),
        ).sidecar(i, car.next()),
        f"two authorities: PostgreSQL accepts {car.intent}, Firestore decides"
        if old_authority
        else None,
    )


def _put(m: Changes, s: State, i: int) -> Step[State]:
    car = s.sidecars[i]
    assert car.image
    if not s.reaches_postgresql(i) or car.intent not in s.pending:
        return Step(f"S{i + 1} leaves {car.intent} to the recopy", s.sidecar(i, car.next()))
    if s.control.epoch != car.epoch and m.rules.puts_check_epoch:
        return Step(f"the epoch refuses the put of {car.intent}", s.sidecar(i, car.next()))
    row = m.put(s.row, car.image.content, Version(car.epoch, car.image.update_time))
    return Step(
        f"S{i + 1} puts {car.intent} and deletes its pending row",
        s._replace(row=row, pending=s.pending - {car.intent}).sidecar(i, car.next()),
    )


def _read(m: Changes, s: State, i: int) -> Iterator[Step[State]]:
    car = s.sidecars[i]
    read = s._replace(reads=s.reads - 1)
    if car.believes.authority is FIRESTORE and (car.lease or not m.rules.stage_lease):
        content = s.firestore.content
        yield Step(f"S{i + 1} reads {content} in Firestore", read, s.stale(content))
    if car.believes.authority is POSTGRESQL and s.reaches_postgresql(i):
        shown = _still_postgresql(s.control, car.believes)
        if shown or not m.rules.reads_show_epoch:
            content = s.row.content
            yield Step(f"S{i + 1} reads {content} in PostgreSQL", read, s.stale(content))


def _still_postgresql(control: ControlRow, believed: ControlRow) -> bool:
    """While a barrier keeps writes out, PostgreSQL's own reads go on in the old epoch."""
    return control.epoch == believed.epoch and control.authority is not FIRESTORE


def _refused(m: Changes, s: State, commit: Commit) -> bool:
    if commit.intent in s.revoked:
        return True
    if commit.kind == "outbox":
        checks = m.rules.outbox_checks_control
    else:
        checks = m.every_commit_checks_control
    return checks and not (s.document.open and s.document.epoch == commit.epoch)


def _content(kind: Kind, intent: str) -> str | None:
    return None if kind == "delete" else intent


def _kind(*, outbox: bool) -> Literal["ordinary", "outbox"]:
    return "outbox" if outbox else "ordinary"
