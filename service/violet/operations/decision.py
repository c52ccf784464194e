"""What a decision is, and the writes that it is made of. Pure."""

from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID, uuid4, uuid5

from crossfade.document import ABSENT, Document, Fields, identical
from crossfade.errors import NotFound
from crossfade.write import Write

T = TypeVar("T")

_OURS = UUID("7d3f1c52-5d3e-4b7f-9a52-0c9f5f6f7a11")


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """What is answered, and the writes that make it true: none where it is true already."""

    answer: T
    writes: tuple[Write, ...] = ()


def drawn(request_id: str | None, what: str) -> str:
    """An id for something new: of a repeated request the same one."""
    return str(uuid4() if request_id is None else uuid5(_OURS, f"{request_id}/{what}"))


def found(document: Document | None, path: str) -> Document:
    if document is None:
        raise NotFound(f"document {path} does not exist")
    return document


def rewrite(document: Document, after: Fields) -> tuple[Write, ...]:
    """The write that makes `after` of what was read, of the fields that differ; or none.

    The transaction sees to it that nobody changed it since, so values can stand where an
    update would have transforms.
    """
    before = document.fields
    changed = [
        name
        for name in dict.fromkeys([*before, *after])
        if name not in before
        or name not in after
        or not identical(before.get(name, ABSENT), after.get(name, ABSENT))
    ]
    if not changed:
        return ()
    fields = {name: after[name] for name in changed if name in after}
    return (Write(document.path, fields, tuple((name,) for name in changed)),)


def put(document: Document | None, path: str, after: Fields) -> tuple[Write, ...]:
    """`rewrite`, or a new document."""
    return (Write(path, after),) if document is None else rewrite(document, after)
