"""The messages of crossfade.v1 have the field numbers and types of google.firestore.v1's, so
that bytes of one side are read by the other."""

from typing import Any

import pytest
from google.cloud.firestore_v1 import types

from crossfade_api.v1 import crossfade_pb2, document_pb2, query_pb2

SAME: list[tuple[Any, Any]] = [
    (document_pb2.Document, types.Document),
    (document_pb2.Value, types.Value),
    (document_pb2.ArrayValue, types.ArrayValue),
    (document_pb2.MapValue, types.MapValue),
    (document_pb2.DocumentMask, types.DocumentMask),
    (document_pb2.Precondition, types.Precondition),
    (document_pb2.DocumentTransform, types.DocumentTransform),
    (document_pb2.Write, types.Write),
    (document_pb2.WriteResult, types.WriteResult),
    (query_pb2.StructuredQuery, types.StructuredQuery),
    (query_pb2.Cursor, types.Cursor),
    (query_pb2.StructuredAggregationQuery, types.StructuredAggregationQuery),
    (crossfade_pb2.AggregationResult, types.AggregationResult),
]
# Ours are joined from many of theirs: our field is repeated, or theirs is not in ours.
COMPATIBLE: list[tuple[Any, Any, dict[str, str]]] = [
    (crossfade_pb2.BatchGetDocumentsReply, types.BatchGetDocumentsResponse, {}),
    (crossfade_pb2.QueryReply, types.RunQueryResponse, {"documents": "document"}),
    (crossfade_pb2.CommitReply, types.CommitResponse, {}),
    (crossfade_pb2.AggregateReply, types.RunAggregationQueryResponse, {}),
]
# Our own field in a message of theirs; its number is free there.
OWN = {"CommitReply.replayed"}


def compare(ours: Any, theirs: Any, seen: set[str]) -> list[str]:
    """What differs between two message descriptors, in them and below them."""
    if ours.full_name in seen:
        return []
    seen.add(ours.full_name)
    if ours.full_name == theirs.full_name:  # google.protobuf and google.type are shared
        return []
    differences = []
    known = {field.number: field for field in theirs.fields}
    for field in ours.fields:
        where = f"{ours.full_name}.{field.name} = {field.number}"
        other = known.get(field.number)
        if other is None:
            differences.append(f"{where}: no such number there")
            continue
        if field.name != other.name.rstrip("_"):
            differences.append(f"{where}: called {other.name} there")
        differences += compare_fields(where, field, other, seen)
    return differences


def compare_fields(where: str, field: Any, other: Any, seen: set[str]) -> list[str]:
    differences = []
    if field.type != other.type:
        differences.append(f"{where}: type {field.type}, there {other.type}")
    if field.is_repeated != other.is_repeated:
        differences.append(f"{where}: repeated on one side only")
    ours_in, theirs_in = field.containing_oneof, other.containing_oneof
    if (ours_in and ours_in.name) != (theirs_in and theirs_in.name):
        differences.append(f"{where}: another oneof")
    if field.message_type is not None and other.message_type is not None:
        differences += compare(field.message_type, other.message_type, seen)
    if field.enum_type is not None and field.enum_type.full_name != other.enum_type.full_name:
        ours = {value.number: value.name for value in field.enum_type.values}
        theirs = {value.number: value.name for value in other.enum_type.values}
        differences += [
            f"{where}: {name} is {theirs.get(number)} there"
            for number, name in ours.items()
            if theirs.get(number) != name
        ]
    return differences


@pytest.mark.parametrize(("ours", "theirs"), SAME, ids=lambda message: message.__name__)
def test_same_messages(ours: Any, theirs: Any) -> None:
    assert compare(ours.DESCRIPTOR, theirs.pb().DESCRIPTOR, set()) == []


@pytest.mark.parametrize(("ours", "theirs", "renamed"), COMPATIBLE)
def test_compatible_replies(ours: Any, theirs: Any, renamed: dict[str, str]) -> None:
    known = {field.number: field for field in theirs.pb().DESCRIPTOR.fields}
    for field in ours.DESCRIPTOR.fields:
        if f"{ours.__name__}.{field.name}" in OWN:
            assert field.number not in known
            continue
        other = known[field.number]
        assert renamed.get(field.name, field.name) == other.name
        assert field.type == other.type
        if field.message_type is not None:
            assert compare(field.message_type, other.message_type, set()) == []


def test_every_kind_of_value_that_can_be_stored_is_ours() -> None:
    """What theirs has and ours has not are parts of expressions, not of documents."""
    ours = {field.name for field in document_pb2.Value.DESCRIPTOR.fields}
    theirs = {field.name for field in types.Value.pb().DESCRIPTOR.fields}
    assert ours < theirs
    expressions = {"field_reference_value", "function_value", "pipeline_value"}
    assert theirs - ours <= expressions | {"variable_reference_value"}


def test_every_operator_is_ours() -> None:
    for name in ("FieldFilter", "UnaryFilter", "CompositeFilter"):
        ours = query_pb2.StructuredQuery.DESCRIPTOR.nested_types_by_name[name].enum_types[0]
        nested = types.StructuredQuery.pb().DESCRIPTOR.nested_types_by_name[name]
        theirs = nested.enum_types_by_name["Operator"]
        assert {v.name: v.number for v in ours.values} == {v.name: v.number for v in theirs.values}


def test_the_comparison_finds_differences() -> None:
    """A test of the test: messages that differ are told apart."""
    document, value = document_pb2.Document.DESCRIPTOR, types.Value.pb().DESCRIPTOR
    assert compare(document, value, set())
