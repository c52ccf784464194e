"""What differs between two documents or two result sets. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from crossfade.document import ABSENT, Document, FieldPath, Fields, identical

MAX_DIFFERENCES = 50


@dataclass(frozen=True, slots=True)
class Difference:
    """One differing place. `kind`: value, type, missing, extra, length or order.

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


@dataclass(frozen=True, slots=True)
class ResultDifference:
    """How two result sets differ: paths only in one of them, and whether the order differs."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    reordered: bool

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.reordered)


def diff_results(
    authority: Sequence[Document], mirror: Sequence[Document], *, ordered: bool
) -> ResultDifference:
    """Membership and, when the query orders its result, order. Contents are `diff`'s business."""
    left = [document.path for document in authority]
    right = [document.path for document in mirror]
    ours, theirs = set(left), set(right)
    missing = tuple(path for path in left if path not in theirs)
    extra = tuple(path for path in right if path not in ours)
    shared = ours & theirs
    same_order = [p for p in left if p in shared] == [p for p in right if p in shared]
    return ResultDifference(missing, extra, ordered and not same_order)
