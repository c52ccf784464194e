"""Writes: what one of them asks for, as a message. No I/O.

A write's fields may hold transforms where values would stand, at any depth of
maps; they are taken out here and sent apart, as the protocol has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from crossfade_api.v1 import document_pb2 as pb
from crossfade_client import _codec, _paths
from crossfade_client.errors import InvalidArgumentError
from crossfade_client.values import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    ArrayRemove,
    ArrayUnion,
    Changes,
    Fields,
    Increment,
    Maximum,
    Minimum,
)

_Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a commit, made by one of the five class methods.

    `update_time`, where given, must be the stored document's, or the commit fails with
    FailedPreconditionError and nothing is done. All raise InvalidArgumentError for
    what cannot be encoded.
    """

    path: str
    message: pb.Write

    @classmethod
    def set(cls, path: str, fields: Fields, *, update_time: datetime | None = None) -> "Write":
        """The whole document becomes `fields`, whatever was there."""
        return cls._whole(path, fields, _condition(None, update_time))

    @classmethod
    def create(cls, path: str, fields: Fields) -> "Write":
        """As `set`; AlreadyExistsError where there is a document."""
        return cls._whole(path, fields, _condition(False, None))

    @classmethod
    def merge(
        cls,
        path: str,
        fields: Fields,
        *,
        exists: bool | None = None,
        update_time: datetime | None = None,
    ) -> "Write":
        """Sets the given fields, inside maps too, and leaves all others; makes the document
        where there is none. An empty map, and any list, replaces what was there."""
        parts = _Parts()
        parts.plain = parts.strip(fields, ())
        mask = parts.leaves + parts.deleted
        return cls._masked(path, parts, mask, _condition(exists, update_time))

    @classmethod
    def update(
        cls,
        path: str,
        fields: Changes,
        *,
        update_time: datetime | None = None,
    ) -> "Write":
        """Sets the given field paths ("a.b" is b inside the map a) and leaves all others; a
        map given as a value replaces the stored one. NotFoundError where there is no document."""
        if not fields:
            raise InvalidArgumentError(f"document {path}: an update without fields")
        keys = [_paths.parse(key) for key in fields]
        _refuse_overlap(path, keys)
        parts = _Parts()
        mask: list[_Names] = []
        for names, value in zip(keys, fields.values(), strict=True):
            if isinstance(value, _codec.TRANSFORMS) and value is not DELETE_FIELD:
                parts.transforms.append((names, value))
                continue
            mask.append(names)
            if isinstance(value, Mapping):
                parts.place(names, parts.strip(value, names))
                parts.refuse_deleted("inside a map; give the field path as the key")
            elif value is not DELETE_FIELD:
                parts.place(names, value)
        condition = _condition(True, None) if update_time is None else _condition(None, update_time)
        return cls._masked(path, parts, mask, condition)

    @classmethod
    def delete(
        cls, path: str, *, exists: bool | None = None, update_time: datetime | None = None
    ) -> "Write":
        """No document afterwards; none before is fine unless `exists` is True."""
        message = pb.Write(delete=path)
        return cls(path, _with_condition(message, _condition(exists, update_time)))

    @classmethod
    def _whole(cls, path: str, fields: Fields, condition: pb.Precondition | None) -> "Write":
        parts = _Parts()
        parts.plain = parts.strip(fields, ())
        parts.refuse_deleted("is for merge and update")
        return cls(path, _with_condition(parts.message(path), condition))

    @classmethod
    def _masked(
        cls, path: str, parts: "_Parts", mask: list[_Names], condition: pb.Precondition | None
    ) -> "Write":
        message = parts.message(path)
        message.update_mask.SetInParent()
        message.update_mask.field_paths.extend(map(_paths.spell, mask))
        return cls(path, _with_condition(message, condition))


class _Parts:
    """A written document, taken apart: plain values, the paths of its leaves, transforms."""

    def __init__(self) -> None:
        self.plain: dict[str, Any] = {}
        self.leaves: list[_Names] = []
        self.deleted: list[_Names] = []
        self.transforms: list[tuple[_Names, Any]] = []

    def strip(self, fields: Fields, prefix: _Names) -> dict[str, Any]:
        """The values of a map that stands at `prefix`; the rest is noted.

        A map of nothing but transforms is left out: they make it.
        """
        plain: dict[str, Any] = {}
        for name, value in fields.items():
            names = (*prefix, name)
            if value is DELETE_FIELD:
                self.deleted.append(names)
            elif isinstance(value, _codec.TRANSFORMS):
                self.transforms.append((names, value))
            elif isinstance(value, Mapping) and value:
                if inner := self.strip(value, names):
                    plain[name] = inner
            else:
                plain[name] = value
                self.leaves.append(names)
        return plain

    def place(self, names: _Names, value: Any) -> None:
        inner = self.plain
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = value

    def refuse_deleted(self, why: str) -> None:
        if self.deleted:
            where = _paths.spell(self.deleted[0])
            raise InvalidArgumentError(f"field {where}: DELETE_FIELD {why}")

    def message(self, path: str) -> pb.Write:
        message = pb.Write()
        message.update.name = path
        _codec.encode_fields(self.plain, message.update.fields)
        for names, transform in self.transforms:
            where = _paths.spell(names)
            item = message.update_transforms.add(field_path=where)
            _encode_transform(transform, item, where)
        return message


def _encode_transform(
    transform: Any, into: pb.DocumentTransform.FieldTransform, field: str
) -> None:
    if transform is SERVER_TIMESTAMP:
        into.set_to_server_value = pb.DocumentTransform.FieldTransform.REQUEST_TIME
    elif isinstance(transform, ArrayUnion | ArrayRemove):
        union = isinstance(transform, ArrayUnion)
        array = into.append_missing_elements if union else into.remove_all_from_array
        array.SetInParent()
        for index, item in enumerate(transform.values):
            _codec.encode_value(item, array.values.add(), f"{field}[{index}]")
    elif isinstance(transform, Increment):
        _codec.encode_value(_number(transform.amount, field), into.increment, field)
    elif isinstance(transform, Maximum):
        _codec.encode_value(_number(transform.value, field), into.maximum, field)
    elif isinstance(transform, Minimum):
        _codec.encode_value(_number(transform.value, field), into.minimum, field)


def _number(value: Any, field: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgumentError(f"field {field}: the transform needs an int or a float")
    return value


def _condition(exists: bool | None, update_time: datetime | None) -> pb.Precondition | None:
    if exists is not None and update_time is not None:
        raise InvalidArgumentError("precondition: give exists or update_time, not both")
    if exists is not None:
        return pb.Precondition(exists=exists)
    if update_time is None:
        return None
    if update_time.utcoffset() is None:
        raise InvalidArgumentError("precondition: update_time has no time zone")
    condition = pb.Precondition()
    _codec.set_time(update_time, condition.update_time)
    return condition


def _with_condition(message: pb.Write, condition: pb.Precondition | None) -> pb.Write:
    if condition is not None:
        message.current_document.CopyFrom(condition)
    return message


def _refuse_overlap(path: str, keys: list[_Names]) -> None:
    """Two keys of which one holds the other have no order, so no meaning."""
    ordered = sorted(keys)
    for one, other in pairwise(ordered):
        if other[: len(one)] == one:
            raise InvalidArgumentError(
                f"document {path}: the update names {_paths.spell(one)} "
                f"and {_paths.spell(other)}, which lies inside it"
            )
