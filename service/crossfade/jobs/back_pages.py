"""Pages of PostgreSQL, the authority: what Firestore does not hold as it should is queued."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossfade.document import collection_id
from crossfade.failpoints import reach
from crossfade.jobs.both import Both
from crossfade.jobs.work import Read
from crossfade.snapshot import Snapshot
from crossfade.store import Stored
from crossfade.stores.postgres.held import Held
from crossfade.stores.postgres.jobs import Checkpoint, Counts, Job, Partition, add, intent_of


@dataclass(frozen=True, slots=True)
class Back:
    """What PostgreSQL held, and a moment later Firestore, path by path."""

    snapshot: Snapshot
    held: Sequence[Held]
    found: Sequence[Stored]


class BackPages:
    """Reads both stores; the workers that settle pending rows do the rest."""

    def __init__(self, stores: Both, job: Job) -> None:
        self._stores = stores
        self._job = job

    async def open(self) -> None:
        """Nothing has to be kept: what is queued is read anew when it is put."""

    async def renew(self) -> None:
        """Nothing is held."""

    async def close(self) -> None:
        """Nothing is held."""

    async def read(self, partition: Partition, limit: int) -> Read[Back]:
        snapshot = self._stores.control.snapshot
        held = await self._stores.held.page(
            partition.begin,
            partition.end,
            partition.position,
            limit=limit,
            timeout=self._stores.timeout,
        )
        ours = self._stores.control.group
        own = [each for each in held if ours.holds(collection_id(each.path))]
        found: Sequence[Stored] = ()
        if own:
            paths = [each.path for each in own]
            found = await self._stores.firestore.identities(paths, timeout=self._stores.timeout)
        reach("backfill.read")
        return Read(
            Back(snapshot, own, found),
            documents=len(held),
            last=held[-1].path if held else partition.position,
            ended=len(held) < limit,
            reads=len(own),
        )

    async def settle(self, partition: Partition, page: Read[Back], lease: float) -> Partition:
        counts: Counts = {name: dict(words) for name, words in partition.counts.items()}
        paths = []
        for held, found in zip(page.items.held, page.items.found, strict=True):
            wanted = lacks(held, found)
            word = "queued" if wanted else "held"
            add(counts, {collection_id(held.path): {word: 1}} if held.live or wanted else {})
            paths += [held.path] if wanted else []
        await self._stores.held.queue(
            intent_of(self._job.id),
            paths,
            epoch=page.items.snapshot.epoch,
            generation=self._job.generation,
            also=Checkpoint(partition, page.last, counts, page.ended, lease),
            timeout=self._stores.timeout,
        )
        reach("backfill.put")
        return replace(partition, position=page.last, counts=counts)


def lacks(held: Held, found: Stored) -> bool:
    """Whether Firestore has something else than PostgreSQL would have it hold. What is pending is
    on its way, and looks the same."""
    if held.pending:
        return False
    has = 0 if found.data is None or found.version is None else found.version[1]
    return has != held.peer_time and not (held.peer_time is None and not held.live and not has)
