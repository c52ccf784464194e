"""Tasks: their life from creation to archive. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from crossfade.document import Document, Fields, document_id
from crossfade.errors import FailedPrecondition, InvalidArgument
from crossfade.write import Write, apply
from violet import tables
from violet.operations import loads, responses
from violet.operations.decision import Decision, put, rewrite
from violet.operations.fields import age, at, items, text, whole, with_defaults

OPEN = tables.OPEN_STATUSES
"""Statuses of tasks that somebody works at, or is to. Two of the words mean the same, of
two eras: whoever asks for one of them only misses the other's tasks."""
STATUSES = tables.TASK_STATUSES
BEGUN = ("distributed_at", "updated_at", "created_at")
STALE_AFTER = 30 * 60.0
APPROVED = "approved"


def path_of(task_id: str) -> str:
    return f"tasks/{task_id}"


# --- creation and change -----------------------------------------------------------------------


def create(task_id: str, fields: Fields, now: int) -> Decision[Fields]:
    """A new task. That there is none of the id is the write's own condition.

    Only what every task has is set where it is absent: what else a caller leaves out stays
    left out, for absent is not null.
    """
    if fields.get("task_id", task_id) != task_id:
        raise InvalidArgument("fields.task_id: it is not the task_id of the request")
    times: Fields = {"created_at": at(now), "updated_at": at(now)}
    after = with_defaults(fields, {"task_id": task_id, "status": "pending", **times})
    return Decision(after, (Write(path_of(task_id), after, exists=False),))


@dataclass(frozen=True, slots=True)
class Changed:
    """`after`: the task's fields. `released`: the miners whose load was given back."""

    after: Fields
    released: tuple[int, ...] = ()


def changed(task: Document, update: Write, now: int) -> Fields:
    """The fields after an update; its time is noted unless the update sets it."""
    after = apply(update, task, now).fields or {}
    named = {path[0] for path in update.mask or ()}
    named |= {transform.path[0] for transform in update.transforms}
    return after if "updated_at" in named else {**after, "updated_at": at(now)}


def ending(task: Document, after: Fields) -> list[int]:
    """The miners whose load a change gives back: none, unless the task is over after it."""
    if text(after.get("status")) not in loads.OVER:
        return []
    return loads.held(after, text(task.fields.get("status")))


def change(
    task: Document,
    update: Write,
    statuses: loads.Statuses,
    now: int,
    from_statuses: Collection[str] = (),
) -> Decision[Changed]:
    """Any update of a task. The first that ends it gives back the load that it holds.

    Raises FailedPrecondition where the status is none of `from_statuses`.
    """
    before = text(task.fields.get("status"))
    if from_statuses and before not in from_statuses:
        raise FailedPrecondition(f"document {task.path}: its status is not one of those asked for")
    after = changed(task, update, now)
    if after.get("task_id", document_id(task.path)) != document_id(task.path):
        raise InvalidArgument("fields.task_id: a task's id cannot be changed")
    return _ended(task, after, statuses, now)


def _ended(
    task: Document, after: Fields, statuses: loads.Statuses, now: int, extra: tuple[Write, ...] = ()
) -> Decision[Changed]:
    giving = ending(task, after)
    if giving:
        word = text(after.get("status"))
        after = {**after, "task_assignments": loads.released(after, giving, word, now)}
    writes = (*rewrite(task, after), *loads.lower_loads(giving, statuses, now), *extra)
    return Decision(Changed(after, tuple(giving)), writes)


def settle_stale(
    task: Document,
    statuses: loads.Statuses,
    now: int,
    *,
    asked: Collection[str],
    older_than: float,
    without_response: str,
    with_response: str,
) -> Decision[Changed] | None:
    """Ends a task that is in one of the statuses for too long; None: it is not stale.

    `with_response` "" leaves tasks that somebody has responded to.
    """
    fields = task.fields
    since = age(fields, BEGUN, now)
    word = with_response if responses.stored(fields) else without_response
    if text(fields.get("status")) not in asked or since is None or since <= older_than or not word:
        return None
    after: Fields = {**fields, "status": word, "updated_at": at(now)}
    return _ended(task, after, statuses, now)


def requeue(task: Document, statuses: loads.Statuses, now: int) -> Decision[Changed] | None:
    """A failed task as if nobody had had it; None: it has not failed."""
    fields = task.fields
    if text(fields.get("status")) != "failed":
        return None
    giving = loads.held(fields, "failed")
    after: Fields = {
        **fields,
        "status": "pending",
        "assigned_miners": [],
        "task_assignments": [],
        "miner_responses": [],
        "updated_at": at(now),
    }
    if "response_count" in fields:
        after["response_count"] = 0
    if "actual_miner_count" in fields:
        after["actual_miner_count"] = 0
    writes = (*rewrite(task, after), *loads.lower_loads(giving, statuses, now))
    return Decision(Changed(after, tuple(giving)), writes)


# --- the end -----------------------------------------------------------------------------------


def still_held(task: Document) -> list[int]:
    return loads.held(task.fields, text(task.fields.get("status")))


def delete(
    task: Document | None, belongings: Sequence[str], statuses: loads.Statuses, now: int
) -> Decision[bool]:
    """The task and the documents at the paths of `belongings`."""
    writes: list[Write] = [Write(path, None) for path in belongings]
    if task is not None:
        writes += [Write(task.path, None), *loads.lower_loads(still_held(task), statuses, now)]
    return Decision(task is not None, tuple(writes))


def archive(
    task: Document, archived: Document | None, statuses: loads.Statuses, now: int
) -> Decision[Fields]:
    """The copy is exact: nothing says in it that it is one."""
    path = f"archived_tasks/{document_id(task.path)}"
    return Decision(
        task.fields,
        (
            *put(archived, path, task.fields),
            Write(task.path, None),
            *loads.lower_loads(still_held(task), statuses, now),
        ),
    )


def without_chunks(task: Document, chunks: Sequence[str], now: int, *, more: bool) -> Decision[int]:
    """Deletes audio chunks of a task; its file says so, once there are no `more` of them."""
    file = task.fields.get("input_file")
    writes: list[Write] = [Write(path, None) for path in chunks]
    if not more and isinstance(file, dict) and file.get("chunks_cleaned") is not True:
        cleaned: Fields = {**file, "chunks_cleaned": True, "chunks_cleaned_at": at(now)}
        writes += rewrite(task, {**task.fields, "input_file": cleaned})
    return Decision(len(writes), tuple(writes))


# --- validators --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    first: bool
    by: tuple[str, ...]


def seen_by(task: Document, validator: str) -> bool:
    return validator in items(task.fields.get("validators_seen"))


def mark_seen(task: Document, validator: str, seen_at: int) -> Decision[Seen]:
    """Notes that a validator has seen the task: who is told `first` may reward it."""
    fields = task.fields
    names = items(fields.get("validators_seen"))
    by = tuple(name for name in names if isinstance(name, str))
    if validator in by:
        return Decision(Seen(False, by))
    times = fields.get("validators_seen_timestamps")
    times = times if isinstance(times, dict) else {}
    after: Fields = {
        **fields,
        "validators_seen": [*names, validator],
        "validators_seen_timestamps": {**times, validator: at(seen_at)},
    }
    return Decision(Seen(True, (*by, validator)), rewrite(task, after))


def awaits_evaluation(task: Document, validator_uid: int | None, validator: str) -> bool:
    """Whether a task, completed, is still to be shown to the validator."""
    fields = task.fields
    mine = validator_uid is not None and whole(fields.get("evaluated_by")) == validator_uid
    return not mine and not (validator and seen_by(task, validator))


@dataclass(frozen=True, slots=True)
class Evaluated:
    evaluation: Fields
    accepted: bool


def evaluate(
    task: Document,
    earlier: Document | None,
    path: str,
    validator_uid: int,
    fields: Fields,
    status: str,
    statuses: loads.Statuses,
    now: int,
) -> Decision[Evaluated]:
    """The evaluation at `path` and the task's new status together; a validator's second
    one changes nothing."""
    if earlier is not None:
        return Decision(Evaluated(earlier.fields, accepted=False))
    own: Fields = {"task_id": document_id(task.path), "validator_uid": validator_uid}
    stamp: Fields = {"evaluated_at": at(now)}
    if "task_type" in task.fields:
        stamp["task_type"] = task.fields["task_type"]
    evaluation = {**stamp, **fields, **own}
    after: Fields = {
        **task.fields,
        "status": status or APPROVED,
        "evaluated_by": validator_uid,
        "evaluated_at": at(now),
        "updated_at": at(now),
    }
    ended = _ended(task, after, statuses, now, (Write(path, evaluation),))
    return Decision(Evaluated(evaluation, accepted=True), ended.writes)
