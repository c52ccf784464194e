"""Requests as bytes, and the documents they are about."""

from collections.abc import Iterator
from typing import Any

from google.cloud.firestore_v1 import types

from crossfade import wire
from loadtests.bench import data

SERVICE = "/google.firestore.v1.Firestore/"
STREAMS = {"BatchGetDocuments", "RunQuery"}
FOUND = 100
"""Documents that each query finds."""

_Commit = types.CommitRequest.pb()
_Write = types.Write.pb()
_RunQuery = types.RunQueryRequest.pb()
_Query = types.StructuredQuery.pb()
_Value = types.Value.pb()


def database(project: str) -> str:
    return f"projects/{project}/databases/(default)"


def root(project: str) -> str:
    return f"{database(project)}/documents"


def written(name: str, fields: dict[str, Any]) -> Any:
    """A Write message that sets a document."""
    message = _Write()
    message.update.name = name
    wire.encode_fields(fields, message.update.fields)
    return message


# --- one document ------------------------------------------------------------------------------


def tasks(project: str) -> bytes:
    """The commit that makes the documents which are read and written one at a time: 1.2 kB
    and 25 fields each."""
    writes = [written(_task(project, number), data.fields(number)) for number in range(data.COUNT)]
    request: bytes = _Commit(database=database(project), writes=writes).SerializeToString()
    return request


def gets(project: str) -> list[bytes]:
    kind = types.GetDocumentRequest.pb()
    return [kind(name=_task(project, n)).SerializeToString() for n in range(data.COUNT)]


def batch_gets(project: str, documents: int = 1) -> list[bytes]:
    """Each of so many `documents`."""
    kind = types.BatchGetDocumentsRequest.pb()
    return [
        kind(
            database=database(project),
            documents=[_task(project, n) for n in range(first, first + documents)],
        ).SerializeToString()
        for first in range(0, data.COUNT, documents)
    ]


def commits(project: str) -> list[bytes]:
    """Of one write each. The second half sets the same documents to something else: a commit
    that changes nothing costs less."""
    return [
        _Commit(
            database=database(project),
            writes=[written(_task(project, n), data.fields(n) | {"priority": priority})],
        ).SerializeToString()
        for priority in ("high", "low")
        for n in range(data.COUNT)
    ]


def _task(project: str, number: int) -> str:
    return f"{root(project)}/{data.COLLECTION}/{data.task_id(number)}"


# --- many documents ----------------------------------------------------------------------------

_MICROS = 1_765_269_015_123_456


def small_documents(project: str, count: int) -> Iterator[Any]:
    """Writes of documents of five fields, about 100 bytes of them."""
    prefix = f"{root(project)}/small/"
    for number in range(count):
        message = _Write()
        update = message.update
        update.name = f"{prefix}s{number:07}"
        fields = update.fields
        fields["name"].string_value = f"a small document {number:07}"
        fields["count"].integer_value = number
        fields["score"].double_value = number / 7
        fields["active"].boolean_value = number % 2 == 0
        wire.encode_time(_MICROS + number, fields["at"].timestamp_value)
        yield message


def items(project: str, count: int) -> Iterator[Any]:
    """Writes of documents of which every query of `queries` finds `FOUND`, however many there
    are: one collection, and some of its group elsewhere."""
    for number in range(count):
        yield written(f"{root(project)}/items/i{number:06}", _item(number, count))
    for number in range(ELSEWHERE):
        item = _item(number, count) | {"group": "elsewhere", "tags": []}
        yield written(f"{root(project)}/shops/s{number}/items/i", item)


ELSEWHERE = 50


def _item(number: int, count: int) -> dict[str, Any]:
    groups = count // FOUND
    return {
        "group": f"g{number % groups}",
        "tags": [f"t{number % groups}", f"u{number % 3}"],
        "score": (number * 7_919 % count) / count,
        "title": f"item {number}",
        "number": number,
    }


def queries(project: str) -> dict[str, bytes]:
    """By what they show. The first is the one that has a target."""
    equal = _compare("group", "EQUAL", "g7")
    return {
        "equality": _query(project, equal),
        "equality in a collection group": _query(project, equal, descendants=True),
        "array-contains": _query(project, _compare("tags", "ARRAY_CONTAINS", "t7")),
        "order and limit": _query(project, order="score", limit=FOUND),
        "equality, order and limit": _query(project, equal, order="score", limit=FOUND),
    }


def _compare(path: str, operator: str, text: str) -> dict[str, Any]:
    value = _Value(string_value=text)
    return {"field_filter": {"field": {"field_path": path}, "op": operator, "value": value}}


def _query(
    project: str,
    where: dict[str, Any] | None = None,
    order: str | None = None,
    limit: int | None = None,
    *,
    descendants: bool = False,
) -> bytes:
    query = _Query(from_=[{"collection_id": "items", "all_descendants": descendants}])
    if where is not None:
        query.where.MergeFrom(type(query.where)(**where))
    if order is not None:
        query.order_by.add(direction="DESCENDING").field.field_path = order
    if limit is not None:
        query.limit.value = limit
    request: bytes = _RunQuery(parent=root(project), structured_query=query).SerializeToString()
    return request
