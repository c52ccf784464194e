"""What the fields of the proxy server's documents mean, whoever wrote them. Pure.

One field comes as an integer from one writer and as a double, a text or a list from
another: nothing here raises for a value of another type, it only has no meaning.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from crossfade.document import Fields, from_micros, to_micros

INIT = "_init"
"""The id of the document that every collection got when the database was set up."""


def number(value: Any) -> int | float | None:
    """A finite number, else None. Booleans are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """An integer, also as a double (48.0), else None."""
    found = number(value)
    if isinstance(found, float):
        return int(found) if found.is_integer() and -(2.0**63) <= found < 2.0**63 else None
    return found


def count(fields: Mapping[str, Any], name: str) -> int:
    """A field that says how many; 0 where it says nothing."""
    return max(whole(fields.get(name)) or 0, 0)


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def uids(value: Any) -> list[int]:
    """The miners of a list, each once."""
    found = (whole(item) for item in items(value))
    return list(dict.fromkeys(uid for uid in found if uid is not None))


def moment(value: Any) -> datetime | None:
    """A time: a timestamp, or a text as validators post it, in UTC unless it says otherwise."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.utcoffset() is None else found.astimezone(UTC)


def age(fields: Mapping[str, Any], names: tuple[str, ...], now: int) -> float | None:
    """Seconds since the first of the times that is there, at `now` (microseconds)."""
    for name in names:
        found = moment(fields.get(name))
        if found is not None:
            return (now - to_micros(found)) / 1e6
    return None


def at(now: int) -> datetime:
    """The time that documents hold for `now`."""
    return from_micros(now)


def specializes(specialization: Any, task_type: str) -> bool:
    """Whether a miner takes tasks of the type. Statistics by type, words with commas, or a
    list; one that says nothing takes all."""
    if isinstance(specialization, str):
        words = {word.strip() for word in specialization.split(",")} - {""}
    elif isinstance(specialization, dict):
        words = set(specialization)
    else:
        words = {word for word in items(specialization) if isinstance(word, str)}
    return not words or not task_type or task_type in words


def with_defaults(fields: Fields, defaults: Fields) -> Fields:
    """The fields, and those of the defaults that are absent. A null is there."""
    return {**defaults, **fields}
