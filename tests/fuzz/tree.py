"""Messages as trees of wire fields, so that they can be made wrong.

A protobuf object holds only what its type allows. A tree also holds a field twice, two
members of a oneof, a wrong wire type, a number that no type has, a string that is not
UTF-8, and writes them all.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
_MAX = (1 << 64) - 1


@dataclass(slots=True)
class Leaf:
    """`value`: a varint's number (any sign), or the bytes of every other wire type."""

    value: int | bytes


@dataclass(slots=True)
class Tree:
    """A message of the type that `descriptor` describes."""

    descriptor: Any
    fields: list["Field"]

    def copy(self) -> "Tree":
        return Tree(self.descriptor, [field.copy() for field in self.fields])


@dataclass(slots=True)
class Field:
    """`descriptor` is None for a number that the message's type does not have."""

    number: int
    wire: int
    descriptor: Any
    content: Leaf | Tree

    def copy(self) -> "Field":
        content = self.content
        inner = content.copy() if isinstance(content, Tree) else Leaf(content.value)
        return Field(self.number, self.wire, self.descriptor, inner)


@dataclass(frozen=True, slots=True)
class Place:
    """A field of a message inside a tree."""

    owner: Tree
    index: int

    @property
    def field(self) -> Field:
        return self.owner.fields[self.index]


def parse(message: Any) -> Tree:
    """The tree of a protobuf message."""
    return _parse(message.SerializeToString(), message.DESCRIPTOR)


def write(tree: Tree) -> bytes:
    out = bytearray()
    for field in tree.fields:
        out += varint(field.number << 3 | field.wire)
        content = field.content
        if isinstance(content, Tree):
            data = write(content)
            out += varint(len(data)) + data
        elif isinstance(content.value, int):
            out += varint(content.value)
        elif field.wire == BYTES:
            out += varint(len(content.value)) + content.value
        else:
            out += content.value
    return bytes(out)


def places(tree: Tree) -> Iterator[Place]:
    """Every field at every depth, outer ones first."""
    for index, field in enumerate(tree.fields):
        yield Place(tree, index)
        if isinstance(field.content, Tree):
            yield from places(field.content)


def varint(number: int) -> bytes:
    """A negative number as its 64-bit complement, as protobuf writes it."""
    number &= _MAX
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def double(number: float) -> bytes:
    return struct.pack("<d", number)


def wire_type(descriptor: Any) -> int:
    """How a field of this type travels."""
    if descriptor.type in {descriptor.TYPE_DOUBLE, descriptor.TYPE_FIXED64}:
        return FIXED64
    if descriptor.type in {descriptor.TYPE_FLOAT, descriptor.TYPE_FIXED32}:
        return FIXED32
    if descriptor.type in {
        descriptor.TYPE_MESSAGE,
        descriptor.TYPE_STRING,
        descriptor.TYPE_BYTES,
    }:
        return BYTES
    return VARINT


def _parse(data: bytes, descriptor: Any) -> Tree:
    fields = []
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        wire = tag & 7
        known = descriptor.fields_by_number.get(tag >> 3)
        content: Leaf | Tree
        if wire == VARINT:
            number, position = _read_varint(data, position)
            content = Leaf(number)
        else:
            size = 8 if wire == FIXED64 else 4
            if wire == BYTES:
                size, position = _read_varint(data, position)
            piece = data[position : position + size]
            position += size
            nested = wire == BYTES and known is not None and known.message_type is not None
            content = _parse(piece, known.message_type) if nested else Leaf(piece)
        fields.append(Field(tag >> 3, wire, known, content))
    return Tree(descriptor, fields)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[position]) > 0x7F:
        number |= (byte & 0x7F) << shift
        shift += 7
        position += 1
    return number | byte << shift, position + 1
