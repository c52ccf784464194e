"""What differs between two documents. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crossfade.document import ABSENT, FieldPath, Fields, identical

MAX_DIFFERENCES = 50


@dataclass(frozen=True, slots=True)
class Difference:
    """One differing place. `kind`: value, type, missing, extra or length.

    Missing and extra are said of the mirror. `authority` and `mirror` hold the
    values (ABSENT where there is none); they never leave the process unredacted.
    """

    path: FieldPath
    kind: str
    authority: Any
    mirror: Any


def diff(authority: Fields, mirror: Fields) -> list[Difference]:
    """The differing field paths, at most MAX_DIFFERENCES, in field order."""
    found: list[Difference] = []
    for difference in _maps((), authority, mirror):
        found.append(difference)
        if len(found) == MAX_DIFFERENCES:
            break
    return found


def _maps(path: FieldPath, left: Fields, right: Fields) -> Iterator[Difference]:
    for name in sorted(left.keys() | right.keys()):
        yield from _values((*path, name), left.get(name, ABSENT), right.get(name, ABSENT))


def _values(path: FieldPath, left: Any, right: Any) -> Iterator[Difference]:
    if right is ABSENT:
        yield Difference(path, "missing", left, right)
    elif left is ABSENT:
        yield Difference(path, "extra", left, right)
    elif type(left) is not type(right):
        yield Difference(path, "type", left, right)
    elif isinstance(left, dict):
        yield from _maps(path, left, right)
    elif isinstance(left, list):
        if len(left) != len(right):
            yield Difference(path, "length", left, right)
        for index, (one, other) in enumerate(zip(left, right, strict=False)):
            yield from _values((*path[:-1], f"{path[-1]}[{index}]"), one, other)
    elif not identical(left, right):
        yield Difference(path, "value", left, right)
