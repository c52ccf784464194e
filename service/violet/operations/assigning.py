"""Miners for a task. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crossfade.document import Document, Fields, Value
from crossfade.errors import FailedPrecondition
from violet.operations import loads, picking
from violet.operations.decision import Decision, rewrite
from violet.operations.fields import at, count, items, text

AWAITING = ("pending", "distributed")
"""Statuses that become "assigned" once there are miners enough."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What came of it. `after`: the task's fields."""

    after: Fields
    assigned: tuple[int, ...] = ()
    already: tuple[int, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    enough: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many miners: 0 is what the task itself says."""

    min_count: int = 0
    max_count: int = 0
    ignore_capacity: bool = False


def assign(
    task: Document,
    candidates: Sequence[int],
    statuses: loads.Statuses,
    wanted: Wanted,
    now: int,
    new_id: Callable[[int], str],
) -> Decision[Assignment]:
    """Those of the candidates that fit, in their order; those that the task has, stay.

    Raises FailedPrecondition for a task that is over.
    """
    fields = task.fields
    has = loads.assigned(fields)
    already = [uid for uid in dict.fromkeys(candidates) if uid in has]
    enough_at = wanted.min_count or count(fields, "min_miner_count") or 1
    if text(fields.get("status")) in loads.OVER:
        raise FailedPrecondition(f"document {task.path}: the task is over")
    most = wanted.max_count or count(fields, "max_miner_count")
    taken: list[int] = []
    refused: list[tuple[int, str]] = []
    for uid in dict.fromkeys(candidates):
        if uid in has:
            continue
        if most and len(has) + len(taken) >= most:
            refused.append((uid, "max_count"))
        elif not wanted.ignore_capacity and not loads.has_room(statuses.get(uid)):
            refused.append((uid, "capacity"))
        else:
            taken.append(uid)
    total = [*has, *taken]
    enough = len(total) >= enough_at
    if not taken:
        answer = Assignment(fields, (), tuple(already), tuple(refused), enough)
        return Decision(answer)
    after = _with_miners(fields, total, taken, now, new_id, enough=enough)
    writes = (*rewrite(task, after), *loads.raise_loads(taken, statuses, now))
    answer = Assignment(after, tuple(taken), tuple(already), tuple(refused), enough)
    return Decision(answer, writes)


def _with_miners(
    fields: Fields,
    total: Sequence[int],
    taken: Sequence[int],
    now: int,
    new_id: Callable[[int], str],
    *,
    enough: bool,
) -> Fields:
    new: list[Value] = [
        {
            "assignment_id": new_id(uid),
            "miner_uid": uid,
            "assigned_at": at(now),
            "status": "pending",
        }
        for uid in taken
    ]
    after: Fields = {
        **fields,
        "task_assignments": [*items(fields.get("task_assignments")), *new],
        "assigned_miners": list(total),
        "actual_miner_count": len(total),
        "updated_at": at(now),
    }
    if enough and text(fields.get("status")) in AWAITING:
        after["status"] = "assigned"
        after["distributed_at"] = at(now)
    return after


def wanted_by(task: Document) -> int:
    return count(task.fields, "required_miner_count") or 1


def candidates_to_read(
    task: Document,
    ranked: Sequence[int],
    known: loads.Statuses,
    task_type: str,
    how_many: int,
    max_age: float,
    now: int,
) -> Sequence[int]:
    """The next of the ranked miners whose statuses are needed: as many as still lack.

    Others are not read, for whatever changes them would be in the way.
    """
    has = loads.assigned(task.fields)
    lacking = (how_many or wanted_by(task)) - len(has)
    lacking -= len(_free(ranked, known, has, task_type, max_age, now))
    unread = [uid for uid in ranked if uid not in known and uid not in has]
    return unread[: max(lacking, 0)]


def auto_assign(
    task: Document,
    ranked: Sequence[int],
    statuses: loads.Statuses,
    task_type: str,
    how_many: int,
    max_age: float,
    now: int,
    new_id: Callable[[int], str],
) -> Decision[Assignment]:
    """Fills the task up to `how_many` miners from those that still are available.

    `ranked` was picked before this transaction: whoever filled up since is passed over.
    """
    has = loads.assigned(task.fields)
    wanted = how_many or wanted_by(task)
    free = _free(ranked, statuses, has, task_type, max_age, now)
    candidates = [*has, *free[: max(wanted - len(has), 0)]]
    limits = Wanted(min_count=1, max_count=wanted)
    return assign(task, candidates, statuses, limits, now, new_id)


def _free(
    ranked: Sequence[int],
    statuses: loads.Statuses,
    has: Sequence[int],
    task_type: str,
    max_age: float,
    now: int,
) -> list[int]:
    """Those of the miners, best first, that are available by the statuses that are known."""
    return [
        uid
        for uid in ranked
        if uid not in has
        and (status := statuses.get(uid)) is not None
        and picking.is_available(status.fields, task_type, now, max_age)
    ]
