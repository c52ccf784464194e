"""Named rules under which a difference does not count. Pure.

A rule can only take differences away, and says its name for each that it took.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from math import isfinite

from crossfade.diff import Difference, Kind, Place
from crossfade.document import FieldPath


@dataclass(frozen=True, slots=True)
class Rule:
    """`fields`: it holds at these field paths and below them; items of arrays have their
    array's path.

    Without a bound it ignores the differences (`kinds`: only these). With bounds it lets
    pass values of one type that are near each other: numbers by no more than `absolute`, or
    than `relative` (a share of the greater one); times by no more than `skew` seconds.
    """

    name: str
    fields: tuple[FieldPath, ...]
    kinds: frozenset[Kind] | None = None
    absolute: float | None = None
    relative: float | None = None
    skew: float | None = None

    def covers(self, difference: Difference) -> bool:
        if not is_under(difference.place, self.fields):
            return False
        if self.absolute is None and self.relative is None and self.skew is None:
            return self.kinds is None or difference.kind in self.kinds
        return difference.kind is Kind.VALUE and self._near(difference)

    def _near(self, difference: Difference) -> bool:
        left, right = difference.authority, difference.mirror
        if isinstance(left, datetime):
            apart = abs((left - right).total_seconds())
            return self.skew is not None and apart <= self.skew
        if isinstance(left, bool) or not isinstance(left, int | float):
            return False
        # An infinity is near nothing, though infinity <= infinity.
        if not (isfinite(left) and isfinite(right)):
            return False
        allowed = 0.0
        if self.absolute is not None:
            allowed = self.absolute
        if self.relative is not None:
            allowed = max(allowed, self.relative * max(abs(left), abs(right)))
        bounded = self.absolute is not None or self.relative is not None
        return bounded and abs(left - right) <= allowed


def sift(
    differences: Iterable[Difference], rules: Iterable[Rule]
) -> Iterator[tuple[Difference, Rule | None]]:
    """Each difference with the first rule that covers it; None: it counts."""
    known = tuple(rules)
    for difference in differences:
        yield difference, next((rule for rule in known if rule.covers(difference)), None)


def is_under(place: Place, fields: Iterable[FieldPath]) -> bool:
    """Whether the place is one of the fields, or lies within one."""
    path = tuple(part for part in place if isinstance(part, str))
    return any(path[: len(field)] == field for field in fields)
