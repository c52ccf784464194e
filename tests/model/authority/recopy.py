"""Recopy in both directions, the drain of the outbox, and pruning, across changes of authority."""

from collections.abc import Iterator

from tests.model.authority.state import (
    FIRESTORE,
    Changes,
    Commit,
    Document,
    Row,
    State,
    Version,
    Worker,
)
from tests.model.engine import Step


def steps(m: Changes, s: State) -> Iterator[Step[State]]:
    for j, worker in enumerate(s.workers):
        who = f"R{j + 1}"
        match worker.at:
            case "idle":
                rows = frozenset(intent for intent in s.pending if not s.works(intent))
                if rows and s.forward:
                    yield _claim_and_read(m, s, j, rows)
                elif rows and not m.reverse_in_steps:
                    yield _reverse_at_once(s, rows)
                elif rows and s.claims < m.claims:
                    yield _claim_reverse(m, s, j)
            case "read":
                yield _put(m, s, j)
            case "send":
                commit = Commit(worker.claim, worker.row.content, 0, "reverse")
                yield Step(
                    f"{who} sends {commit.content} to Firestore ({worker.claim})",
                    s._replace(in_flight=s.in_flight | {commit}).worker(
                        j, worker._replace(at="sent")
                    ),
                )
            case "applied":
                yield _reverse_done(m, s, j)
        if worker.claim and s.crashes:
            yield Step(
                f"{who} crashes; what it sent stays in flight",
                s._replace(crashes=s.crashes - 1).worker(j, Worker()),
            )


def _claim_and_read(m: Changes, s: State, j: int, rows: frozenset[str]) -> Step[State]:
    """The races between claim, revoke and read are judged in the model of `forward`."""
    document = s.firestore
    time = document.update_time if document.content is not None else s.clock
    row = Row(document.content, Version(s.control.epoch, time))
    revokes = " and revokes" if m.rules.revoke else ""
    return Step(
        f"R{j + 1} claims{revokes} {', '.join(sorted(rows))}, reads {document.content}",
        s._replace(revoked=s.revoked | rows if m.rules.revoke else s.revoked).worker(
            j, Worker("read", rows, row, s.control.epoch)
        ),
    )


def _put(m: Changes, s: State, j: int) -> Step[State]:
    worker = s.workers[j]
    if m.rules.puts_check_epoch:
        if s.control.epoch != worker.epoch:
            return Step(f"the epoch refuses the put of R{j + 1}", s.worker(j, Worker()))
        if not worker.rows & s.pending:
            return Step(f"R{j + 1} finds its claim lost", s.worker(j, Worker()))
    assert worker.row.version
    row = m.put(s.row, worker.row.content, worker.row.version)
    return Step(
        f"R{j + 1} puts {worker.row.content} and deletes the rows it claimed",
        s._replace(row=row, pending=s.pending - worker.rows).worker(j, Worker()),
    )


def _reverse_at_once(s: State, rows: frozenset[str]) -> Step[State]:
    return Step(
        f"the reverse put of {s.row.content} into Firestore",
        _written(s, s.row.content)._replace(pending=s.pending - rows),
    )


def _claim_reverse(m: Changes, s: State, j: int) -> Step[State]:
    claim = f"claim {s.claims + 1}"
    earlier = frozenset(f"claim {number + 1}" for number in range(s.claims))
    return Step(
        f"R{j + 1} claims all rows ({claim}) and reads {s.row.content}",
        s._replace(
            claims=s.claims + 1,
            revoked=s.revoked | earlier if m.rules.fence_per_claim else s.revoked,
        ).worker(j, Worker("send", s.pending, s.row, s.control.epoch, claim)),
    )


def _reverse_done(m: Changes, s: State, j: int) -> Step[State]:
    worker = s.workers[j]
    if worker.claim in s.revoked or s.control.epoch != worker.epoch:
        return Step(f"R{j + 1} finds its claim lost", s.worker(j, Worker()))
    return Step(
        f"R{j + 1} deletes the rows it has seen",
        s._replace(pending=s.pending - worker.rows).worker(j, Worker()),
    )


def deliver(m: Changes, s: State, commit: Commit) -> Step[State]:
    """Firestore decides a reverse put."""
    s = s._replace(in_flight=s.in_flight - {commit})
    waiting = next((j for j, w in enumerate(s.workers) if w.claim == commit.intent), None)
    if commit.intent in s.revoked:
        if waiting is not None:
            s = s.worker(waiting, Worker())
        return Step(f"Firestore refuses the reverse put of {commit.intent} (revoked)", s)
    late = s.control.authority is FIRESTORE and commit.content != s.firestore.content
    after = _written(s, commit.content)
    if waiting is not None:
        after = after.worker(waiting, s.workers[waiting]._replace(at="applied"))
    return Step(
        f"Firestore applies {commit.content} of {commit.intent}",
        after,
        f"overwritten: {s.firestore.content} by an old reverse put, Firestore decides"
        if late
        else None,
    )


def drain(s: State) -> Iterator[Step[State]]:
    if s.forward:
        for intent in s.outbox:
            yield Step(
                f"drain: a pending row for {intent}, then its outbox entry is cleared",
                s._replace(outbox=s.outbox - {intent}, pending=s.pending | {intent}),
            )


def prune(s: State) -> Iterator[Step[State]]:
    if s.prunes and s.row.content is None and s.row.version and not s.pending:
        yield Step("the tombstone is pruned", s._replace(row=Row(None, None), prunes=s.prunes - 1))


def _written(s: State, content: str | None) -> State:
    """The same content again keeps its update_time."""
    if content == s.firestore.content:
        return s
    return s._replace(firestore=Document(content, s.clock + 1), clock=s.clock + 1)
