"""The first copy: every document of Firestore into PostgreSQL, while traffic runs.

Until it has ended, the wildcard pending row keeps the mirror from answering
anything: "not pending" is not "copied". Pages are put under the guard, so a page
never overwrites a newer write and never resurrects a delete. The sweep then
queues a recopy of what PostgreSQL has and no page had.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from crossfade_api.v1 import crossfade_pb2

from crossfade.control import Control
from crossfade.document import NAME, Database, Reference, is_own
from crossfade.errors import EpochChanged, FailedPrecondition
from crossfade.plan import StoreName
from crossfade.query import Cursor, Order, Query
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.wire import decode_document

log = structlog.get_logger(__name__)

PAGE = 300


@dataclass(frozen=True, slots=True)
class Progress:
    """`removed`: documents that PostgreSQL had and Firestore did not, queued for a recopy."""

    copied: int
    removed: int
    done: bool


async def backfill(
    control: Control, firestore: FirestoreStore, mirror: Mirror, database: Database, timeout: float
) -> AsyncIterator[Progress]:
    """Copies everything; yields after every page.

    Raises FailedPrecondition in a stage that does not mirror Firestore, EpochChanged
    when the authority changes meanwhile.
    """
    snapshot = control.snapshot
    if snapshot.authority is not StoreName.FIRESTORE or not snapshot.rules.mirrored:
        raise FailedPrecondition(
            f"stage {snapshot.stage}: there is nothing to copy; set stage dual_write first"
        )
    token = time.time_ns() // 1_000
    copied = 0
    after: str | None = None
    while True:
        query = Query(
            all_descendants=True,
            order_by=(Order(NAME),),
            start=Cursor((Reference(after),), before=False) if after is not None else None,
            limit=PAGE,
        )
        images, seen = [], 0
        async for page in firestore.query(query, timeout=timeout):
            for message in crossfade_pb2.QueryReply.FromString(page.frames).documents:
                document = decode_document(message, database)
                seen += 1
                after = document.path
                if not is_own(document.path):
                    images.append(
                        Image(
                            document.path,
                            document.fields,
                            document.update_time,
                            document.create_time,
                        )
                    )
        if images:
            await mirror.put_page(images, epoch=snapshot.epoch, token=token, timeout=timeout)
        copied += len(images)
        if seen < PAGE:
            break
        yield Progress(copied, 0, done=False)
    now = control.snapshot
    if (now.epoch, now.generation) != (snapshot.epoch, snapshot.generation):
        raise EpochChanged("the stage changed while the copy was under way; start it again")
    removed = await mirror.finish_copy(
        token, epoch=snapshot.epoch, generation=snapshot.generation, timeout=timeout
    )
    log.info("copy ended", documents=copied, swept=removed)
    yield Progress(copied, removed, done=True)
