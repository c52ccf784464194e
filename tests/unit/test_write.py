"""Writes as data: folding, checks, preconditions. What they make is the contract suite's
business."""

from typing import Any

import pytest
from hypothesis import given

from crossfade.document import Database, Document, identical
from crossfade.errors import (
    AlreadyExists,
    CrossfadeError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from crossfade.stores.memory import MemoryStore
from crossfade.write import (
    MAX_TRANSFORMS,
    Transform,
    TransformKind,
    Write,
    apply,
    apply_all,
    check,
    check_precondition,
    collapse,
    fold,
)
from tests import strategies as some
from tests.firestore_fixture import fresh_database

K = TransformKind
INCREMENT = Transform(("n",), K.INCREMENT, 1)


def test_fold_keeps_the_last_image_and_remembers_partial_writes() -> None:
    folded = fold(
        [
            Write("c/a", {"x": 1}),
            Write("c/b", {"x": 1}, mask=(("x",),)),
            Write("c/a", {"x": 2}),
            Write("c/b", {"x": 3}),
            Write("c/d", {"x": 1}),
            Write("c/d", None),
            Write("c/e", {}, transforms=(INCREMENT,)),
        ]
    )
    shown = [(one.path, one.fields, one.partial, one.last) for one in folded]
    assert shown == [
        ("c/a", {"x": 2}, False, 2),
        ("c/b", {"x": 3}, True, 3),
        ("c/d", None, False, 5),
        ("c/e", {}, True, 6),
    ]


@given(some.commits())
def test_a_folded_image_is_what_is_stored(commit: list[Write]) -> None:
    """Where no write was partial, the folded image can be put as it is."""
    store = MemoryStore(fresh_database())
    try:
        store.apply_commit(commit)
    except CrossfadeError:
        return
    for folded in fold(commit):
        if not folded.partial:
            stored = store.read(folded.path)
            assert identical(None if stored is None else stored.fields, folded.fields)


def test_what_is_partial() -> None:
    assert not Write("c/a", {"x": 1}).partial
    assert not Write("c/a", None).partial
    assert Write("c/a", {}, mask=()).partial
    assert Write("c/a", {}, transforms=(INCREMENT,)).partial


STORED = Document("c/a", {}, 10, 20)


@pytest.mark.parametrize(
    ("write", "current", "error"),
    [
        (Write("c/a", {}), None, None),
        (Write("c/a", {}, exists=False), None, None),
        (Write("c/a", {}, exists=False), STORED, AlreadyExists),
        (Write("c/a", {}, exists=True), STORED, None),
        (Write("c/a", {}, exists=True), None, NotFound),
        (Write("c/a", {}, update_time=20), STORED, None),
        (Write("c/a", {}, update_time=19), STORED, FailedPrecondition),
        (Write("c/a", {}, update_time=21), STORED, InvalidArgument),
        (Write("c/a", {}, update_time=20), None, FailedPrecondition),
    ],
)
def test_preconditions(
    write: Write, current: Document | None, error: type[CrossfadeError] | None
) -> None:
    if error is None:
        check_precondition(write, current)
        return
    with pytest.raises(error, match="c/a"):
        check_precondition(write, current)


def test_limits() -> None:
    check(Write("c/a", {}, (), (INCREMENT,) * MAX_TRANSFORMS))
    with pytest.raises(InvalidArgument, match=str(MAX_TRANSFORMS)):
        check(Write("c/a", {}, (), (INCREMENT,) * (MAX_TRANSFORMS + 1)))


def test_a_field_inside_another_is_not_transformed_beside_it() -> None:
    inside = Transform(("n", "x"), K.INCREMENT, 1)
    with pytest.raises(InvalidArgument, match="c/a"):
        check(Write("c/a", {}, (), (inside, INCREMENT)))
    check(Write("c/a", {}, (), (INCREMENT, INCREMENT)))
    check(Write("c/a", {}, (), (INCREMENT, Transform(("nx",), K.INCREMENT, 1))))


def test_the_stored_document_is_not_touched() -> None:
    inner: Any = {"m": {"x": 1}, "l": [1]}
    before = Document("c/a", inner, 1, 1)
    write = Write("c/a", {"m": {"y": 2}}, (("m", "y"),), (Transform(("l",), K.UNION, [2]),))
    outcome = apply(write, before, 5)
    assert outcome.fields == {"m": {"x": 1, "y": 2}, "l": [1, 2]}
    assert before.fields == {"m": {"x": 1}, "l": [1]}


def test_a_result_that_breaks_a_limit_is_refused() -> None:
    before = Document("c/a", {"x": "x" * 1_000_000}, 1, 1)
    with pytest.raises(InvalidArgument, match="1,048,576"):
        apply(Write("c/a", {"y": "y" * 100_000}, (("y",),)), before, 5)
    with pytest.raises(InvalidArgument):
        apply(Write("c/a", {}, (), (Transform(("l",), K.UNION, [[1]]),)), None, 5)


def test_request_time_has_milliseconds() -> None:
    outcome = apply(Write("c/a", {}, (), (Transform(("t",), K.REQUEST_TIME),)), None, 1_234_567)
    (moment,) = outcome.results
    assert moment.microsecond == 234_000


def test_large_writes_cost_what_they_hold() -> None:
    """Each of these stood still for minutes when it went through all it had for each part."""

    def fields(outcome: Any) -> Any:
        return outcome.fields

    numbers = [str(number) for number in range(20_000)]
    array = Write("c/a", {}, (), (Transform(("l",), K.UNION, list(range(20_000))),))
    assert len(fields(apply(array, None, 1))["l"]) == 20_000
    gone = Transform(("l",), K.REMOVE, list(range(19_000)))
    held = Document("c/a", {"l": list(range(20_000))}, 1, 1)
    assert len(fields(apply(Write("c/a", {}, (), (gone,)), held, 1))["l"]) == 1_000
    wide = Document("c/a", {"m": dict.fromkeys(numbers, 0)}, 1, 1)
    masked = Write("c/a", {"m": dict.fromkeys(numbers, 1)}, tuple(("m", n) for n in numbers))
    assert fields(apply(masked, wide, 1))["m"] == dict.fromkeys(numbers, 1)
    one = Write("c/a", {"m": {"0": 2}}, (("m", "0"),))
    after, results = apply_all([one] * 1_000, lambda _: wide, 2)
    assert fields(after["c/a"])["m"]["0"] == 2
    assert len(results) == 1_000


def test_a_commit_is_checked_as_a_whole() -> None:
    """What one write makes too large, a later one may mend."""
    large = Document("c/a", {"a": "x" * 700_000}, 1, 1)
    add = Write("c/a", {"b": "y" * 700_000}, (("b",),))
    with pytest.raises(InvalidArgument, match="maximum allowed size"):
        apply_all([add], lambda _: large, 2)
    after, _ = apply_all([add, Write("c/a", {}, (("a",),))], lambda _: large, 2)
    assert after["c/a"].fields.keys() == {"b"}
    with pytest.raises(InvalidArgument):
        apply_all([add, Write("c/b", {})], lambda _: large, 2)


def _write(letters: str) -> Write:
    """s: set, d: delete; + exists, - exists not, 1 or 2: an update_time."""
    kind, condition = letters[0], letters[1:]
    return Write(
        "c/a",
        {"v": 1} if kind == "s" else None,
        exists={"+": True, "-": False}.get(condition),
        update_time=int(condition) if condition.isdigit() else None,
    )


@pytest.mark.parametrize(
    ("first", "later", "stands"),
    [
        *(("s", "s+", True), ("s", "s-", False), ("s", "d-", False), ("s", "s1", False)),
        *(("d", "s-", True), ("d", "s+", False), ("d", "d+", False), ("d", "d-", True)),
        *(("d", "s1", False), ("d", "d1", False), ("d1", "d1", True), ("d1", "s1", False)),
        *(("s1", "s", True), ("s1", "s1", True), ("s1", "d1", True), ("s1", "s2", False)),
        *(("s1", "s+", True), ("s1", "s-", False), ("s+", "s1", False), ("s-", "s-", False)),
        *(("s-", "d", True), ("s-", "d+", True), ("d-", "s-", True), ("d+", "s-", True)),
    ],
)
def test_writes_of_one_document_stand_together(first: str, later: str, stands: bool) -> None:
    """The official emulator's table. Whatever is stored, so before anything is looked up."""
    writes = [_write(first), Write("c/b", {}, exists=False), _write(later)]
    if not stands:
        with pytest.raises(InvalidArgument):
            collapse(writes)
        return
    collapsed = collapse(writes)
    assert collapsed[:2] == writes[:2]
    assert (collapsed[2].exists, collapsed[2].update_time) == (None, None)
    assert collapsed[2].fields == writes[2].fields


def test_only_the_first_precondition_looks_at_what_is_stored() -> None:
    stored = Document("c/a", {"n": 1}, 5, 5)
    writes = [Write("c/a", {}, (), (INCREMENT,), update_time=5) for _ in range(3)]
    after, results = apply_all(writes, {"c/a": stored}.get, 9)
    assert after["c/a"] == Document("c/a", {"n": 4}, 5, 9)
    assert results == [(2,), (3,), (4,)]
    with pytest.raises(FailedPrecondition):
        apply_all(writes, {"c/a": Document("c/a", {}, 5, 6)}.get, 9)


def test_names_in_full_where_the_database_is_known() -> None:
    with pytest.raises(NotFound, match=r"^No document to update: c/a$"):
        check_precondition(Write("c/a", {}, exists=True), None)
    with pytest.raises(NotFound, match=r"^No document to update: projects/p/databases/d/.*/c/a$"):
        check_precondition(Write("c/a", {}, exists=True), None, Database("p", "d"))
