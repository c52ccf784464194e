"""What is done to one document, by itself."""

from collections.abc import Callable

from crossfade.call import Call
from crossfade.document import Document, Fields
from crossfade.transactions import Transaction
from crossfade.write import Write
from crossfade_api.v1 import violet_pb2 as pb
from violet.operations import messages
from violet.operations.data import Data, carry_out
from violet.operations.decision import Decision


async def put(
    data: Data,
    path: str,
    decide: Callable[[Document | None, int], Decision[Fields]],
    call: Call,
    request_id: str,
) -> pb.Changed:
    """The document at the path, as it is decided by what is there and the time."""

    async def work(transaction: Transaction) -> pb.Changed:
        document = await transaction.get(path)
        if transaction.replayed:
            fields = None if document is None else document.fields
            return messages.changed(data.database, path, fields, replayed=True)
        after = carry_out(transaction, decide(document, transaction.now))
        return messages.changed(data.database, path, after, replayed=False)

    return await data.run(work, call, request_id)


async def delete(data: Data, path: str, call: Call, request_id: str) -> pb.Deleted:
    async def work(transaction: Transaction) -> pb.Deleted:
        if transaction.replayed:
            return pb.Deleted(existed=True, replayed=True)
        existed = await transaction.get(path) is not None
        if existed:
            transaction.write(Write(path, None))
        return pb.Deleted(existed=existed)

    return await data.run(work, call, request_id)
