"""What miners answer. Pure.

Responses came in three shapes, in one array, or in a map by miner; all of them are
read, and a new one is added to what is there in the shape of the path that is not
buffered. A miner responds to a task once.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossfade.document import Document, Fields
from crossfade.errors import FailedPrecondition
from violet.operations import loads
from violet.operations.decision import Decision, rewrite
from violet.operations.fields import at, count, items, number, text, whole

FAILED = ("failed", "error")
STARTED = ("pending", "assigned", "distributed")
"""Statuses that a first response turns into in_progress."""


@dataclass(frozen=True, slots=True)
class Added:
    """`after`: the task's fields; `response`: the new one, or the miner's earlier one."""

    after: Fields
    response: Mapping[str, Any]
    accepted: bool
    responses: int
    completed: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    status: str
    assigned: tuple[int, ...]
    responded: tuple[int, ...]
    by_status: Mapping[str, int]
    best: Any = None

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(uid for uid in self.assigned if uid not in self.responded)


def stored(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The responses of a task, whatever holds them. A map's keys are miners."""
    value = task.get("miner_responses")
    if isinstance(value, dict):
        return [
            {"miner_uid": _key(name), **(item if isinstance(item, dict) else {})}
            for name, item in value.items()
        ]
    return [item for item in items(value) if isinstance(item, dict)]


def miner_of(response: Mapping[str, Any]) -> int | None:
    """At the top, or inside of what was flushed from a buffer."""
    found = whole(response.get("miner_uid"))
    inner = response.get("response")
    if found is None and isinstance(inner, dict):
        return whole(inner.get("miner_uid"))
    return found


def status_of(response: Mapping[str, Any]) -> str:
    inner = response.get("response")
    found = text(response.get("status"))
    return found or (text(inner.get("status")) if isinstance(inner, dict) else "")


def completes(task: Document, complete_after: int) -> bool:
    """Whether one more response ends the task's work."""
    fields = task.fields
    miners = loads.assigned(fields)
    needed = complete_after or len(miners) or count(fields, "required_miner_count") or 1
    over = text(fields.get("status")) in loads.OVER
    return len(stored(fields)) + 1 >= needed and not over


def giving(task: Document, uid: int, complete_after: int) -> list[int]:
    """The miners whose load a response gives back: its own, or with the task's end all that
    are still held."""
    holding = loads.held(task.fields, text(task.fields.get("status")))
    if completes(task, complete_after):
        return holding
    return [miner for miner in holding if miner == uid]


def add(
    task: Document,
    uid: int,
    response: Fields,
    statuses: loads.Statuses,
    now: int,
    response_id: str,
    *,
    complete_after: int = 0,
    assigned_only: bool = False,
) -> Decision[Added]:
    """Adds a miner's response, gives its load back, and ends the task if it was the last.

    Raises FailedPrecondition for a miner without the task, if that is asked for.
    """
    fields = task.fields
    before = stored(fields)
    miners = loads.assigned(fields)
    for earlier in before:
        if miner_of(earlier) == uid:
            added = Added(fields, earlier, accepted=False, responses=len(before))
            return Decision(added)
    if assigned_only and uid not in miners:
        raise FailedPrecondition(f"document {task.path}: it is not assigned to miner {uid}")
    element: Fields = {"response_id": response_id, "submitted_at": at(now), "status": "completed"}
    element = {**element, **response, "miner_uid": uid}
    responded = {miner_of(item) for item in before} | {uid}
    completed = completes(task, complete_after)
    after: Fields = {
        **fields,
        "miner_responses": _with(fields.get("miner_responses"), uid, element),
        "response_count": len(before) + 1,
        "last_response_at": at(now),
        "updated_at": at(now),
    }
    if completed:
        after |= {"status": "completed", "completed_at": at(now)}
    elif text(fields.get("status")) in STARTED:
        after["status"] = "in_progress"
    if miners and responded >= set(miners):
        after["all_miners_completed_at"] = at(now)
    going = giving(task, uid, complete_after)
    if going:
        after["task_assignments"] = loads.released(fields, going, "completed", now)
    writes = (*rewrite(task, after), *loads.lower_loads(going, statuses, now))
    return Decision(Added(after, element, True, len(before) + 1, completed), writes)


def drop_failed(task: Document, now: int) -> Decision[Fields]:
    """The task without the responses that failed; those miners may respond again."""
    fields = task.fields
    value = fields.get("miner_responses")
    kept: Any
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if not _failed(item)}
    else:
        value = items(value)
        kept = [item for item in value if not _failed(item)]
    if len(kept) == len(value):
        return Decision(fields)
    after: Fields = {
        **fields,
        "miner_responses": kept,
        "response_count": len(kept),
        "updated_at": at(now),
    }
    return Decision(after, rewrite(task, after))


def completion(task: Mapping[str, Any]) -> Completion:
    responses = stored(task)
    found = [miner_of(response) for response in responses]
    by_status = Counter(status_of(response) for response in responses)
    rated = [response for response in responses if _rating(response) is not None]
    return Completion(
        status=text(task.get("status")),
        assigned=tuple(loads.assigned(task)),
        responded=tuple(dict.fromkeys(uid for uid in found if uid is not None)),
        by_status=by_status,
        best=max(rated, key=_rating, default=None),  # type: ignore[arg-type]
    )


def _rating(response: Mapping[str, Any]) -> tuple[float, float] | None:
    """By accuracy, then speed: at the top, or as deep as the shapes have them."""
    for part in _parts(response):
        accuracy, speed = number(part.get("accuracy_score")), number(part.get("speed_score"))
        if accuracy is not None or speed is not None:
            return float(accuracy or 0), float(speed or 0)
    return None


def _parts(response: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = [response]
    for part in found:
        found += [
            inner
            for name in ("response", "response_data")
            if isinstance(inner := part.get(name), dict)
        ]
    return found


def _failed(item: Any) -> bool:
    return isinstance(item, dict) and status_of(item) in FAILED


def _with(value: Any, uid: int, element: Fields) -> Any:
    if isinstance(value, dict):
        return {**value, str(uid): element}
    return [*items(value), element]


def _key(name: str) -> Any:
    return int(name) if name.isascii() and name.isdigit() and len(name) < 19 else name
