"""A change of authority that two coordinators carry on: each compares before it sets.

What is compared is in the control row (epoch, change, step, whose turn it is) and in the control
document (its update_time, and that it is of no later epoch). A coordinator may stand still between
any two steps; then the other takes over, for a silent one cannot be told from a dead one. Commits
and reads are only as much as shows a wrong moment: one document that may be pending, and a stage
lease. Recopies are judged in the other models.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tests.model.authority.state import FIRESTORE, NONE, POSTGRESQL, Authority
from tests.model.engine import Step
from tests.model.rules import CoordinatorRules

Kind = Literal["take", "give", "undo"]
STEPS: dict[Kind, tuple[str, ...]] = {
    "take": ("fence", "drain", "lapse", "open"),
    "give": ("drain", "move", "publish", "settle"),
    "undo": ("publish", "settle"),
}


class Change(NamedTuple):
    number: int
    kind: Kind
    step: str
    turn: int
    """Whose it is."""

    def following(self) -> "Change":
        steps = STEPS[self.kind]
        return self._replace(step=steps[steps.index(self.step) + 1])

    @property
    def can_be_given_up(self) -> bool:
        return self.kind != "undo" and self.step not in {"publish", "settle"}


class ControlRow(NamedTuple):
    authority: Authority
    epoch: int
    change: Change | None


class ControlDocument(NamedTuple):
    open: bool
    epoch: int
    update_time: int


class Coordinator(NamedTuple):
    """`began`: the epoch in which it took its turn. `knows`: the epoch by its snapshot, which
    follows the row whatever the coordinator does. `found`: the document, read and not written
    yet. `since`: the moment at which it began to wait for leases."""

    at: Literal["idle", "looked", "step", "write", "lapse", "done", "mend", "mending"] = "idle"
    change: Change | None = None
    began: int = 0
    knows: int = 0
    found: ControlDocument | None = None
    since: int = 0


class State(NamedTuple):
    row: ControlRow
    document: ControlDocument
    coordinators: tuple[Coordinator, ...]
    lease: int | None
    """A sidecar holds a stage lease of the document of this update_time."""
    pending: bool
    changes: int
    writes: int
    leases: int
    crashes: int
    late: int
    """How often a change may turn out to be late, and is given up."""

    def coordinator(self, number: int, coordinator: Coordinator) -> "State":
        after = (*self.coordinators[:number], coordinator, *self.coordinators[number + 1 :])
        return self._replace(coordinators=after)

    def opened(self, authority: Authority, change: Change | None) -> "State":
        return self._replace(row=ControlRow(authority, self.row.epoch + 1, change))


@dataclass(frozen=True)
class Coordinators:
    """How much may happen, and which rules hold."""

    rules: CoordinatorRules = field(default_factory=CoordinatorRules)
    start: Authority = FIRESTORE
    coordinators: int = 2
    changes: int = 2
    writes: int = 0
    leases: int = 0
    crashes: int = 0
    late: int = 1
    blind_take_over: bool = False
    """Less than the code does: who takes over does not compare what it saw standing still."""

    def initial(self) -> State:
        return State(
            row=ControlRow(self.start, 0, None),
            document=ControlDocument(self.start is FIRESTORE, 0, 1),
            coordinators=(Coordinator(),) * self.coordinators,
            lease=None,
            pending=False,
            changes=self.changes,
            writes=self.writes,
            leases=self.leases,
            crashes=self.crashes,
            late=self.late,
        )

    def wrong(self, state: State) -> str | None:
        if state.row.authority is not POSTGRESQL:
            return None
        if state.document.open:
            return "two authorities: PostgreSQL is open, and Firestore's control document, too"
        if state.lease is not None:
            return "stale read: PostgreSQL is open, and a stage lease for Firestore still runs"
        if state.pending:
            return "lost: PostgreSQL is open without a write that Firestore had"
        return None

    def at_rest(self, state: State) -> str | None:
        row, document = state.row, state.document
        if row.authority is NONE:
            return "nobody decides, and no coordinator will change that"
        if row.change is not None:
            return f"unsettled: the change stands at {row.change.step}"
        if row.authority is FIRESTORE and (not document.open or document.epoch != row.epoch):
            return f"nobody is served: Firestore decides in epoch {row.epoch}, {document}"
        return None

    def steps(self, state: State) -> Iterator[Step[State]]:
        for j, coordinator in enumerate(state.coordinators):
            yield from self._coordinate(state, j, coordinator)
        yield from _commits_and_reads(state)

    # --- a coordinator ------------------------------------------------------------------------

    def _coordinate(self, s: State, j: int, c: Coordinator) -> Iterator[Step[State]]:
        who = f"C{j + 1}"
        match c.at:
            case "idle":
                yield from self._take_a_turn(s, j, who)
            case "looked":
                yield self._take_over(s, j, c, who)
            case "step":
                yield from self._step(s, j, c, who)
            case "write" | "mending":
                yield self._write(s, j, c, who)
            case "lapse":
                if s.lease is None or s.lease > c.since:
                    yield Step(
                        f"{who} has waited L: the leases of before are over",
                        s.coordinator(j, c._replace(at="done")),
                    )
            case "done":
                yield self._advance(s, j, c, who)
            case "mend":
                yield self._read_document(s, j, c, who)
        if c.at == "step" and c.knows != s.row.epoch:
            yield Step(
                f"{who} hears of epoch {s.row.epoch}",
                s.coordinator(j, c._replace(knows=s.row.epoch)),
            )
        if c.at != "idle" and s.crashes:
            yield Step(
                f"{who} crashes",
                s.coordinator(j, Coordinator())._replace(crashes=s.crashes - 1),
            )

    def _take_a_turn(self, s: State, j: int, who: str) -> Iterator[Step[State]]:
        row, document = s.row, s.document
        if row.change is not None:
            looked = Coordinator("looked", row.change, row.epoch, row.epoch)
            yield Step(f"{who} sees that {row.change.kind} stands still", s.coordinator(j, looked))
            return
        if s.changes:
            kind: Kind = "take" if row.authority is FIRESTORE else "give"
            change = Change(s.changes, kind, STEPS[kind][0], j)
            begun = Coordinator("step", change, row.epoch, row.epoch)
            yield Step(
                f"{who} begins to {kind}: nobody decides",
                s._replace(
                    row=row._replace(authority=NONE, change=change), changes=s.changes - 1
                ).coordinator(j, begun),
            )
        apart = not document.open or document.epoch < row.epoch
        if row.authority is FIRESTORE and apart and document.epoch <= row.epoch:
            mend = Coordinator("mend", None, row.epoch, row.epoch)
            yield Step(f"{who} sees that the document is not as the row", s.coordinator(j, mend))

    def _mine(self, s: State, c: Coordinator, *, compares: bool) -> bool:
        """What every change of the row asks: the epoch, the change, the step, whose turn."""
        if not compares:
            return True
        return s.row.epoch == c.knows and s.row.change == c.change and s.row.change is not None

    def _lost(self, s: State, j: int, who: str) -> Step[State]:
        return Step(f"{who} finds that another has gone on", s.coordinator(j, Coordinator()))

    def _take_over(self, s: State, j: int, c: Coordinator, who: str) -> Step[State]:
        assert c.change
        found = s.row.change
        same = found is not None and found._replace(turn=0) == c.change._replace(turn=0)
        if found is None or not (self.blind_take_over or (same and s.row.epoch == c.knows)):
            return self._lost(s, j, who)
        # The row keeps its step; only the turn is set.
        turn = c.change._replace(turn=j)
        return Step(
            f"{who} takes over at {turn.step}",
            s._replace(row=s.row._replace(change=found._replace(turn=j))).coordinator(
                j, Coordinator("step", turn, c.began, s.row.epoch)
            ),
        )

    def _step(self, s: State, j: int, c: Coordinator, who: str) -> Iterator[Step[State]]:
        assert c.change
        if self.rules.epoch_of_its_turn and c.knows != c.began:
            yield self._lost(s, j, who)
            return
        if s.late and c.change.can_be_given_up:
            yield self._give_up(s, j, c, who)
        match c.change.step:
            case "fence" | "publish":
                yield self._read_document(s, j, c, who)
            case "drain":
                if not s.pending or not self.rules.waits_for_pending:
                    yield Step(
                        f"{who} finds nothing pending", s.coordinator(j, c._replace(at="done"))
                    )
            case "lapse":
                since = s.document.update_time if self.rules.waits_for_leases else -1
                yield Step(
                    f"{who} begins to wait L",
                    s.coordinator(j, c._replace(at="lapse", since=since)),
                )
            case "open":
                if not self._mine(s, c, compares=self.rules.open_compares):
                    yield self._lost(s, j, who)
                    return
                yield Step(
                    f"{who} opens PostgreSQL, epoch {s.row.epoch + 1}",
                    s.opened(POSTGRESQL, None).coordinator(j, Coordinator()),
                )
            case "move":
                if not self._mine(s, c, compares=self.rules.open_compares):
                    yield self._lost(s, j, who)
                    return
                after = c.change.following()
                epoch = s.row.epoch + 1
                yield Step(
                    f"{who} moves to Firestore, epoch {epoch}",
                    s.opened(FIRESTORE, after).coordinator(
                        j, Coordinator("step", after, epoch, epoch)
                    ),
                )
            case _:
                if not self._mine(s, c, compares=self.rules.settle_compares):
                    yield self._lost(s, j, who)
                    return
                yield Step(
                    f"{who} settles {c.change.kind}",
                    s._replace(row=s.row._replace(change=None)).coordinator(j, Coordinator()),
                )

    def _give_up(self, s: State, j: int, c: Coordinator, who: str) -> Step[State]:
        """It is late: the former authority opens again, in the next epoch."""
        assert c.change
        if not self._mine(s, c, compares=self.rules.give_up_compares):
            return self._lost(s, j, who)
        epoch = s.row.epoch + 1
        s = s._replace(late=s.late - 1)
        if c.change.kind == "give":
            after = s.opened(POSTGRESQL, None).coordinator(j, Coordinator())
        else:
            undo = Change(c.change.number, "undo", "publish", j)
            after = s.opened(FIRESTORE, undo).coordinator(
                j, Coordinator("step", undo, epoch, epoch)
            )
        return Step(f"{who} gives up to {c.change.kind}: epoch {epoch}", after)

    def _advance(self, s: State, j: int, c: Coordinator, who: str) -> Step[State]:
        assert c.change
        if not self._mine(s, c, compares=self.rules.step_compares):
            return self._lost(s, j, who)
        after = c.change.following()
        return Step(
            f"{who} goes on to {after.step}",
            s._replace(row=s.row._replace(change=after)).coordinator(
                j, c._replace(at="step", change=after, found=None)
            ),
        )

    # --- the control document -----------------------------------------------------------------

    def _wanted(self, c: Coordinator) -> tuple[bool, int]:
        fences = c.change is not None and c.change.step == "fence"
        return (not fences, c.knows + 1 if fences else c.knows)

    def _read_document(self, s: State, j: int, c: Coordinator, who: str) -> Step[State]:
        opens, epoch = self._wanted(c)
        found = s.document
        if self.rules.no_later_document and found.epoch > epoch:
            return self._lost(s, j, who)
        if (found.open, found.epoch) == (opens, epoch):
            after = Coordinator() if c.change is None else c._replace(at="done")
            return Step(f"{who} finds the document as it shall be", s.coordinator(j, after))
        at: Literal["write", "mending"] = "mending" if c.change is None else "write"
        return Step(
            f"{who} reads the document of epoch {found.epoch}",
            s.coordinator(j, c._replace(at=at, found=found)),
        )

    def _write(self, s: State, j: int, c: Coordinator, who: str) -> Step[State]:
        assert c.found
        opens, epoch = self._wanted(c)
        mends = c.change is None
        if self.rules.document_compares and s.document.update_time != c.found.update_time:
            again = c._replace(at="mend" if mends else "step", found=None)
            return Step(
                f"{who} finds the document changed, and reads again", s.coordinator(j, again)
            )
        written = ControlDocument(opens, epoch, s.document.update_time + 1)
        after = Coordinator() if mends else c._replace(at="done", found=None)
        return Step(
            f"{who} {'opens' if opens else 'closes'} the document, epoch {epoch}",
            s._replace(document=written).coordinator(j, after),
        )


def _commits_and_reads(s: State) -> Iterator[Step[State]]:
    if s.writes and s.row.authority is FIRESTORE and not s.pending:
        yield Step("a commit: its row is pending", s._replace(pending=True, writes=s.writes - 1))
    if s.pending and s.row.authority is not POSTGRESQL:
        yield Step("it is recopied", s._replace(pending=False))
    if s.leases and s.document.open and s.lease is None:
        yield Step(
            "a sidecar gets a stage lease",
            s._replace(lease=s.document.update_time, leases=s.leases - 1),
        )
    if s.lease is not None:
        yield Step("its stage lease runs out", s._replace(lease=None))
