"""A document's content as bytes that equal contents share, whichever store they come from.

Comparing two stores is comparing these bytes; only what differs is decoded. The digest of
a set of documents is a sum over them, so that it does not depend on their order, and
parts of it can be added up.
"""

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from crossfade.wire import decode_time
from crossfade_api.v1 import crossfade_pb2

_LANES = struct.Struct(">4I")
LANES = 4
"""Of a digest: each is a sum of 32-bit numbers, which stays below 63 bits for 2**31 documents."""


class Content(NamedTuple):
    """A document that a store holds. `data`: a Document message of nothing but its fields, in
    one order; "" of one that is only known by its version. `update_time`: microseconds."""

    path: str
    update_time: int
    data: bytes

    def lanes(self) -> tuple[int, ...]:
        """What it adds to a digest: of its path and its content."""
        return self._hash(self.data)

    def version_lanes(self) -> tuple[int, ...]:
        """The same of its path and its update_time."""
        return self._hash(b"%d" % self.update_time)

    def _hash(self, data: bytes) -> tuple[int, ...]:
        made = blake2b(self.path.encode(), digest_size=16)
        made.update(b"\0")
        made.update(data)
        return _LANES.unpack(made.digest())


def fields_bytes(message: Any) -> bytes:
    """The fields of a Document message, which is left without name and times."""
    message.ClearField("name")
    message.ClearField("create_time")
    message.ClearField("update_time")
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def contents(frames: bytes, root: int) -> Iterator[Content]:
    """The documents of a query's page (store.Page.frames). `root`: how many characters their
    names have before their paths."""
    for message in crossfade_pb2.QueryReply.FromString(frames).documents:
        path, time = message.name[root:], decode_time(message.update_time)
        yield Content(path, time, fields_bytes(message))
