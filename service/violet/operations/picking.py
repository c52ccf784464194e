"""Which miners are available, and which of them are better. Pure.

There were three rules of one name, and none of them worked: one compared aware times
with naive ones and found nobody, one took every miner as soon as one had the type, one
took miners that were last seen days ago. This is the rule that they meant.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crossfade.document import Document, document_id
from violet.operations import loads
from violet.operations.fields import INIT, age, number, specializes, whole

MAX_AGE = 15 * 60.0
"""Seconds. A miner that was reported longer ago is not offered."""
SEEN = ("last_seen", "last_updated", "updated_at")
_WEIGHTS = {"performance": 0.4, "free": 0.3, "availability": 0.2, "stake": 0.1}
_STAKE = 1_000.0
"""The stake that is worth half of what stake can be worth."""


@dataclass(frozen=True, slots=True)
class Available:
    uid: int
    score: float
    status: Document


def uid_of(status: Document) -> int | None:
    """By the document's id: some writers' documents have no field of it."""
    try:
        return int(document_id(status.path))
    except ValueError:
        return whole(status.fields.get("uid"))


def is_available(status: Mapping[str, Any], task_type: str, now: int, max_age: float) -> bool:
    seen = age(status, ("last_seen",), now)
    return (
        status.get("is_serving") is True
        and seen is not None
        and seen <= max_age
        and loads.load(status) < loads.capacity(status)
        and specializes(status.get("task_type_specialization"), task_type)
    )


def score(status: Mapping[str, Any]) -> float:
    """0..1: how good, how free, how available and how much at stake."""
    capacity = loads.capacity(status)
    stake = max(number(status.get("stake")) or 0, 0)
    parts = {
        "performance": _share(status.get("performance_score"), 0.0),
        "free": 1 - min(loads.load(status) / capacity, 1.0) if capacity else 0.0,
        "availability": _share(status.get("availability_score"), 0.5),
        "stake": stake / (stake + _STAKE),
    }
    return sum(weight * parts[name] for name, weight in _WEIGHTS.items())


def pick(
    statuses: Iterable[Document], task_type: str, now: int, *, limit: int, max_age: float = MAX_AGE
) -> list[Available]:
    """The best first; of equal ones that of the lower uid."""
    found = []
    for status in statuses:
        uid = uid_of(status)
        if uid is None or document_id(status.path) == INIT:
            continue
        if is_available(status.fields, task_type, now, max_age):
            found.append(Available(uid, score(status.fields), status))
    found.sort(key=lambda miner: (-miner.score, miner.uid))
    return found[:limit]


def _share(value: Any, absent: float) -> float:
    found = number(value)
    return absent if found is None else min(max(float(found), 0.0), 1.0)
