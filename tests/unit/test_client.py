"""The client's sans-I/O core, judged by the service's own reading of the same messages."""

from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade import document as core
from crossfade import query as core_query
from crossfade import wire
from crossfade.write import Transform, TransformKind
from crossfade.write import Write as CoreWrite
from crossfade_api.v1 import crossfade_pb2 as rpc_pb
from crossfade_api.v1 import document_pb2 as pb
from crossfade_client import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    And,
    ArrayRemove,
    ArrayUnion,
    CrossfadeError,
    Filter,
    GeoPoint,
    Increment,
    InternalError,
    InvalidArgumentError,
    Maximum,
    Minimum,
    Or,
    OutcomeUnknownError,
    Query,
    Reference,
    RequestId,
    Snapshot,
    UnknownError,
    Write,
    _codec,
    _paths,
    _requests,
    query,
)
from crossfade_client.errors import from_status
from crossfade_client.values import FieldPath

DATABASE = core.Database("p")
MOMENT = datetime(2025, 12, 9, 10, 11, 12, 345678, tzinfo=UTC)


def core_write(write: Write) -> CoreWrite:
    return wire.decode_write(write.message, DATABASE)


# --- values --------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.just(UTC))
    | st.builds(Reference, st.just("projects/p/databases/(default)/documents/a/b"))
    | st.builds(GeoPoint, st.floats(-90, 90), st.floats(-180, 180))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def as_core(value):
    """The same value in the service's types."""
    if isinstance(value, Reference):
        return core.Reference(value.name)
    if isinstance(value, GeoPoint):
        return core.GeoPoint(value.latitude, value.longitude)
    if isinstance(value, list):
        return [as_core(item) for item in value]
    if isinstance(value, dict):
        return {name: as_core(item) for name, item in value.items()}
    return value


@given(st.dictionaries(names, values, max_size=5))
def test_values_mean_the_same_to_client_and_service(fields):
    message = pb.Document()
    _codec.encode_fields(fields, message.fields)
    assert core.identical(wire.decode_fields(message.fields), as_core(fields))

    back = pb.Document()
    wire.encode_fields(as_core(fields), back.fields)
    assert core.identical(as_core(_codec.decode_fields(back.fields)), as_core(fields))


class Status(str, Enum):  # noqa: UP042 (what violet has)
    PENDING = "pending"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (Status.PENDING, "pending"),
        ((1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (True, True),
        (
            datetime(2025, 1, 1, 3, tzinfo=timezone(timedelta(hours=3))),
            datetime(2025, 1, 1, tzinfo=UTC),
        ),
    ],
)
def test_subclasses_are_stored_as_what_they_are(given, stored):
    assert core.identical(core_write(Write.set("a/b", {"v": given})).fields, {"v": stored})


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (2**63, "field v: the integer does not fit 64 bits"),
        (-(2**63) - 1, "field v: the integer does not fit 64 bits"),
        ({"deep": [1, {"x": datetime(2025, 1, 1)}]}, "field v.deep[1].x: the datetime has no time"),  # noqa: DTZ001
        ("\ud800", "field v: the text is not valid Unicode"),
        ({1: 2}, "a field name of type int, not a text"),
        ([object()], r"field v\[0\]: a value of type object cannot be stored"),
        ([SERVER_TIMESTAMP], r"field v\[0\]: Sentinel may stand in a map"),
        (Increment("3"), "field v: the transform needs an int or a float"),  # type: ignore[arg-type]
        (Increment(True), "field v: the transform needs an int or a float"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_field(value, complaint):
    complaint = (
        complaint if "\\" in complaint else complaint.replace("[", r"\[").replace("]", r"\]")
    )
    with pytest.raises(InvalidArgumentError, match=complaint):
        Write.set("a/b", {"v": value})


def test_errors_never_quote_values():
    for secret in ("sesame\ud800", 2**63 + 12345, [["sesame", object()]]):
        with pytest.raises(InvalidArgumentError) as caught:
            Write.set("a/b", {"v": secret})
        assert "sesame" not in str(caught.value)
        assert "12345" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_a_value_of_unknown_type_is_an_error_not_null():
    with pytest.raises(InternalError):
        _codec.decode_value(pb.Value())


# --- field paths ---------------------------------------------------------------------------------


@given(st.lists(names, min_size=1, max_size=4).map(tuple))
def test_field_paths_are_spelled_as_the_service_reads_them(path):
    assert core.parse_field_path(_paths.spell(path)) == path
    assert _paths.parse(_paths.spell(path)) == path


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "`a", "a`b`", "`a`b"])
def test_what_is_no_field_path_is_refused(text):
    with pytest.raises(InvalidArgumentError, match="not a field path"):
        _paths.parse(text)


# --- writes --------------------------------------------------------------------------------------


def test_set_and_create():
    assert core_write(Write.set("a/b", {"n": 1})) == CoreWrite("a/b", {"n": 1})
    assert core_write(Write.create("a/b", {"n": 1})) == CoreWrite("a/b", {"n": 1}, exists=False)
    pinned = core_write(Write.set("a/b", {}, update_time=MOMENT))
    assert pinned.update_time == core.to_micros(MOMENT)
    assert pinned.exists is None


def test_transforms_leave_the_fields():
    write = core_write(
        Write.set(
            "a/b",
            {
                "kept": 1,
                "at": SERVER_TIMESTAMP,
                "n": Increment(2.5),
                "map": {"inner": {"most": Maximum(3)}, "plain": {}},
                "list": ArrayUnion([1, {"x": None}]),
                "less": ArrayRemove(["a"]),
                "min": Minimum(-1),
            },
        )
    )
    assert write.fields == {"kept": 1, "map": {"plain": {}}}
    assert write.mask is None
    assert write.transforms == (
        Transform(("at",), TransformKind.REQUEST_TIME),
        Transform(("n",), TransformKind.INCREMENT, 2.5),
        Transform(("map", "inner", "most"), TransformKind.MAXIMUM, 3),
        Transform(("list",), TransformKind.UNION, [1, {"x": None}]),
        Transform(("less",), TransformKind.REMOVE, ["a"]),
        Transform(("min",), TransformKind.MINIMUM, -1),
    )


def test_empty_unions_keep_their_kind():
    write = core_write(Write.set("a/b", {"u": ArrayUnion([]), "r": ArrayRemove([])}))
    assert [t.kind for t in write.transforms] == [TransformKind.UNION, TransformKind.REMOVE]


def test_merge_masks_the_leaves():
    write = core_write(
        Write.merge(
            "a/b",
            {
                "map": {"x": 1, "gone": DELETE_FIELD, "at": SERVER_TIMESTAMP},
                "empty": {},
                "list": [1],
                "odd.name": 2,
                "gone": DELETE_FIELD,
                "only": {"n": Increment(1)},
            },
        )
    )
    assert write.fields == {"map": {"x": 1}, "empty": {}, "list": [1], "odd.name": 2}
    assert set(write.mask or ()) == {
        ("map", "x"), ("map", "gone"), ("empty",), ("list",), ("odd.name",), ("gone",),
    }  # fmt: skip
    assert write.exists is None


def test_a_merge_of_nothing_still_masks():
    write = core_write(Write.merge("a/b", {}))
    assert write.mask == ()
    assert write.fields == {}


def test_update_names_field_paths():
    changes: dict[FieldPath, Any] = {
        "file.done": True,
        ("odd.name", "x"): 1,
        "map": {"a": 1, "at": SERVER_TIMESTAMP},
        "stamp": {"at": SERVER_TIMESTAMP},
        "gone.deep": DELETE_FIELD,
        "n": Increment(1),
    }
    write = core_write(Write.update("a/b", changes))
    assert write.fields == {
        "file": {"done": True},
        "odd.name": {"x": 1},
        "map": {"a": 1},
        "stamp": {},
    }
    assert write.mask == (
        ("file", "done"), ("odd.name", "x"), ("map",), ("stamp",), ("gone", "deep"),
    )  # fmt: skip
    assert [t.path for t in write.transforms] == [("map", "at"), ("stamp", "at"), ("n",)]
    assert write.exists is True


def test_update_with_a_time_has_no_second_condition():
    write = core_write(Write.update("a/b", {"n": 1}, update_time=MOMENT))
    assert write.exists is None
    assert write.update_time == core.to_micros(MOMENT)


def test_delete():
    assert core_write(Write.delete("a/b")) == CoreWrite("a/b", None)
    assert core_write(Write.delete("a/b", exists=True)) == CoreWrite("a/b", None, exists=True)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Write.set("a/b", {"x": {"y": DELETE_FIELD}}), "x.y: DELETE_FIELD is for merge"),
        (lambda: Write.create("a/b", {"x": DELETE_FIELD}), "x: DELETE_FIELD is for merge"),
        (lambda: Write.update("a/b", {"x": {"y": DELETE_FIELD}}), "x.y: DELETE_FIELD inside a map"),
        (lambda: Write.update("a/b", {"x": 1, "x.y": 2}), "x and x.y, which lies inside"),
        (lambda: Write.update("a/b", {"x": 1, "x.y": SERVER_TIMESTAMP}), "lies inside"),
        (lambda: Write.update("a/b", {}), "an update without fields"),
        (lambda: Write.delete("a/b", exists=True, update_time=MOMENT), "not both"),
        (lambda: Write.delete("a/b", update_time=MOMENT.replace(tzinfo=None)), "no time zone"),
    ],
)
def test_writes_without_a_meaning_are_refused(make, complaint):
    with pytest.raises(InvalidArgumentError, match=complaint):
        make()


# --- queries -------------------------------------------------------------------------------------


def core_of(built: Query) -> core_query.Query:
    request = query.request(built)
    return wire.decode_query(request.query, request.parent, DATABASE)


def leaf(path: str, op: core_query.Op, value=None) -> core_query.FieldFilter:
    return core_query.FieldFilter((path,), op, value)


def test_a_query_with_everything():
    built = (
        Query("tasks/1/chunks")
        .where("a", "==", 1)
        .where(Or(Filter("b", "in", [1, 2]), And(Filter("c", "array_contains", "x"))))
        .order_by("d", descending=True)
        .order_by(("e.f",))
        .start_after(1, 2)
        .end_at(3)
        .offset(4)
        .limit(0)
        .select("d", "g.h")
    )
    op = core_query.Op
    assert core_of(built) == core_query.Query(
        parent="tasks/1",
        collection="chunks",
        where=core_query.CompositeFilter(
            False,
            (
                leaf("a", op.EQUAL, 1),
                core_query.CompositeFilter(
                    True,
                    (
                        leaf("b", op.IN, [1, 2]),
                        core_query.CompositeFilter(False, (leaf("c", op.ARRAY_CONTAINS, "x"),)),
                    ),
                ),
            ),
        ),
        order_by=(core_query.Order(("d",), True), core_query.Order(("e.f",))),
        start=core_query.Cursor((1, 2), before=False),
        end=core_query.Cursor((3,), before=False),
        offset=4,
        limit=0,
        select=(("d",), ("g", "h")),
    )


@pytest.mark.parametrize(
    ("word", "value", "op"),
    [
        ("<", 1, "LESS_THAN"),
        ("<=", 1, "LESS_THAN_OR_EQUAL"),
        (">", 1, "GREATER_THAN"),
        (">=", 1, "GREATER_THAN_OR_EQUAL"),
        ("!=", 1, "NOT_EQUAL"),
        ("not-in", [1], "NOT_IN"),
        ("not_in", [1], "NOT_IN"),
        ("array-contains-any", [1], "ARRAY_CONTAINS_ANY"),
        ("array_contains_any", [1], "ARRAY_CONTAINS_ANY"),
    ],
)
def test_operators(word, value, op):
    assert core_of(Query("t").where("f", word, value)).where == leaf("f", core_query.Op(op), value)


@pytest.mark.parametrize(
    ("word", "value", "op"),
    [
        ("==", None, "IS_NULL"),
        ("!=", None, "IS_NOT_NULL"),
        ("==", float("nan"), "IS_NAN"),
        ("!=", float("nan"), "IS_NOT_NAN"),
    ],
)
def test_null_and_nan_are_unary(word, value, op):
    assert core_of(Query("t").where("f", word, value)).where == leaf("f", core_query.Op(op))


def test_a_collection_group():
    built = core_of(Query("chunks", group=True))
    assert (built.parent, built.collection, built.all_descendants) == ("", "chunks", True)


def test_an_empty_selection_selects_names_only():
    assert core_of(Query("t").select()).select == (("__name__",),)
    assert core_of(Query("t")).select is None


def test_operands_for_names_may_be_paths():
    built = Query("t").where("__name__", "in", ["t/1", Reference("t/2")])
    assert core_of(built).where == leaf(
        "__name__", core_query.Op.IN, [core.Reference("t/1"), core.Reference("t/2")]
    )


def snapshot(path: str, **fields) -> Snapshot:
    return Snapshot(DATABASE.full(path), fields, MOMENT, MOMENT)


def test_a_snapshot_as_cursor_spells_out_the_implicit_orders():
    built = Query("t").where("b", ">", 1).where("a", "!=", 2).where("c", "==", 3)
    found = core_of(built.start_after(snapshot("t/7", a=5, b=6, c=3)))
    assert found.order_by == tuple(core_query.Order((name,)) for name in ("a", "b", "__name__"))
    assert found.start == core_query.Cursor((5, 6, core.Reference("t/7")), before=False)

    ordered = core_of(Query("t").order_by("x", descending=True).end_before(snapshot("t/7", x=1)))
    assert ordered.order_by == (
        core_query.Order(("x",), True),
        core_query.Order(("__name__",), True),
    )
    assert ordered.end == core_query.Cursor((1, core.Reference("t/7")), before=True)


def test_a_snapshot_cursor_pages_through_everything():
    documents = [core.Document(f"t/{i}", {"n": i % 3}, 0, 0) for i in range(10)]
    page = Query("t").order_by("n").limit(4)
    seen: list[str] = []
    while found := core_query.run(core_of(page), documents):
        seen += [document.path for document in found]
        page = page.start_after(snapshot(found[-1].path, **found[-1].fields))
    assert seen == [d.path for d in sorted(documents, key=lambda d: (d.fields["n"], d.path))]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Query("t").where("f", "~", 1), "is not an operator"),
        (lambda: query.request(Query("tasks/1")), "not the path of a collection"),
        (lambda: query.request(Query("")), "not the path of a collection"),
        (Or, "Or of no filters"),
        (
            lambda: query.request(Query("t").order_by("x").start_at(snapshot("t/1"))),
            "lacks the field x",
        ),
        (lambda: query.request(Query("t").where("f", "==", object())), "field filter f"),
    ],
)
def test_queries_without_a_meaning_are_refused(make, complaint):
    with pytest.raises(InvalidArgumentError, match=complaint):
        make()


# --- requests, replies, retries -------------------------------------------------------------------


def test_request_ids():
    writes = [Write.delete("a/b")]
    one = _requests.commit_request(writes, RequestId.GENERATE).request_id
    other = _requests.commit_request(writes, RequestId.GENERATE).request_id
    assert one != other
    assert len(one) == 36
    assert _requests.commit_request(writes, None).request_id == ""
    assert _requests.commit_request(writes, "mine").request_id == "mine"
    with pytest.raises(InvalidArgumentError, match="no writes"):
        _requests.commit_request([], None)
    with pytest.raises(InvalidArgumentError, match="request_id: empty"):
        _requests.commit_request(writes, "")


def test_a_path_that_the_reply_leaves_out_is_no_missing_document():
    reply = rpc_pb.BatchGetDocumentsReply(missing=[DATABASE.full("a/1")])
    reply.found.add(name=DATABASE.full("a/2"))
    found = _requests.batch_get_result([reply], ["a/2", "a/1", "a/2"])
    assert [each and each.path for each in found] == ["a/2", None, "a/2"]
    with pytest.raises(InternalError, match="nothing of 1 of 2"):
        _requests.batch_get_result([reply], ["a/1", "a/3"])


def test_replies_that_do_not_fit_are_errors():
    request = _requests.commit_request([Write.delete("a/b")], None)
    for reply in (None, rpc_pb.CommitReply()):
        with pytest.raises(InternalError):
            _requests.commit_result(reply, request)
    for got in (None, rpc_pb.GetDocumentReply()):
        with pytest.raises(InternalError):
            _requests.get_result(got)
    with pytest.raises(InternalError):
        _requests.query_result(None)


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
def test_each_status_has_its_own_class(code):
    error = from_status(code, "why", request_id="r")
    assert type(error) is not CrossfadeError
    assert (error.code, error.details, error.request_id) == (code, "why", "r")
    assert str(error) == f"{code.name}: why"
    others = [from_status(c, "") for c in grpc.StatusCode if c not in {code, grpc.StatusCode.OK}]
    assert type(error) not in map(type, others)


def test_unknown_is_an_open_outcome_only_of_commits():
    unknown = grpc.StatusCode.UNKNOWN
    assert type(from_status(unknown, "")) is UnknownError
    assert type(from_status(unknown, "", commit=True)) is OutcomeUnknownError


def test_retries_end_with_the_count_and_the_deadline():
    now = 0.0
    unavailable = grpc.StatusCode.UNAVAILABLE
    attempts = _requests.Attempts(10.0, 3, clock=lambda: now)
    pauses = [attempts.pause(unavailable) for _ in range(4)]
    assert pauses[3] is None
    assert all(pause is not None and pause <= 0.02 * 2**n for n, pause in enumerate(pauses[:3]))

    late = _requests.Attempts(10.0, 99, clock=lambda: now)
    assert late.pause(unavailable) is not None
    now = 10.0
    assert late.pause(unavailable) is None
    assert late.remaining() > 0

    assert _requests.Attempts(1.0, 3).pause(grpc.StatusCode.ABORTED) is None
    assert _requests.Attempts(1.0, 3, safe=False).pause(unavailable) is None
    with pytest.raises(InvalidArgumentError, match="timeout"):
        _requests.Attempts(0, 3)
