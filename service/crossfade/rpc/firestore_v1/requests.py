"""Pieces of requests: names, masks, moments, page tokens."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from crossfade import wire
from crossfade.document import (
    Database,
    FieldPath,
    check_document_path,
    check_id,
    parse_field_path,
)
from crossfade.errors import InvalidArgument
from crossfade.rpc.firestore_v1.backend import Backend
from crossfade.store import NOW, At
from crossfade.write import MAX_COMMIT_BYTES, Write

MAX_DATABASE_NAME = 100
"""Characters. Firestore's own limits, 30 and 63, are checked where databases are made."""


def parse(kind: Any, data: bytes) -> Any:
    """The request as a message of a protobuf class. Raises InvalidArgument for bytes that
    are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(
            f"the request is not a {kind.__name__} message, or nests deeper than protobuf reads"
        ) from error


def database_of(name: str, field: str = "database") -> Database:
    parts = name.split("/", 4)
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != "databases" or not all(parts):
        raise InvalidArgument(
            f'{field}: Database name "{name[:120]}" is not projects/PROJECT/databases/DATABASE'
        )
    if max(len(parts[1]), len(parts[3])) > MAX_DATABASE_NAME:
        raise InvalidArgument(
            f"{field}: the name of a project or a database has more than {MAX_DATABASE_NAME} "
            f"characters, the limit"
        )
    return Database(parts[1], parts[3])


def parent_of(name: str, field: str = "parent") -> tuple[Database, str]:
    """The database and the document, "" for the root, below which something lies."""
    start, separator, path = name.partition("/documents")
    if not separator or (path and not path.startswith("/")):
        raise InvalidArgument(
            f'{field}: Document parent name "{name[:120]}" is not .../documents or a document name'
        )
    if path:
        check_document_path(path[1:], field)
    return database_of(start, field), path[1:]


def document_of(name: str, field: str) -> tuple[Database, str]:
    """The database and the path of a document's full name."""
    database = database_of("/".join(name.split("/", 4)[:4]), field)
    return database, path_of(name, database, field)


def path_of(name: str, database: Database, field: str) -> str:
    """The relative path of a full name."""
    check_full(name, field)
    return check_document_path(database.relative(name, field), field)


def check_full(name: str, field: str) -> None:
    """The protocol knows no relative names."""
    if not name.startswith("projects/"):
        raise InvalidArgument(f'{field}: Document name "{name[:120]}" lacks "projects" at index 0.')


def collection_of(parent: str, collection: str) -> str:
    """The path of a collection below a document, or below the root for ""."""
    check_id(collection, "collection_id", numeric=False)
    return f"{parent}/{collection}" if parent else collection


def mask_of(message: Any, field: str = "mask") -> tuple[FieldPath, ...] | None:
    """The paths of a DocumentMask; None if it is not set."""
    if not message.HasField(field):
        return None
    return tuple(parse_field_path(text, field) for text in getattr(message, field).field_paths)


def writes_of(messages: Sequence[Any], database: Database) -> list[Write]:
    """The writes of a commit."""
    writes = []
    for index, message in enumerate(messages):
        field = f"writes[{index}]"
        if message.WhichOneof("operation") is not None:  # else the decoder refuses
            name = message.update.name or message.delete or message.transform.document
            check_full(name, f"{field}.name")
        writes.append(wire.decode_write(message, database, field))
    return writes


def check_size(data: bytes) -> None:
    """Raises InvalidArgument for a request with more writes than one may hold."""
    if len(data) > MAX_COMMIT_BYTES:
        raise InvalidArgument(
            f"commit: its size of {len(data)} bytes is over the limit of {MAX_COMMIT_BYTES}"
        )


async def moment_of(request: Any, backend: Backend) -> tuple[At, bytes]:
    """When a read is of, and the id of the transaction that it begins, if it does."""
    selector = request.WhichOneof("consistency_selector")
    if selector == "transaction":
        return At(transaction=request.transaction), b""
    if selector == "read_time":
        return At(read_time=wire.decode_time(request.read_time, "read_time")), b""
    if selector == "new_transaction":
        identity = await begin(request.new_transaction, backend)
        return At(transaction=identity), identity
    return NOW, b""


async def begin(options: Any, backend: Backend) -> bytes:
    """A transaction with the options of a TransactionOptions message."""
    if options.WhichOneof("mode") == "read_only":
        read_only = options.read_only
        read_time = None
        if read_only.HasField("read_time"):
            read_time = wire.decode_time(read_only.read_time, "options.read_only.read_time")
        return await backend.begin(read_only=True, read_time=read_time)
    return await backend.begin(retry=options.read_write.retry_transaction or None)


def page_size(request: Any, most: int, field: str = "page_size") -> int:
    """Between 1 and `most`; 0 stands for `most`."""
    size: int = getattr(request, field)
    if size < 0:
        raise InvalidArgument(f"{field}: Page size must be nonnegative.")
    return min(size, most) or most


def token(data: bytes) -> str:
    """A page token that holds some bytes."""
    return base64.urlsafe_b64encode(data).decode()


def token_bytes(text: str) -> bytes:
    """What `token` was given. Raises InvalidArgument for a text that it did not make."""
    try:
        return base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad_token() from error


def token_text(text: str) -> str | None:
    """As `token_bytes`, for tokens of text; None for no token."""
    try:
        return token_bytes(text).decode() if text else None
    except UnicodeDecodeError as error:
        raise _bad_token() from error


def _bad_token() -> InvalidArgument:
    return InvalidArgument("page_token: it is not one that an earlier answer held")
