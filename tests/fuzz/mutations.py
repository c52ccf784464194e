"""What makes a legal conversation hostile.

Hypothesis draws small numbers only; what they mean for a given message is worked out
when they are applied. So a failing case shrinks to few mutations of low numbers, and it
is printed as what was done to which conversation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import hostile, legal
from tests.fuzz.methods import methods
from tests.fuzz.talking import EDITS, Edit, Ending, Message
from tests.fuzz.tree import BYTES, Field, Leaf, Place, Tree, places, wire_type

_PICKS = 4_096
_LARGE = _PICKS - 64
"""Picks from here on choose contents of a megabyte."""
_MOST_FIELDS = 5_000
"""What has grown so large is not changed further: repetitions multiply."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """`at` chooses the field among those of the conversation, `pick` among what can be done
    to it; both modulo what there is."""

    kind: str
    at: int
    pick: int

    def apply(self, found: list[Place]) -> None:
        """`found`: every field of the conversation."""
        place = found[self.at % len(found)]
        if self.kind != EVERYWHERE:
            MUTATIONS[self.kind](place, self.pick)
            return
        # The same for all fields of the kind, so that they still fit one another.
        field = place.field.descriptor
        for other in reversed(found):  # inner ones first: outer ones replace them
            if other.field.descriptor is field:
                _replace(other, self.pick % _LARGE)  # a megabyte each would be too much


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation as it is held. `calls`: of each the method and its messages."""

    conversation: str
    mutations: tuple[Mutation, ...] = ()
    edits: tuple[tuple[int, Edit], ...] = ()
    """With the number of the message that each changes, modulo what there is."""
    ending: Ending = Ending.PROPER
    method: str = ""
    """Asked instead of the methods that the messages are made for."""
    raw: bytes | None = None
    """Sent instead of every message."""

    def simpler(self) -> Iterator["Case"]:
        """The same with one change less; the ones to try first come last."""
        for index in range(len(self.mutations)):
            kept = self.mutations[:index] + self.mutations[index + 1 :]
            yield replace(self, mutations=kept)
        for index in range(len(self.edits)):
            yield replace(self, edits=self.edits[:index] + self.edits[index + 1 :])
        if self.ending is not Ending.PROPER:
            yield replace(self, ending=Ending.PROPER)

    def calls(self) -> list[tuple[str, list[Message]]]:
        source = next(c for c in legal.conversations() if c.name == self.conversation)
        trees = [[tree.copy() for tree in call.messages] for call in source.calls]
        every = [tree for messages in trees for tree in messages]
        for mutation in self.mutations:
            found = [place for tree in every for place in places(tree)]
            if 0 < len(found) < _MOST_FIELDS:
                mutation.apply(found)
        edits: dict[int, list[Edit]] = {}
        for number, edit in self.edits:
            edits.setdefault(number % len(every), []).append(edit)
        calls = []
        number = 0
        for call, messages in zip(source.calls, trees, strict=True):
            made = []
            for tree in messages:
                content = tree if self.raw is None else self.raw
                made.append(Message(content, tuple(edits.get(number, ()))))
                number += 1
            calls.append((self.method or call.method, made))
        return calls


@cache
def cases() -> st.SearchStrategy[Case]:
    names = st.sampled_from([c.name for c in legal.conversations()])
    mutations = st.lists(
        st.builds(
            Mutation,
            st.sampled_from([kind for kind, weight in WEIGHTS.items() for _ in range(weight)]),
            st.integers(0, 4_095),
            st.integers(0, _PICKS - 1),
        ),
        max_size=4,
    ).map(tuple)
    edits = st.lists(
        st.tuples(
            st.integers(0, 7),
            st.builds(Edit, st.sampled_from(EDITS), st.integers(0, 2_047), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple)
    endings = st.sampled_from([Ending.PROPER] * 6 + list(Ending))
    others = st.sampled_from(sorted(methods()))
    mutated = st.builds(Case, names, mutations, ending=endings)
    return st.one_of(
        mutated,
        mutated,
        mutated,
        st.builds(Case, names, mutations, edits, endings),
        st.builds(Case, names, mutations, ending=endings, method=others),
        st.builds(Case, names, method=others, raw=st.binary(max_size=64)),
    )


# --- the kinds -----------------------------------------------------------------------------------


def _replace(place: Place, pick: int) -> None:
    """A hostile content of the field's own type."""
    field = place.field
    if field.descriptor is None:
        field.content = Leaf(b"" if field.wire == BYTES else 0)
    else:
        place.owner.fields[place.index] = make(field.descriptor, pick)


def _drop(place: Place, _: int) -> None:
    del place.owner.fields[place.index]


def _repeat(place: Place, pick: int) -> None:
    content = place.field.content
    size = 1 + sum(1 for _ in places(content)) if isinstance(content, Tree) else 1
    times = min((2, 3, 11, 31, 101, 501)[pick % 6], 1 + _MOST_FIELDS // size)
    copies = [place.field.copy() for _ in range(times)]
    place.owner.fields[place.index : place.index + 1] = copies


def _add(place: Place, pick: int) -> None:
    """Another field of the same message: a second member of a oneof, for one."""
    known = place.owner.descriptor.fields
    place.owner.fields.insert(place.index + pick % 2, make(known[pick % len(known)], pick // 2))


def _nest(place: Place, pick: int) -> None:
    """The message inside itself, as deep as it can be and deeper."""
    field = place.field
    inner = field.content
    if not isinstance(inner, Tree):
        _replace(place, pick)
        return
    ways = _cycles(inner.descriptor)
    if not ways:
        _replace(place, pick)
        return
    way = ways[pick % len(ways)]
    for _ in range((10, 15, 20, 21, 33, 50, 100, 200)[pick // 4 % 8]):
        for step in reversed(way):
            content = Tree(step.containing_type, [Field(step.number, BYTES, step, inner)])
            content.fields += _companions(step)
            inner = content
    field.content = inner


def _companions(step: Any) -> list[Field]:
    """What a field needs beside it to be legal: the operator of a composite filter."""
    others = step.containing_type.fields_by_name
    op = others.get("op")
    return [] if op is None else [Field(op.number, wire_type(op), op, Leaf(2))]


def _unknown(place: Place, pick: int) -> None:
    numbers = (99, 536_870_911, 19_000, 0)
    wire, value = hostile.UNKNOWN[pick % len(hostile.UNKNOWN)]
    place.owner.fields.insert(place.index, Field(numbers[pick // 8 % 4], wire, None, Leaf(value)))


def _renumber(place: Place, pick: int) -> None:
    """The content as it is, under another field's number."""
    known = place.owner.descriptor.fields
    place.field.number = known[pick % len(known)].number


def _rewire(place: Place, pick: int) -> None:
    """A wire type that is not the field's; what follows is read as something else."""
    place.field.wire = pick % 8


def _graft(place: Place, pick: int) -> None:
    """A content of the same type out of another conversation, or of the same type elsewhere."""
    content = place.field.content
    if not isinstance(content, Tree):
        _replace(place, pick)
        return
    donors = _donors().get(content.descriptor.full_name, [])
    if donors:
        place.field.content = donors[pick % len(donors)].copy()


EVERYWHERE = "everywhere"
MUTATIONS: dict[str, Callable[[Place, int], None]] = {
    "replace": _replace,
    "drop": _drop,
    "repeat": _repeat,
    "add": _add,
    "nest": _nest,
    "unknown": _unknown,
    "renumber": _renumber,
    "rewire": _rewire,
    "graft": _graft,
}
WEIGHTS = {
    "replace": 8,
    EVERYWHERE: 4,
    "drop": 2,
    "repeat": 2,
    "add": 3,
    "nest": 2,
    "unknown": 1,
    "renumber": 1,
    "rewire": 1,
    "graft": 3,
}


def make(descriptor: Any, pick: int) -> Field:
    """A field of this type with a hostile content."""
    wire = wire_type(descriptor)
    content: Leaf | Tree
    if descriptor.message_type is not None:
        content = _message(descriptor.message_type, pick)
    elif descriptor.type == descriptor.TYPE_STRING:
        content = Leaf(_one(hostile.texts_for(descriptor.name), hostile.LARGE_TEXTS, pick))
    elif descriptor.type == descriptor.TYPE_BYTES:
        content = Leaf(_one(hostile.BLOBS, hostile.LARGE_BLOBS, pick))
    elif wire == 0:
        content = Leaf(hostile.NUMBERS[pick % len(hostile.NUMBERS)])
    else:
        doubles = hostile.DOUBLES[pick % len(hostile.DOUBLES)]
        content = Leaf(doubles[: 8 if wire == 1 else 4])
    return Field(descriptor.number, wire, descriptor, content)


def _one(common: tuple[bytes, ...], large: tuple[bytes, ...], pick: int) -> bytes:
    """Seldom a large one: each is a megabyte."""
    if pick >= _LARGE:
        return large[pick % len(large)]
    return common[pick % len(common)]


def _message(descriptor: Any, pick: int) -> Tree:
    pool = hostile.messages().get(descriptor.full_name)
    if pool:
        return pool[pick % len(pool)].copy()
    if pick % 3 == 0 or not descriptor.fields:
        return Tree(descriptor, [])
    chosen = descriptor.fields[pick % len(descriptor.fields)]
    return Tree(descriptor, [make(chosen, pick // 3)])


@cache
def _donors() -> dict[str, list[Tree]]:
    """Every message of every conversation, by its type's name."""
    found: dict[str, list[Tree]] = {}
    for conversation in legal.conversations():
        for call in conversation.calls:
            for tree in call.messages:
                for place in places(tree):
                    if isinstance(place.field.content, Tree):
                        content = place.field.content
                        found.setdefault(content.descriptor.full_name, []).append(content)
    return found


def _cycles(descriptor: Any) -> list[list[Any]]:
    """The shortest ways, as field descriptors, from a message type back to itself."""
    if descriptor.full_name not in _CYCLES:
        _CYCLES[descriptor.full_name] = _search(descriptor)
    return _CYCLES[descriptor.full_name]


_CYCLES: dict[str, list[list[Any]]] = {}


def _search(descriptor: Any) -> list[list[Any]]:
    found: list[list[Any]] = []
    ways: list[list[Any]] = [[field] for field in descriptor.fields if field.message_type]
    for _ in range(4):
        longer = []
        for way in ways:
            last = way[-1].message_type
            if last.full_name == descriptor.full_name:
                found.append(way)
            else:
                longer += [[*way, field] for field in last.fields if field.message_type]
        ways = longer
    return found
