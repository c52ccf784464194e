"""The load of miners: who may take one more task, and what a task holds. Pure.

A task holds one unit of load of each miner that it is assigned to. What says so is the
miner's element in `task_assignments`: while its status is one of `HOLDING` the unit is
held, and whatever gives it back changes that status in the same transaction. So it is
given back once, by the response, the end of the task, or its deletion, whichever is first.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from crossfade.document import INT64_MAX, Document, Fields
from crossfade.write import Write
from violet.operations.decision import put, rewrite
from violet.operations.fields import at, items, number, text, uids, whole

DEFAULT_CAPACITY = 5
"""Tasks at a time, where a miner's status does not say."""
HOLDING = ("pending", "assigned", "in_progress", "processing", "")
OVER = ("completed", "approved", "done", "failed", "cancelled")
"""Statuses of tasks whose work has ended."""

Statuses = Mapping[int, Document | None]


def status_path(uid: int) -> str:
    return f"miner_status/{uid}"


def load(status: Mapping[str, Any]) -> int | float:
    """The tasks that a miner has, by its status document."""
    found = number(status.get("current_load"))
    if found is None:
        found = number(status.get("assigned_task_count"))
    return found or 0


def capacity(status: Mapping[str, Any]) -> int | float:
    found = number(status.get("max_capacity"))
    return DEFAULT_CAPACITY if found is None else max(found, 0)


def has_room(status: Document | None) -> bool:
    fields = {} if status is None else status.fields
    return load(fields) + 1 <= capacity(fields)


def adjusted(uid: int, status: Document | None, delta: int, now: int) -> Fields:
    """The status with `delta` more load, between 0 and the capacity. What was a double
    stays one."""
    fields = {} if status is None else status.fields
    before, counted = load(fields), whole(fields.get("assigned_task_count")) or 0
    most = max(capacity(fields), before)  # what is over its capacity is not cut here
    return {
        "uid": uid,
        **fields,
        "current_load": _like(before, min(max(before + delta, 0), most)),
        "assigned_task_count": min(max(counted + delta, 0), INT64_MAX),
        "updated_at": at(now),
    }


def raise_loads(miners: Iterable[int], statuses: Statuses, now: int) -> tuple[Write, ...]:
    """A miner without a status gets one, that says nothing but its load. It is not serving."""
    writes: list[Write] = []
    for uid in miners:
        status = statuses.get(uid)
        writes += put(status, status_path(uid), adjusted_up(uid, status, now))
    return tuple(writes)


def adjusted_up(uid: int, status: Document | None, now: int) -> Fields:
    """One task more, though it may be over the capacity: whoever asks has looked."""
    fields = adjusted(uid, status, 1, now)
    before = {} if status is None else status.fields
    return {**fields, "current_load": load(before) + 1}


def _like(before: float, after: float) -> int | float:
    return float(after) if isinstance(before, float) else min(after, INT64_MAX)


def lower_loads(miners: Iterable[int], statuses: Statuses, now: int) -> tuple[Write, ...]:
    """A miner whose status is gone has no load to lower."""
    writes: list[Write] = []
    for uid in miners:
        status = statuses.get(uid)
        if status is not None:
            writes += rewrite(status, adjusted(uid, status, -1, now))
    return tuple(writes)


def assigned(task: Mapping[str, Any]) -> list[int]:
    """The miners of a task. Some writers keep only the assignments, some only the list."""
    listed = uids(task.get("assigned_miners"))
    return list(dict.fromkeys([*listed, *_by_miner(task)]))


def held(task: Mapping[str, Any], status: str) -> list[int]:
    """The miners whose load the task holds while its status is `status`.

    A miner without an element was assigned by a writer that keeps none: it is held until
    the work ends. Assignments that are no list are not understood, and hold nothing.
    """
    if not isinstance(task.get("task_assignments", []), list):
        return []
    elements = _by_miner(task)
    return [
        uid
        for uid in assigned(task)
        if (elements[uid] in HOLDING if uid in elements else status not in OVER)
    ]


def released(task: Fields, miners: Iterable[int], word: str, now: int) -> list[Any]:
    """The assignments once the miners' load is given back: `word` is what became of them."""
    going, known = set(miners), _by_miner(task)
    over: Fields = {"status": word, "completed_at": at(now)}
    after = [
        {**element, **over} if _miner(element) in going else element
        for element in items(task.get("task_assignments"))
    ]
    # Of a writer that keeps no elements: this one says that it was given back.
    return [*after, *({"miner_uid": uid, **over} for uid in sorted(going - known.keys()))]


def _by_miner(task: Mapping[str, Any]) -> dict[int, str]:
    """The status of each miner's assignment; of several, one that holds."""
    found: dict[int, str] = {}
    for element in items(task.get("task_assignments")):
        uid = _miner(element)
        if uid is not None and found.get(uid) not in HOLDING:
            found[uid] = text(element.get("status"))
    return found


def _miner(element: Any) -> int | None:
    return whole(element.get("miner_uid")) if isinstance(element, dict) else None
