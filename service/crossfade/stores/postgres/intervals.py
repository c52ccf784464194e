"""A range of names as intervals of paths in byte order, which is what indexes have. Pure.

Firestore orders names segment by segment, PostgreSQL's indexes order whole paths by bytes,
and the two disagree wherever an id goes on with a character below "/" ("a-1" sorts before
"a/b" by bytes and behind it as a name). So a range of names is no interval of paths but a
few of them, exactly; only among numeric ids (__id7__), which names order by number, more
is covered than is meant. An index then finds a page's rows in a table of any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from crossfade.document import INT64_MAX, INT64_MIN, numeric_id, path_key
from crossfade.mapping import escape_path

Interval: TypeAlias = tuple[str, str]
"""The texts from the first one on and before the second."""

END = "\U0010ffff" * 400
"""Behind every path: no segment has room for so much."""
MAX_DIGITS = 19
"""Of a number of 64 bits."""
_NEXT = "\1"
"""A text with this behind it is the next one: escaped paths hold no NUL."""


@dataclass(frozen=True, slots=True)
class Span:
    """The names behind `after` (or from it on, where `included`) up to and with `upto` (or
    before it, where `excluded`); None: no bound."""

    after: str | None = None
    upto: str | None = None
    included: bool = False
    excluded: bool = False

    def holds(self, path: str) -> bool:
        key = path_key(path)
        if self.after is not None:
            low = path_key(self.after)
            if key < low or (key == low and not self.included):
                return False
        if self.upto is not None:
            high = path_key(self.upto)
            return key < high or (key == high and not self.excluded)
        return True

    def intervals(self) -> list[Interval]:
        """Disjoint, in order; of escaped paths."""
        low = [] if self.after is None else escape_path(self.after).split("/")
        high = [] if self.upto is None else escape_path(self.upto).split("/")
        shared = 0
        while shared < min(len(low), len(high)) and low[shared] == high[shared]:
            shared += 1
        found: list[Interval] = []
        for level in range(shared, len(high)):
            before = _before(high, level)
            found.append(_alone(before + high[level]))
            if level > shared or level >= len(low):
                found += _less(before, high[level])
        if shared < min(len(low), len(high)):
            before = _before(low, shared)
            found += _between(before, low[shared], high[shared])
        if self.after is None and self.upto is None:
            return [("", END)]
        if low:
            own = "/".join(low)
            found.append(_alone(own))
            if shared < len(low):
                found.append((own + "/", own + "0"))
            first = shared + 1 if high else shared
            for level in range(first, len(low)):
                found += _greater(_before(low, level), low[level])
        return union(found)


def _before(segments: Sequence[str], level: int) -> str:
    return "".join(segment + "/" for segment in segments[:level])


def _alone(path: str) -> Interval:
    return path, path + _NEXT


def _end(before: str) -> str:
    """The end of all that begins with it."""
    return before[:-1] + "0" if before else END


def _between(before: str, low: str, high: str) -> list[Interval]:
    """What lies below `before` in segments between these two."""
    first, last = numeric_id(low), numeric_id(high)
    if first is not None:
        if last is not None:
            return _numbers(before, first, last)
        return [*_numbers(before, first, INT64_MAX), *_less_plain(before, high)]
    if last is not None:
        return []
    return intersection(union(_greater_plain(before, low)), union(_less_plain(before, high)))


def _greater(before: str, segment: str) -> list[Interval]:
    number = numeric_id(segment)
    if number is None:
        return _greater_plain(before, segment)
    return [*_numbers(before, number, INT64_MAX), (before, _end(before))]


def _less(before: str, segment: str) -> list[Interval]:
    number = numeric_id(segment)
    if number is not None:
        return _numbers(before, INT64_MIN, number)
    # Numeric ids come before all others.
    return [(before + "__id", before + "__ie"), *_less_plain(before, segment)]


def _greater_plain(before: str, segment: str) -> list[Interval]:
    whole = before + segment
    rest = difference([(whole + "0", _end(before))], _below_shorter(before, segment))
    return [(whole + _NEXT, whole + "/"), *rest]


def _less_plain(before: str, segment: str) -> list[Interval]:
    return [(before, before + segment), *_below_shorter(before, segment)]


def _below_shorter(before: str, segment: str) -> list[Interval]:
    """What lies below ids that this one begins with: before it as names, and by their bytes
    behind it where it goes on below "/"."""
    return [
        (before + segment[:size] + "/", before + segment[:size] + "0")
        for size in range(len(segment) - 1, 0, -1)
        if segment[size] < "/"
    ]


def _numbers(before: str, first: int, last: int) -> list[Interval]:
    """Numeric ids between two. Those with as many digits sort by number, so of a page's few
    only its own are covered; over several lengths all may be."""
    found = []
    for negative in (True, False):
        for digits in range(1, MAX_DIGITS + 1):
            low, high = 10 ** (digits - 1), 10**digits - 1
            if negative:
                low, high = max(low, -last), min(high, -first)
            else:
                low, high = max(low, first), min(high, last)
            if low <= high:
                sign = "-" if negative else ""
                start = f"{before}__id{sign}"
                found.append((f"{start}{low}", f"{start}{high}__0"))
    return found


# --- sets of intervals -------------------------------------------------------------------------


def union(intervals: Sequence[Interval]) -> list[Interval]:
    """As few as it takes, disjoint and in order."""
    found: list[Interval] = []
    for low, high in sorted(intervals):
        if low >= high:
            continue
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def intersection(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """Of two that are disjoint and in order."""
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        low = max(left[i][0], right[j][0])
        high = min(left[i][1], right[j][1])
        if low < high:
            found.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def difference(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """What is in the first and not in the second."""
    found = list(left)
    for low, high in right:
        found = intersection(found, [("", low), (high, END + _NEXT)])
    return found


def behind(intervals: Sequence[Interval], key: str) -> list[Interval]:
    """What is left of them behind a key."""
    return intersection(intervals, [(key + _NEXT, END + _NEXT)])


# --- of one table ------------------------------------------------------------------------------


def below(intervals: Sequence[Interval], prefix: str) -> list[Interval]:
    """Intervals of paths as intervals of what stands behind `prefix` in them."""
    found = []
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    for low, high in intersection(intervals, [(prefix, end)]):
        found.append((low[len(prefix) :], END if high == end else high[len(prefix) :]))
    return found


def nested(intervals: Sequence[Interval], root: str) -> list[Interval]:
    """Intervals of paths ROOT/PARENT/COLLECTION/ID as intervals of PARENT/ID: of every parent
    all, so more may be covered than is meant."""
    return union(
        [
            (_parent(low, "/"), END if high == END else _parent(high, "0"))
            for low, high in below(intervals, f"{root}/")
        ]
    )


def _parent(text: str, end: str) -> str:
    parent, slash, _ = text.partition("/")
    return parent + end if slash else parent
