"""Requests' documents, and replies with documents."""

from collections.abc import Mapping
from typing import Any

from crossfade import wire
from crossfade.document import Database, Document, FieldPath, Fields, format_field_path
from crossfade.errors import InvalidArgument
from crossfade.write import Write, check
from crossfade_api.v1 import document_pb2
from crossfade_api.v1 import violet_pb2 as pb


def fields_of(message: Mapping[str, Any], field: str = "fields") -> Fields:
    """The values of a map. Raises InvalidArgument saying where one is none."""
    return {
        name: wire.decode_value_at(message[name], f"{field}.{format_field_path((name,))}")
        for name in message
    }


def update_of(request: Any, path: str, database: Database, extra: Fields | None = None) -> Write:
    """The update that a request with fields, update_mask and perhaps update_transforms asks
    for, and with the `extra` fields. Raises InvalidArgument for an illegal one."""
    message = document_pb2.Write()
    message.update.name = path
    for name in request.fields:
        message.update.fields[name].CopyFrom(request.fields[name])
    if request.HasField("update_mask"):
        message.update_mask.field_paths.extend(request.update_mask.field_paths)
    else:
        names = [format_field_path((name,)) for name in request.fields]
        message.update_mask.field_paths.extend(names)
    message.update_mask.SetInParent()
    if "update_transforms" in request.DESCRIPTOR.fields_by_name:
        message.update_transforms.extend(request.update_transforms)
    write = wire.decode_write(message, database, "fields")
    if extra:
        kept = tuple(names for names in write.mask or () if names[0] not in extra)
        mask: tuple[FieldPath, ...] = (*kept, *((name,) for name in extra))
        write = Write(path, {**(write.fields or {}), **extra}, mask, write.transforms)
    if not write.mask and not write.transforms:
        raise InvalidArgument("fields: there is nothing to set")
    check(write)
    return write


def put_of(request: Any, path: str, database: Database) -> Write:
    """As `update_of`, of a PutRequest: everything, unless it is to be merged."""
    if request.merge:
        return update_of(request, path, database)
    if request.HasField("update_mask"):
        raise InvalidArgument("update_mask: it is for a merge")
    write = Write(path, fields_of(request.fields))
    check(write)
    return write


def encode(database: Database, path: str, fields: Fields, into: Any) -> None:
    """Fills a Document message, without times."""
    into.name = database.full(path)
    wire.encode_fields(fields, into.fields)


def encode_whole(database: Database, document: Document, into: Any) -> None:
    """Fills a Document message, with its times."""
    wire.encode_document(document, database, into)


def changed(database: Database, path: str, fields: Fields | None, replayed: bool) -> pb.Changed:
    reply = pb.Changed(replayed=replayed)
    if fields is not None:
        encode(database, path, fields, reply.document)
    return reply


def found(data: bytes) -> bytes:
    """The bytes of a Found reply: the document's own are not decoded."""
    return wire.field_bytes(1, data)


def documents(messages: list[Any], token: str) -> pb.Documents:
    reply = pb.Documents(next_page_token=token)
    reply.documents.extend(messages)
    return reply


def swept(paths: list[str], token: str) -> pb.Swept:
    ids = [path.rpartition("/")[2] for path in paths]
    return pb.Swept(ids=ids, count=len(ids), next_page_token=token)
