"""What Firestore tells of names alone: collections, partitions, the next document."""

from crossfade import wire
from crossfade.document import NAME, Reference
from crossfade.query import Cursor, Order, Query
from crossfade.stores.firestore import FirestoreStore
from crossfade_api.v1 import query_pb2

_PAGE = 300


async def collection_ids(
    firestore: FirestoreStore, parent: str = "", *, timeout: float
) -> list[str]:
    """The ids of the collections right below a document, or the root; those, too, that hold
    nothing but what lies below missing documents."""
    found: list[str] = []
    token = b""
    while True:
        request = wire.field_bytes(1, firestore.database.full(parent).encode())
        request += b"\x10" + wire.varint(_PAGE) + wire.field_bytes(3, token)
        reply = await firestore.ask("ListCollectionIds", request, parent, timeout=timeout)
        token = b""
        for number, value in wire.scan(reply):
            if number == 1 and isinstance(value, bytes):
                found.append(value.decode())
            elif number == 2 and isinstance(value, bytes):
                token = value
        if not token:
            return found


async def partition_points(
    firestore: FirestoreStore, collection: str, count: int, *, timeout: float
) -> list[str]:
    """At most `count` paths that cut the documents of a collection id, wherever they lie, into
    parts of about one size. Raises Unimplemented where the server cannot."""
    query = Query(collection=collection, all_descendants=True, order_by=(Order(NAME),))
    asked = wire.field_bytes(1, firestore.database.full("").encode())
    asked += wire.field_bytes(2, wire.encode_query(query, firestore.database))
    asked += b"\x18" + wire.varint(count)
    found: list[str] = []
    token = b""
    while True:
        request = asked + (wire.field_bytes(4, token) if token else b"")
        reply = await firestore.ask("PartitionQuery", request, "", timeout=timeout)
        token = b""
        for number, value in wire.scan(reply):
            if number == 1 and isinstance(value, bytes):
                cursor = query_pb2.Cursor.FromString(value)
                found += [firestore.database.relative(v.reference_value) for v in cursor.values]
            elif number == 2 and isinstance(value, bytes):
                token = value
        if not token:
            return found


async def first_from(
    firestore: FirestoreStore, begin: str, end: str | None, *, timeout: float
) -> str | None:
    """The path of the first document from a name on and before another. Bills one read."""
    query = Query(
        all_descendants=True,
        order_by=(Order(NAME),),
        start=Cursor((Reference(begin),), before=True),
        end=None if end is None else Cursor((Reference(end),), before=True),
        limit=1,
        select=(NAME,),
    )
    found = await firestore.find(query, timeout=timeout)
    return found[0].path if found else None
