"""The first copy: every document of Firestore into PostgreSQL, while traffic runs.

Until it has ended, the wildcard pending row keeps the mirror from answering
anything: "not pending" is not "copied". Pages are put under the guard, so a page
never overwrites a newer write and never resurrects a delete. The sweep then
queues a recopy of what PostgreSQL has and no page had.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from crossfade.control import Control
from crossfade.document import Database, Document, collection_id, is_own
from crossfade.errors import CrossfadeError, FailedPrecondition
from crossfade.failpoints import reach
from crossfade.jobs.scan import scan
from crossfade.plan import StoreName
from crossfade.snapshot import Snapshot
from crossfade.stores.firestore import INTENTS, UNMIRRORED, FirestoreStore
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.stores.postgres.way_back import Request

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """`removed`: documents that PostgreSQL had and no page had, queued for a recopy."""

    copied: int
    removed: int
    done: bool


async def backfill(
    control: Control, firestore: FirestoreStore, mirror: Mirror, database: Database, timeout: float
) -> AsyncIterator[Progress]:
    """Copies everything of the group; yields after every page.

    Raises FailedPrecondition in a stage that does not mirror Firestore, EpochChanged
    when the stage left dual writing or the authority changed meanwhile.
    """
    snapshot = control.snapshot
    if snapshot.authority is not StoreName.FIRESTORE or not snapshot.rules.mirrored:
        raise FailedPrecondition(
            f"stage {snapshot.stage}: there is nothing to copy; set stage dual_write first"
        )
    await control.copy_may_begin(time.monotonic() + timeout)
    token = time.time_ns() // 1_000
    await mirror.begin_copy(token, timeout=timeout)
    try:
        async for progress in _copy(control, snapshot, firestore, mirror, database, token, timeout):
            yield progress
    finally:
        # Without it no tombstone would be pruned until the copy's lease is over.
        with suppress(CrossfadeError):
            await mirror.end_copy(token, timeout=timeout)


def _requests_of_stage_off(page: Sequence[Document]) -> list[Request]:
    """Nothing told PostgreSQL that they were done, and it has to know once it is in charge."""
    return [
        Request(document.path.removeprefix(f"{INTENTS}/"), document.create_time, ())
        for document in page
        if document.path.startswith(f"{INTENTS}/") and document.fields.get(UNMIRRORED) is True
    ]


async def _copy(
    control: Control,
    snapshot: Snapshot,
    firestore: FirestoreStore,
    mirror: Mirror,
    database: Database,
    token: int,
    timeout: float,
) -> AsyncIterator[Progress]:
    copied = 0
    async for page in scan(firestore, database, timeout=timeout, own=True):
        reach("backfill.read")
        images = [
            Image(document.path, document.fields, document.update_time, document.create_time)
            for document in page
            if not is_own(document.path) and control.group.holds(collection_id(document.path))
        ]
        # An empty page, too: it says that the copy goes on.
        await mirror.put_page(
            images,
            epoch=snapshot.epoch,
            generation=snapshot.generation,
            token=token,
            timeout=timeout,
            requests=_requests_of_stage_off(page),
        )
        reach("backfill.put")
        copied += len(images)
        yield Progress(copied, 0, done=False)
    removed = await mirror.finish_copy(
        token, epoch=snapshot.epoch, generation=snapshot.generation, timeout=timeout
    )
    reach("backfill.swept")
    log.info("copy ended", documents=copied, swept=removed)
    yield Progress(copied, removed, done=True)
