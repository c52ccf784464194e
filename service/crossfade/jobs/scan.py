"""Every document of a store in name order, page by page."""

from collections.abc import AsyncIterator

from crossfade.document import NAME, Database, Document, Reference, is_own
from crossfade.query import Cursor, Order, Query
from crossfade.store import DocumentStore
from crossfade.wire import decode_document
from crossfade_api.v1 import crossfade_pb2

PAGE = 300


async def scan(
    store: DocumentStore, database: Database, *, timeout: float, own: bool = False
) -> AsyncIterator[list[Document]]:
    """Pages of all documents of all collections; of Crossfade's own only if `own`.

    Each page is a query of its own (`timeout` seconds), so the scan is no snapshot:
    what changes meanwhile is seen before or after its change.
    """
    after: str | None = None
    while True:
        query = Query(
            all_descendants=True,
            order_by=(Order(NAME),),
            start=None if after is None else Cursor((Reference(after),), before=False),
            limit=PAGE,
        )
        documents: list[Document] = []
        async for page in store.query(query, timeout=timeout):
            frames = crossfade_pb2.QueryReply.FromString(page.frames)
            documents += [decode_document(message, database) for message in frames.documents]
        yield [document for document in documents if own or not is_own(document.path)]
        if len(documents) < PAGE:
            return
        after = documents[-1].path
