"""What differs between two documents, and between two results. Pure.

A place is a field path with the indices of arrays in it: `items[2].price`. Missing,
extra, order and length are said of the mirror.
"""

import struct
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, TypeAlias

from crossfade import redaction
from crossfade.document import ABSENT, Fields, GeoPoint, format_field_path, identical

MAX_DIFFERENCES = 50

Place: TypeAlias = tuple[str | int, ...]
"""Names of fields and indices of arrays, from the outside inwards."""


class Kind(StrEnum):
    """`order`: an array with the same items in another order. `length`: an array with more
    or fewer items; those that both have are compared as well."""

    VALUE = "value"
    TYPE = "type"
    MISSING = "missing"
    EXTRA = "extra"
    ORDER = "order"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Difference:
    """One differing place. `authority` and `mirror` hold the values (ABSENT where there is
    none); they never leave the process unredacted."""

    place: Place
    kind: Kind
    authority: Any
    mirror: Any

    def __str__(self) -> str:
        """The place and the kind, never a value."""
        return f"{format_place(self.place)} ({self.kind})".lstrip()


def diff(authority: Fields, mirror: Fields) -> list[Difference]:
    """The differing places, at most MAX_DIFFERENCES, in the order of the names."""
    return list(islice(differences(authority, mirror), MAX_DIFFERENCES))


def differences(authority: Fields, mirror: Fields) -> Iterator[Difference]:
    """All of them. None means that the documents are identical."""
    return _maps((), authority, mirror)


def _maps(place: Place, left: Fields, right: Fields) -> Iterator[Difference]:
    for name in sorted(left.keys() | right.keys()):
        yield from _values((*place, name), left.get(name, ABSENT), right.get(name, ABSENT))


def _values(place: Place, left: Any, right: Any) -> Iterator[Difference]:
    if right is ABSENT:
        yield Difference(place, Kind.MISSING, left, right)
    elif left is ABSENT:
        yield Difference(place, Kind.EXTRA, left, right)
    elif type(left) is not type(right):
        yield Difference(place, Kind.TYPE, left, right)
    elif isinstance(left, dict):
        yield from _maps(place, left, right)
    elif isinstance(left, list):
        yield from _arrays(place, left, right)
    elif not identical(left, right):
        yield Difference(place, Kind.VALUE, left, right)


def _arrays(place: Place, left: list[Any], right: list[Any]) -> Iterator[Difference]:
    if len(left) != len(right):
        yield Difference(place, Kind.LENGTH, left, right)
    elif not identical(left, right) and _items(left) == _items(right):
        # One difference, and not one for each item that stands elsewhere.
        yield Difference(place, Kind.ORDER, left, right)
        return
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        yield from _values((*place, index), one, other)


def _items(values: list[Any]) -> Counter[Hashable]:
    return Counter(map(_exact, values))


def _exact(value: Any) -> Hashable:
    """Equal exactly for identical values."""
    if isinstance(value, float):
        return float, "nan" if value != value else struct.pack(">d", value)
    if isinstance(value, dict):
        return dict, frozenset((name, _exact(item)) for name, item in value.items())
    if isinstance(value, list):
        return list, tuple(map(_exact, value))
    if isinstance(value, GeoPoint):
        return GeoPoint, _exact(value.latitude), _exact(value.longitude)
    return type(value), value


def format_place(place: Place) -> str:
    """As a field path, with `[n]` for the items of arrays. Names that may be somebody's data
    are hidden."""
    text, key_of = "", redaction.present().key_of_map
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + format_field_path((key_of(part),))
    return text


# --- results -----------------------------------------------------------------------------------


def displaced(authority: Sequence[str], mirror: Sequence[str]) -> str | None:
    """The first path that two results with the same members have at another position."""
    for one, other in zip(authority, mirror, strict=False):
        if one != other:
            return one
    return None
