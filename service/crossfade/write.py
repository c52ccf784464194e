"""Writes: what they make of documents. Pure.

The only implementation of masks, transforms and preconditions: the in-memory store and
PostgreSQL as authority both call it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from crossfade.document import (
    ABSENT,
    INT64_MAX,
    INT64_MIN,
    Document,
    FieldPath,
    Fields,
    Value,
    check_document,
    check_field_path,
    format_field_path,
    from_micros,
    get_field,
    identical,
    order_key,
    with_field,
    with_fields,
)
from crossfade.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

MAX_COMMIT_BYTES = 10 * 1_048_576
MAX_TRANSFORMS = 500


class TransformKind(StrEnum):
    REQUEST_TIME = "request_time"
    INCREMENT = "increment"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    UNION = "append_missing_elements"
    REMOVE = "remove_all_from_array"


@dataclass(frozen=True, slots=True)
class Transform:
    """`operand`: a number, or the list of a union or removal; None for REQUEST_TIME."""

    path: FieldPath
    kind: TransformKind
    operand: Value = None


@dataclass(frozen=True, slots=True)
class Write:
    """One write. `fields` None deletes; a `mask` limits the write to its paths.

    `raw` is the write as it came over the wire, so that it can be passed on
    without encoding it again; None for writes made here.
    """

    path: str
    fields: Fields | None
    mask: tuple[FieldPath, ...] | None = None
    transforms: tuple[Transform, ...] = ()
    exists: bool | None = None
    update_time: int | None = None
    raw: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def partial(self) -> bool:
        """Whether the result depends on what was stored before."""
        return self.fields is not None and (self.mask is not None or bool(self.transforms))


@dataclass(frozen=True, slots=True)
class Folded:
    """All writes of a commit to one path: the final image, or that it must be read back.

    `last` is the index of the path's last write, whose result has the version.
    """

    path: str
    fields: Fields | None
    partial: bool
    last: int


def fold(writes: Sequence[Write]) -> list[Folded]:
    """One entry per path, in the order of first appearance.

    Two writes of one document in a commit share a version, so a mirror that put
    them one by one would refuse the second.
    """
    folded: dict[str, Folded] = {}
    for index, write in enumerate(writes):
        before = folded.get(write.path)
        partial = write.partial or (before is not None and before.partial)
        folded[write.path] = Folded(write.path, write.fields, partial, index)
    return list(folded.values())


def check(write: Write) -> int:
    """The size of the fields that it brings, in bytes.

    Raises InvalidArgument when the write alone shows that it is illegal.
    """
    size = 0 if write.fields is None else check_document(write.path, write.fields)
    if len(write.transforms) > MAX_TRANSFORMS:
        raise InvalidArgument(
            f"document {write.path}: {len(write.transforms)} transforms, "
            f"the limit is {MAX_TRANSFORMS}"
        )
    paths = [transform.path for transform in write.transforms]
    for where, names in (("update_mask", write.mask or ()), ("field_path", paths)):
        for path in names:
            shown = format_field_path(path)[:120]
            check_field_path(path, f"document {write.path}: {where} {shown}")
    if any(one != other and one == other[: len(one)] for one in paths for other in paths):
        raise InvalidArgument(
            f"document {write.path}: a field and one inside it are transformed by one write"
        )
    for transform in write.transforms:
        numeric = transform.kind in {
            TransformKind.INCREMENT,
            TransformKind.MAXIMUM,
            TransformKind.MINIMUM,
        }
        if numeric and (
            isinstance(transform.operand, bool) or not isinstance(transform.operand, int | float)
        ):
            raise InvalidArgument(
                f"document {write.path}: {transform.kind} needs an integer or a double"
            )
    return size


def collapse(writes: Sequence[Write]) -> Sequence[Write]:
    """The writes of a commit, of which only the first to each document has a precondition.

    That of a later one must hold by what the earlier ones do (and then needs no look),
    or Firestore refuses the request, whatever is stored: InvalidArgument.
    """
    if len(writes) == 1:
        return writes
    before: dict[str, Write] = {}
    versions: dict[str, int | None] = {}
    collapsed: list[Write] = []
    for write in writes:
        earlier = before.get(write.path)
        if earlier is None:
            versions[write.path] = write.update_time
            collapsed.append(write)
        else:
            _check_after(earlier, write, versions[write.path])
            collapsed.append(replace(write, exists=None, update_time=None, raw=None))
        before[write.path] = write
    return collapsed


def _check_after(earlier: Write, write: Write, version: int | None) -> None:
    """`version`: the update_time that the document's first write asks for."""
    deleted, deletes = earlier.fields is None, write.fields is None
    needs = write.exists or (write.update_time is not None and not deletes)
    if needs if deleted else write.exists is False:
        raise InvalidArgument(
            f"document {write.path[:120]}: Cannot {_verb(earlier)} then {_verb(write)} an entity "
            f"in the same request."
        )
    if write.update_time is not None and write.update_time != version:
        raise InvalidArgument(
            f"document {write.path[:120]}: Cannot collapse mutations with different version "
            f"preconditions: its writes name different update_times"
        )


def _verb(write: Write) -> str:
    if write.fields is None:
        return "delete"
    if write.exists is None and write.update_time is None:
        return "upsert"
    return "insert" if write.exists is False else "update"


def check_precondition(write: Write, current: Document | None) -> None:
    """Raises the error of a precondition that does not hold."""
    if write.exists is False and current is not None:
        raise AlreadyExists(f"Document already exists: {write.path}")
    if write.exists is True and current is None:
        raise NotFound(f"No document to update: {write.path}")
    if write.update_time is not None:
        if current is None:
            raise FailedPrecondition(f"document {write.path}: it does not exist")
        if current.update_time < write.update_time:
            raise InvalidArgument(
                f"document {write.path}: the update_time that the write expects is later "
                f"than the document's"
            )
        if current.update_time != write.update_time:
            raise FailedPrecondition(
                f"document {write.path}: its update_time is not the one the write expects"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a write made: the new fields (None: no document) and the transforms' results."""

    fields: Fields | None
    results: tuple[Value, ...] = ()


def apply(write: Write, current: Document | None, now: int) -> Outcome:
    """The document after the write at `now` (microseconds); the precondition is checked first.

    Raises AlreadyExists, NotFound, FailedPrecondition, or InvalidArgument where
    the result would break a limit.
    """
    check_precondition(write, current)
    outcome = _changed(write, None if current is None else current.fields, now)
    if outcome.fields is not None and write.partial:
        check_document(write.path, outcome.fields)
    return outcome


def apply_all(
    writes: Sequence[Write], read: Callable[[str], Document | None], now: int
) -> tuple[dict[str, Document | None], list[tuple[Value, ...]]]:
    """The documents after a commit of legal writes at `now`, by path, and each write's results.

    `read` gives what is stored at a path. A document that does not change is the very one
    that was read, with the update_time that it had. Raises the first error met.
    """
    staged: dict[str, _Staged] = {}
    results: list[tuple[Value, ...]] = []
    for write in collapse(writes):
        before = staged.get(write.path)
        if before is None:
            before = _Staged.of(read(write.path))
            check_precondition(write, before.base)
        outcome = _changed(write, before.fields, now)
        base = None if outcome.fields is None else before.base
        partial = outcome.fields is not None and (before.partial or write.partial)
        staged[write.path] = _Staged(base, outcome.fields, partial)
        results.append(outcome.results)
    for path, after in staged.items():
        if after.partial and after.fields is not None:
            check_document(path, after.fields)
    return {path: after.document(path, now) for path, after in staged.items()}, results


@dataclass(frozen=True, slots=True)
class _Staged:
    """A document inside a commit: what was stored when it began, unless deleted since, and
    the fields as they are now. `partial`: they came from more than was checked."""

    base: Document | None
    fields: Fields | None
    partial: bool = False

    @classmethod
    def of(cls, stored: Document | None) -> "_Staged":
        return cls(stored, None if stored is None else stored.fields)

    def document(self, path: str, now: int) -> Document | None:
        """What the commit would leave. Fields as before the commit keep the update_time."""
        if self.fields is None:
            return None
        if self.base is None:
            return Document(path, self.fields, now, now)
        if identical(self.base.fields, self.fields):
            return self.base
        return Document(path, self.fields, self.base.create_time, now)


def _changed(write: Write, before: Fields | None, now: int) -> Outcome:
    """What a write makes of fields, or of nothing."""
    if write.fields is None:
        return Outcome(None)
    new = write.fields
    if write.mask is not None:
        new = with_fields(before or {}, ((path, get_field(new, path)) for path in write.mask))
    results: list[Value] = []
    for transform in write.transforms:
        value, result = _transformed(transform, get_field(new, transform.path), now)
        new = with_field(new, transform.path, value)
        results.append(result)
    return Outcome(new, tuple(results))


def _transformed(transform: Transform, old: Any, now: int) -> tuple[Any, Value]:
    operand: Any = transform.operand
    if transform.kind is TransformKind.REQUEST_TIME:
        moment = from_micros(now - now % 1_000)  # documented as of millisecond precision
        return moment, moment
    if transform.kind is TransformKind.UNION:
        merged = list(old) if isinstance(old, list) else []
        seen = set(map(order_key, merged))
        for item in operand:
            if (key := order_key(item)) not in seen:
                seen.add(key)
                merged.append(item)
        return merged, None
    if transform.kind is TransformKind.REMOVE:
        gone = set(map(order_key, operand))
        kept = old if isinstance(old, list) else []
        return [item for item in kept if order_key(item) not in gone], None
    if old is ABSENT or isinstance(old, bool) or not isinstance(old, int | float):
        return operand, operand
    if transform.kind is TransformKind.INCREMENT:
        value = old + operand
        if isinstance(value, int):
            value = max(INT64_MIN, min(INT64_MAX, value))
        return value, value
    return (chosen := _extreme(transform.kind, old, operand)), chosen


def _extreme(which: TransformKind, old: Any, operand: Any) -> Any:
    """The stored value stays when both are equal; NaN as operand or value gives NaN."""
    if operand != operand:
        return operand
    if old != old:
        return old
    larger = order_key(operand) > order_key(old)
    smaller = order_key(operand) < order_key(old)
    return operand if (larger if which is TransformKind.MAXIMUM else smaller) else old
