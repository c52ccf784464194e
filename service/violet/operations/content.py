"""Files, voices, texts, metrics: documents that are put and taken away. Pure."""

from collections.abc import Mapping
from typing import Any

from crossfade.document import Document, Fields
from crossfade.write import Write, apply
from violet.operations.decision import Decision, put
from violet.operations.fields import age, at

UPLOADED = ("uploaded_at", "created_at")
"""The times that a file's age is counted from: the first kind of files has the first of
them only, all later ones the second."""


def store(
    document: Document | None, update: Write, key: str, now: int, *, merge: bool
) -> Decision[Fields]:
    """The document after a put. `key`: the field that holds its id, set where it is absent."""
    before = document if merge else None
    given = apply(update, before, now).fields or {}
    identity = update.path.rpartition("/")[2]
    created = {} if document is None else document.fields
    times: Fields = {"created_at": created.get("created_at", at(now)), "updated_at": at(now)}
    after = {key: identity, **times, **given}
    if ("updated_at",) not in (update.mask or ()) and merge:
        after["updated_at"] = at(now)
    return Decision(after, put(document, update.path, after))


def metric(path: str, name: str, value: float, data: Fields, recorded_at: int) -> Decision[Fields]:
    fields: Fields = {
        "metric_name": name,
        "metric_value": value,
        "metric_data": data,
        "recorded_at": at(recorded_at),
    }
    return Decision(fields, (Write(path, fields),))


def is_expired(file: Mapping[str, Any], now: int, older_than: float) -> bool:
    """A file without any time is never too old."""
    old = age(file, UPLOADED, now)
    return old is not None and old > older_than
