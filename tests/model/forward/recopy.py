"""Recopy, drain, backfill and the pruning of tombstones."""

from collections.abc import Iterator

from tests.model.engine import Step
from tests.model.forward.state import Forward, Pending, State, Worker


def recopy(m: Forward, s: State) -> Iterator[Step[State]]:
    for j, worker in enumerate(s.workers):
        who = f"R{j + 1}"
        match worker.at:
            case "idle":
                yield from _claim(m, s, j)
            case "claimed":
                intents = {row.intent for row in worker.rows}
                yield Step(
                    f"{who} revokes {_names(intents)}",
                    s._replace(revoked=s.revoked | intents).worker(
                        j, worker._replace(at="revoked")
                    ),
                )
            case "revoked":
                doc = next(iter(worker.rows)).doc
                image = s.read_firestore(doc)
                yield Step(
                    f"{who} reads document {doc} from Firestore: {image.value} of {image.time}",
                    s.worker(j, worker._replace(at="read", image=image)),
                )
            case "read":
                yield _put(m, s, j)
        if m.overtaken and worker.at != "idle" and s.crashes:
            lost = worker.rows & s.pending
            free = {row._replace(claim=0) for row in lost}
            yield Step(
                f"{who} is slow: its lease runs out",
                s._replace(crashes=s.crashes - 1, pending=s.pending - lost | free),
            )


def _claim(m: Forward, s: State, j: int) -> Iterator[Step[State]]:
    """Only the lease says that an owner is gone; a slow one looks the same."""
    for doc in range(len(m.authority)):
        rows = frozenset(
            row
            for row in s.pending
            if row.doc == doc and row.claim == 0 and (m.overtaken or not s.works(row.intent))
        )
        if m.fence == "horizon":
            flying = {commit.intent for commit in s.in_flight}
            rows = frozenset(r for r in rows if r.intent not in flying and not s.works(r.intent))
        if rows:
            claimed = frozenset(row._replace(claim=j + 1) for row in rows)
            revokes = m.fence == "document" and m.rules.revoke
            yield Step(
                f"R{j + 1} claims the rows of {_names({row.intent for row in rows})}",
                s._replace(pending=s.pending - rows | claimed).worker(
                    j, Worker("claimed" if revokes else "revoked", claimed)
                ),
            )


def _put(m: Forward, s: State, j: int) -> Step[State]:
    worker = s.workers[j]
    assert worker.image
    doc = worker.image.doc
    still = worker.rows & s.pending
    if not still and m.rules.put_needs_row:
        return Step(f"R{j + 1} finds its claim lost and puts nothing", s.worker(j, Worker()))
    if m.rules.claimed_rows_only:
        gone = still
    else:
        gone = frozenset(row for row in s.pending if row.doc == doc)
    put = m.put(s._replace(pending=s.pending - gone), worker.image, recopied=True)
    return Step(
        f"R{j + 1} puts what it read of document {doc} and deletes the rows of "
        f"{_names({row.intent for row in gone})}",
        put.worker(j, Worker()),
    )


def drain(m: Forward, s: State) -> Iterator[Step[State]]:
    """Doing it twice does no harm, so rows and entry are one step here."""
    for intent in s.outbox:
        if not any(row.intent == intent for row in s.pending):
            rows = {Pending(intent, doc) for doc in m.intents[intent].docs}
            yield Step(
                f"drain: pending rows for {intent}, then its outbox entry is cleared",
                s._replace(pending=s.pending | rows, outbox=s.outbox - {intent}),
            )
    if m.gated and s.gate % 2 == 1 and not s.outbox and s.gate < m.gates:
        yield Step(
            f"drain: the outbox is empty, the gate opens (generation {s.gate + 1})",
            s._replace(gate=s.gate + 1),
        )


def backfill(m: Forward, s: State) -> Iterator[Step[State]]:
    """One page, the sweep, and then the wildcard row goes."""
    if s.copied == "no" and s.page is None:
        yield Step(
            "backfill reads its page",
            s._replace(page=tuple(image for image in s.firestore if image.value is not None)),
        )
    elif s.copied == "no" and s.page is not None:
        put = s
        for image in s.page:
            put = m.put(put, image, recopied=True)
        yield Step("backfill puts its page", put._replace(copied="page"))
    elif s.copied == "page" and s.page is not None:
        seen = {image.doc for image in s.page}
        extras = {
            Pending("sweep", doc)
            for doc, row in enumerate(s.mirror)
            if row and row.value is not None and doc not in seen and m.rules.sweep
        }
        yield Step(
            "backfill sweeps: rows it has not seen become pending, the wildcard row goes",
            s._replace(pending=s.pending | extras, page=None, copied="all"),
        )


def prune(m: Forward, s: State) -> Iterator[Step[State]]:
    if not s.prunes:
        return
    page_open = s.copied == "no" and s.page is not None
    for doc, row in enumerate(s.mirror):
        if (
            row
            and row.value is None
            and not (m.rules.prune_not_pending and s.has_pending((doc,)))
            and not (m.rules.prune_no_page and page_open)
        ):
            yield Step(
                f"the tombstone of document {doc} is pruned",
                s._replace(
                    mirror=(*s.mirror[:doc], None, *s.mirror[doc + 1 :]), prunes=s.prunes - 1
                ),
            )


def _names(intents: set[str]) -> str:
    return ", ".join(sorted(intents))
