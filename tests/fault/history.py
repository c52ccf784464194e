"""What clients did and saw, and whether there is an order of it all that explains it.

A history is *explained* if its operations can be put in one order such that each takes
effect at one moment between its call and its answer, each read saw exactly what the writes
before it left, and each write whose outcome nobody knows happened once or not at all. Of
single documents that is linearizability; because a commit of several documents, a batch
read and a query are one operation each, it is strict serializability of all of them: no
torn commit, no query of two moments, no lost or doubled write, nothing back from the dead.

The search is exhaustive within its budget. A history for which no order was found in the
budget counts as not explained: silence is no proof.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any, TypeAlias

Fields: TypeAlias = tuple[tuple[str, Any], ...]
"""A document's fields, sorted by name."""
State: TypeAlias = Mapping[str, Fields]
"""What there is, by path; a path that is not in it holds no document."""

COUNTER = "n"
"""The field that increments are of."""
BUDGET = 120_000
MOST_UNKNOWN = 5
"""Increments of sums whose outcome is unknown; with more, the sums are judged apart."""


class Outcome(StrEnum):
    """`REFUSED`: definitely not done, and not for what is stored. `UNKNOWN`: nobody can say."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Act(StrEnum):
    SET = "set"
    CREATE = "create"
    MERGE = "merge"
    ADD = "add"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Effect:
    """One write of a commit. `fields` of a set, create or merge; `amount` of an increment."""

    act: Act
    path: str
    fields: Fields = ()
    amount: int = 0

    def on(self, before: Fields | None) -> Fields | None:
        """What it leaves. A create of what there is must be looked at by `Operation.after`."""
        match self.act:
            case Act.DELETE:
                return None
            case Act.SET | Act.CREATE:
                return self.fields
            case Act.MERGE:
                return as_fields(dict(before or ()) | dict(self.fields))
            case Act.ADD:
                held = dict(before or ())
                return as_fields(held | {COUNTER: held.get(COUNTER, 0) + self.amount})


def as_fields(fields: Mapping[str, Any]) -> Fields:
    return tuple(sorted(fields.items()))


@dataclass(slots=True)
class Operation:
    """`seen`: what a read or a query found, by path, None for no document. `collection`: of a
    query; then what `seen` does not have was not there. `existed`: a create that was refused
    because of the document it met. `hint`: where the authority says that it belongs (its
    commit time); it only guides the search."""

    number: int
    client: str
    effects: tuple[Effect, ...] = ()
    seen: dict[str, Fields | None] = field(default_factory=dict)
    collection: str | None = None
    existed: str | None = None
    start: float = 0.0
    end: float = inf
    outcome: Outcome = Outcome.UNKNOWN
    hint: float = inf
    note: str = ""

    @property
    def writes(self) -> bool:
        return bool(self.effects) and self.outcome is not Outcome.REFUSED

    def fits(self, state: State) -> bool:
        """Whether what it saw is what there is."""
        if self.existed is not None and self.existed not in state:
            return False
        if any(state.get(path) != found for path, found in self.seen.items()):
            return False
        if self.collection is None:
            return True
        prefix = f"{self.collection}/"
        return all(path in self.seen for path in state if path.startswith(prefix))

    def after(self, state: State) -> State | None:
        """What it leaves; None if it could not have been done."""
        left = dict(state)
        for effect in self.effects:
            if effect.act is Act.CREATE and effect.path in left:
                return None
            fields = effect.on(left.get(effect.path))
            if fields is None:
                left.pop(effect.path, None)
            else:
                left[effect.path] = fields
        return left

    def __str__(self) -> str:
        what = ", ".join(
            f"{e.act} {e.path} {dict(e.fields) or e.amount or ''}" for e in self.effects
        )
        if self.seen or self.collection:
            saw = {path: None if f is None else dict(f) for path, f in self.seen.items()}
            what = f"{self.collection or 'get'} saw {saw}"
        if self.existed:
            what = f"met {self.existed}"
        end = "?" if self.end == inf else f"{self.end:.4f}"
        return (
            f"#{self.number} {self.client} [{self.start:.4f}, {end}] {self.outcome}: {what} "
            f"{self.note}"
        )


class History:
    """The recorder: times are of this process's monotonic clock, since it began."""

    def __init__(self, initial: State | None = None) -> None:
        self.initial: State = dict(initial or {})
        self.operations: list[Operation] = []
        self._began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began

    def begin(self, client: str, **what: Any) -> Operation:
        operation = Operation(len(self.operations), client, start=self.now(), **what)
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, outcome: Outcome) -> None:
        operation.end, operation.outcome = self.now(), outcome

    def finish(self, *finals: State) -> None:
        """The end: every call is over, nothing is on its way any more. `finals`: all that each
        store holds then, each an operation that saw everything."""
        over = self.now()
        for operation in self.operations:
            operation.end = min(operation.end, over)
        for number, final in enumerate(finals):
            self.begin(f"store {number}", seen=dict(final), collection=None, note="in the end")
            last = self.operations[-1]
            last.seen |= {path: final.get(path) for path in self._paths()}
            self.end(last, Outcome.OK)

    def _paths(self) -> set[str]:
        written = {e.path for operation in self.operations for e in operation.effects}
        return written | set(self.initial)

    def check(self) -> "Verdict":
        return check(self.operations, self.initial)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`order`: numbers of the operations, as they can have happened, the longest that was
    found if `ok` is False. `stuck`: what could not follow it. `final`: what is there then."""

    ok: bool
    order: tuple[int, ...]
    final: State
    stuck: tuple[Operation, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"explained by an order of {len(self.order)} operations"
        state = {path: dict(fields) for path, fields in sorted(self.final.items())}
        stuck = "\n  ".join(str(operation) for operation in self.stuck[:12])
        return f"not explained ({self.reason}); after {len(self.order)}: {state}\n  {stuck}"


def check(
    operations: Iterable[Operation], initial: State | None = None, budget: int = BUDGET
) -> Verdict:
    """Whether the operations can be put in order. First the sums, which say most.

    Most operations of unknown outcome that nobody saw anything of did not happen, so orders
    with none of them are looked for first, then with one, then with more.
    """
    relevant = [o for o in operations if o.writes or o.seen or o.collection or o.existed]
    relevant = [o for o in relevant if o.outcome is Outcome.OK or o.writes]
    sums = _counters(relevant)
    if reason := _sums(relevant, initial or {}, sums):
        return Verdict(False, (), dict(initial or {}), tuple(relevant[-3:]), reason)
    if sum(_touches(o, sums) for o in relevant if o.outcome is Outcome.UNKNOWN) > MOST_UNKNOWN:
        # Which of them happened is beyond finding out; that the sums can be, was checked.
        relevant = [_without(operation, sums) for operation in relevant]
        # A query tells of all documents of its collection, so these must not be there, either.
        initial = {path: found for path, found in (initial or {}).items() if path not in sums}
    for unseen in (0, 1, 2, len(relevant)):
        verdict = _Search(relevant, dict(initial or {}), budget // 4, unseen).run()
        if verdict.ok:
            break
    return verdict


def _touches(operation: Operation, paths: Collection[str]) -> bool:
    return any(effect.path in paths for effect in operation.effects)


def _without(operation: Operation, paths: Collection[str]) -> Operation:
    return replace(
        operation,
        effects=tuple(effect for effect in operation.effects if effect.path not in paths),
        seen={path: found for path, found in operation.seen.items() if path not in paths},
    )


def _counters(operations: Sequence[Operation]) -> set[str]:
    """Documents that nothing but increments touches."""
    acts: dict[str, set[Act]] = {}
    for operation in operations:
        for effect in operation.effects:
            acts.setdefault(effect.path, set()).add(effect.act)
    return {path for path, kinds in acts.items() if kinds == {Act.ADD}}


def _sums(operations: Sequence[Operation], initial: State, paths: Collection[str]) -> str:
    """What is wrong with a sum, if anything: each that was read is between what had been
    acknowledged when the read began and what had been asked for when it ended, and none is
    less than what a read before it saw."""
    for path in paths:
        begun = dict(initial.get(path, ())).get(COUNTER, 0)
        added = [
            (operation, effect.amount)
            for operation in operations
            for effect in operation.effects
            if effect.path == path
        ]
        reads = [operation for operation in operations if path in operation.seen]
        for read in reads:
            found = _sum(read, path)
            least = begun + sum(
                n for o, n in added if o.outcome is Outcome.OK and o.end < read.start
            )
            most = begun + sum(n for o, n in added if o.start < read.end)
            if not least <= found <= most:
                return f"{path} shows {found}, of {least} to {most} that it can be: {read}"
            before = max((_sum(o, path) for o in reads if o.end < read.start), default=found)
            if before > found:
                return f"{path} shows {found} after it was {before}: {read}"
    return ""


def _sum(read: Operation, path: str) -> int:
    found: int = dict(read.seen[path] or ()).get(COUNTER, 0)
    return found


class _Search:
    """Depth first, in the order of the hints; a read that fits is taken at once, because it
    changes nothing and can only be in the way later. What was reached (which operations are
    done, what is stored) is not looked at twice."""

    def __init__(
        self, operations: Sequence[Operation], initial: State, budget: int, unseen: int
    ) -> None:
        self._operations = sorted(operations, key=lambda o: (o.start, o.number))
        self._certain = sum(o.outcome is not Outcome.UNKNOWN for o in self._operations)
        self._initial = initial
        self._budget = budget
        self._unseen = self._never_seen()
        self._allowed = unseen
        """How many operations of `_unseen` may have happened."""
        self._done: set[int] = set()
        self._order: list[int] = []

    def _never_seen(self) -> set[int]:
        """Of unknown outcome, and no value of theirs was ever read."""
        values = {
            value
            for operation in self._operations
            for fields in operation.seen.values()
            for value in fields or ()
        }
        return {
            index
            for index, operation in enumerate(self._operations)
            if operation.outcome is Outcome.UNKNOWN
            and not any(value in values for effect in operation.effects for value in effect.fields)
        }

    def run(self) -> Verdict:
        best = self._step(None, self._initial, 0, -inf)
        stack = [best]
        reached: set[Any] = set()
        while stack:
            node = stack[-1]
            if self._finished():
                return Verdict(True, self._numbers(), node.state)
            chosen = next(node.candidates, None)
            if chosen is None:
                self._undo(stack.pop())
                continue
            index, left = chosen
            later = self._step(index, left, node.first, node.latest)
            stack.append(later)
            if later.size > best.size:
                best = later
            ahead = frozenset(i for i in self._done if i > later.first)
            key = (later.first, ahead, frozenset(left.items()))
            if key in reached:
                self._undo(stack.pop())
                continue
            reached.add(key)
            if len(reached) > self._budget:
                return self._failed(best, f"no order among {self._budget} states")
        return self._failed(best, "there is no order")

    def _finished(self) -> bool:
        """All that certainly happened has; what is unknown need not."""
        certain = sum(self._operations[i].outcome is not Outcome.UNKNOWN for i in self._done)
        return certain == self._certain

    def _numbers(self) -> tuple[int, ...]:
        return tuple(self._operations[index].number for index in self._order)

    def _step(self, chosen: int | None, state: State, first: int, latest: float) -> "_Node":
        """Does an operation, then every read that fits; what may come after that."""
        taken: list[int] = []

        def take(index: int) -> None:
            nonlocal first, latest
            taken.append(index)
            self._done.add(index)
            self._order.append(index)
            latest = max(latest, self._operations[index].start)
            while first in self._done:
                first += 1

        if chosen is not None:
            take(chosen)
        while True:
            available = self._available(first, latest)
            leaving = min(
                (o.end for o in map(self._operations.__getitem__, available) if _open_ended(o)),
                default=inf,
            )
            reads = [
                index
                for index in available
                if not (operation := self._operations[index]).effects
                and operation.start <= leaving
                and operation.fits(state)
            ]
            if not reads:
                break
            for index in reads:
                take(index)
        candidates = []
        spent = len(self._unseen & self._done) >= self._allowed
        for index in available:
            operation = self._operations[index]
            if spent and index in self._unseen:
                continue
            if operation.fits(state) and (left := operation.after(state)) is not None:
                candidates.append((index, left))
        candidates.sort(key=lambda pair: self._likely(pair[0]))
        return _Node(state, first, latest, taken, iter(candidates), self._numbers())

    def _likely(self, index: int) -> tuple[bool, bool, float, float]:
        operation = self._operations[index]
        return (index in self._unseen, _open_ended(operation), operation.hint, operation.end)

    def _available(self, first: int, latest: float) -> list[int]:
        """Operations that may come next: nothing that is not done had ended before they began.
        One whose outcome is unknown holds up nobody, but it does not come after what began
        when it was over."""
        found: list[int] = []
        bound = inf
        for index in range(first, len(self._operations)):
            operation = self._operations[index]
            if operation.start > bound:
                break
            if index in self._done:
                continue
            if operation.outcome is Outcome.UNKNOWN:
                if operation.end >= latest:
                    found.append(index)
                continue
            found.append(index)
            bound = min(bound, operation.end)
        return [index for index in found if self._operations[index].start <= bound]

    def _undo(self, node: "_Node") -> None:
        self._done.difference_update(node.taken)
        del self._order[len(self._order) - len(node.taken) :]

    def _failed(self, best: "_Node", reason: str) -> Verdict:
        numbers = set(best.order)
        left = [o for o in self._operations if o.number not in numbers]
        return Verdict(False, best.order, best.state, tuple(left), reason)


@dataclass(frozen=True, slots=True)
class _Node:
    """What was reached: `taken` by its last step, `order` in all."""

    state: State
    first: int
    latest: float
    taken: list[int]
    candidates: Iterator[tuple[int, State]]
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.order)


def _open_ended(operation: Operation) -> bool:
    return operation.outcome is Outcome.UNKNOWN
