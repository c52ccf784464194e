from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crossfade import records, wire
from crossfade.document import Database, Document
from crossfade.records import MAGIC, Commit, Damaged, commit, end, read

ONE, OTHER = Database("violet"), Database("ünï", "archive")
A = Document("tasks/ä", {"n": 1}, 1, 2)
B = Document("tasks/ä/chunks/__id7__", {}, 2, 2)
PARTS = [
    commit(ONE, 2, [(A.path, A), (B.path, B)]),
    commit(OTHER, 3, [(A.path, None)]),
    commit(ONE, 4, []),
    commit(OTHER, 5, [(B.path, B), (A.path, None)]),
]
FILE = MAGIC + b"".join(PARTS)
ENDS = [len(MAGIC) + sum(map(len, PARTS[:number])) for number in range(len(PARTS) + 1)]
COMMITS = [
    Commit(
        ONE,
        2,
        [(A.path, wire.document_bytes(A, ONE)), (B.path, wire.document_bytes(B, ONE))],
    ),
    Commit(OTHER, 3, [(A.path, b"")]),
    Commit(ONE, 4, []),
    Commit(OTHER, 5, [(B.path, wire.document_bytes(B, OTHER)), (A.path, b"")]),
]


def outcome(data: bytes) -> tuple[list[Commit | None], Damaged | None]:
    """What could be read, and why not the rest."""
    found: list[Commit | None] = []
    reading: Iterator[Commit | None] = read(data)
    try:
        found.extend(reading)
    except Damaged as damage:
        return found, damage
    return found, None


def intact_before(offset: int) -> int:
    """How many whole records lie before a byte."""
    return sum(end <= offset for end in ENDS[1:])


def test_what_was_written_is_read():
    assert outcome(FILE) == (COMMITS, None)
    assert outcome(MAGIC + end()) == ([None], None)
    assert outcome(MAGIC) == ([], None)


def test_a_file_that_just_ends_is_cut():
    for length in range(len(FILE)):
        found, damage = outcome(FILE[:length])

        whole = intact_before(length)
        assert found == COMMITS[:whole]
        if length in ENDS:
            assert damage is None
        else:
            assert damage is not None
            assert damage.cut
            assert damage.offset == (ENDS[whole] if length > len(MAGIC) else 0)


@pytest.mark.parametrize("bit", [1, 128])
def test_one_wrong_bit_is_damage_and_never_another_commit(bit):
    for offset in range(len(FILE)):
        changed = bytearray(FILE)
        changed[offset] ^= bit
        found, damage = outcome(bytes(changed))

        whole = intact_before(offset)
        assert found == COMMITS[:whole]
        assert damage is not None
        assert damage.offset == (ENDS[whole] if offset >= len(MAGIC) else 0)
        # Only of the last record it cannot be said whether its length is wrong, or its
        # end is missing.
        assert not damage.cut or whole == len(PARTS) - 1


@pytest.mark.parametrize("zeros", [1, 5, 12, 100])
def test_zeros_at_the_end_are_what_a_loss_of_power_leaves(zeros):
    found, damage = outcome(FILE + bytes(zeros))

    assert found == COMMITS
    assert damage is not None
    assert (damage.cut, damage.offset) == (True, len(FILE))
    found, damage = outcome(bytes(zeros))
    assert damage is not None
    assert (found, damage.cut, damage.offset) == ([], True, 0)


def test_zeros_between_records_are_damage():
    found, damage = outcome(FILE[: ENDS[1]] + bytes(20) + FILE[ENDS[1] :])

    assert found == COMMITS[:1]
    assert damage is not None
    assert (damage.cut, damage.offset) == (False, ENDS[1])


@pytest.mark.parametrize("text", [b"x", b"something else\n", b"\xff\xf5C?", b"a" * 200])
def test_other_text_at_the_end_is_damage(text):
    _, damage = outcome(FILE + text)

    assert damage is not None
    assert not damage.cut


def test_another_file_is_damage_from_the_start():
    for data in (b"mine", b"crossfade records 2\n" + PARTS[0]):
        _, damage = outcome(data)
        assert damage is not None
        assert (damage.cut, damage.offset) == (False, 0)


def test_a_record_that_is_a_value_does_not_hide_a_cut_one():
    """Documents may hold anything, records too: the worst is that a cut is called damage."""
    inner = Document("files/1", {"content": FILE}, 1, 1)
    whole = MAGIC + commit(ONE, 1, [(inner.path, inner)])

    found, damage = outcome(whole + PARTS[1])
    assert (len(found), damage) == (2, None)
    found, damage = outcome(whole[:-1])
    assert (found, damage and damage.offset) == ([], len(MAGIC))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(FILE)))
@example(records.MAGIC[-3:], 3)
def test_any_bytes_end_in_records_or_damage(noise, at):
    for data in (noise, FILE[:at] + noise, FILE[:at] + noise + FILE[at:], MAGIC + noise):
        found, _ = outcome(data)
        assert [commit for commit in found if commit not in COMMITS] == []
