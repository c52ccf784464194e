"""Pages of Firestore, the authority, put into PostgreSQL under the guard."""

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from crossfade import wire
from crossfade.document import NAME, Reference, collection_id, collection_path, is_own
from crossfade.errors import (
    Aborted,
    CrossfadeError,
    EpochChanged,
    InfrastructureError,
    ResourceExhausted,
)
from crossfade.failpoints import reach
from crossfade.jobs.both import Both
from crossfade.jobs.partitions import NameRange
from crossfade.jobs.planning import within
from crossfade.jobs.work import Read
from crossfade.query import Cursor, FieldFilter, Op, Order, Query
from crossfade.snapshot import Snapshot
from crossfade.stores.firestore import INTENTS, UNMIRRORED
from crossfade.stores.postgres.jobs import Checkpoint, Counts, Job, NewLetter, Partition, add
from crossfade.stores.postgres.lanes import Connection
from crossfade.stores.postgres.mirror import Imaged, Sent, Tally
from crossfade.stores.postgres.way_back import Request
from crossfade_api.v1 import document_pb2 as pb

log = structlog.get_logger(__name__)

MOST_BYTES = 8 * 1_048_576
"""A page is cut when it holds so many: a few hundred documents of the largest size would be
hundreds of megabytes."""
_PASSING = (InfrastructureError, EpochChanged, Aborted, ResourceExhausted)
"""What is no document's fault, but that of a store or of the moment."""


def copy_token() -> int:
    """Names what registered before it read pages. No two are the same."""
    return secrets.randbits(62)


@dataclass(frozen=True, slots=True)
class Forward:
    """Documents as Firestore sent them, read under this snapshot."""

    snapshot: Snapshot
    documents: Sequence[bytes]


class ForwardPages:
    """Pages of Firestore, put into PostgreSQL."""

    def __init__(self, stores: Both, job: Job) -> None:
        self._stores = stores
        self._job = job
        self._token: int | None = None

    async def open(self) -> None:
        """From here on no tombstone is pruned."""
        token = copy_token()
        await self._stores.mirror.begin_copy(token, timeout=self._stores.timeout)
        self._token = token

    async def renew(self) -> None:
        if self._token is not None:
            await self._stores.mirror.renew_copy(self._token, timeout=self._stores.timeout)

    async def close(self) -> None:
        if self._token is not None:
            await self._stores.mirror.end_copy(self._token, timeout=self._stores.timeout)
            self._token = None

    async def read(self, partition: Partition, limit: int) -> Read[Forward]:
        snapshot = self._stores.control.snapshot
        found, cut, size = [], False, 0
        pages = self._stores.firestore.query(_query(partition, limit), timeout=self._stores.timeout)
        async with aclosing(pages):  # type: ignore[type-var]
            async for page in pages:
                found += [
                    value
                    for number, value in wire.scan(page.frames)
                    if number == 1 and isinstance(value, bytes)
                ]
                size += len(page.frames)
                if size >= MOST_BYTES:
                    cut = True
                    break
        reach("backfill.read")
        return Read(
            Forward(snapshot, found),
            documents=len(found),
            last=self._path(found[-1]) if found else partition.position,
            ended=not cut and len(found) < limit,
            reads=max(1, len(found)),
        )

    async def settle(self, partition: Partition, page: Read[Forward], lease: float) -> Partition:
        documents = page.items.documents
        try:
            done = await self._put(partition, page, documents, page.ended, lease)
        except _PASSING:
            raise
        except Exception as error:
            if not documents:
                raise
            log.info("a page is put in parts", job=self._job.id, error=type(error).__name__)
            done = await self._halves(partition, page, documents, page.ended, lease, error)
        reach("backfill.put")
        return done

    async def _halves(
        self,
        partition: Partition,
        page: Read[Forward],
        documents: Sequence[bytes],
        ended: bool,
        lease: float,
        error: Exception,
    ) -> Partition:
        """What one document cannot pass is not the others' fault: it becomes a letter."""
        if len(documents) == 1:
            return await self._bury(partition, page, documents[0], ended, lease, error)
        middle = len(documents) // 2
        for half, last in ((documents[:middle], False), (documents[middle:], ended)):
            try:
                partition = await self._put(partition, page, half, last, lease)
            except _PASSING:
                raise
            except Exception as refused:  # noqa: BLE001 - it is met again, in smaller parts
                partition = await self._halves(partition, page, half, last, lease, refused)
        return partition

    async def _put(
        self,
        partition: Partition,
        page: Read[Forward],
        documents: Sequence[bytes],
        ended: bool,
        lease: float,
    ) -> Partition:
        """One transaction, at the end of which the partition stands behind these documents."""
        sent = list(self._sent(documents))
        holds = self._stores.control.group.holds
        collections = Counter(collection_path(each.path) for each in sent)
        copied = {
            name for name in collections if not is_own(name) and holds(name.rpartition("/")[2])
        }
        images = [each for each in sent if collection_path(each.path) in copied]
        counts: Counts = {}
        for name in copied:
            add(counts, {name.rpartition("/")[2]: {"copied": collections[name]}})
        position = sent[-1].path if sent else partition.position
        tally: Tally = Counter()
        checkpoint = _Progress(partition, position, counts, ended, lease, tally)
        requests = [
            Request(each.path.removeprefix(f"{INTENTS}/"), each.create_time, ())
            for each in sent
            if each.path.startswith(f"{INTENTS}/")
            and wire.decode_fields(each.message.fields).get(UNMIRRORED) is True
        ]
        await self._put_page(page, images, checkpoint, requests, tally)
        await self._stores.mirror.statistics.grew({name: collections[name] for name in copied})
        return checkpoint.after

    async def _bury(
        self,
        partition: Partition,
        page: Read[Forward],
        document: bytes,
        ended: bool,
        lease: float,
        error: Exception,
    ) -> Partition:
        path = self._path(document)
        cause = error.code if isinstance(error, CrossfadeError) else type(error).__name__
        log.error("a document cannot be stored", job=self._job.id, error=cause)
        letter = NewLetter(path, cause, document, page.items.snapshot.epoch)
        counts: Counts = {collection_id(path): {"letters": 1}}
        checkpoint = _Progress(partition, path, counts, ended, lease, Counter(), (letter,))
        await self._put_page(page, [], checkpoint, [], Counter())
        return checkpoint.after

    async def _put_page(
        self,
        page: Read[Forward],
        images: Sequence[Imaged],
        checkpoint: "_Progress",
        requests: Sequence[Request],
        tally: Tally,
    ) -> None:
        snapshot = page.items.snapshot
        if self._token is None:
            raise Aborted("the pages were closed meanwhile")
        await self._stores.mirror.put_page(
            images,
            epoch=snapshot.epoch,
            generation=self._job.generation,
            token=self._token,
            timeout=self._stores.timeout,
            requests=requests,
            seen=self._job.token,
            also=checkpoint,
            tally=tally,
        )

    def _sent(self, documents: Sequence[bytes]) -> Iterator[Sent]:
        database = self._stores.database
        root = f"{database.root}/"
        for data in documents:
            message = pb.Document.FromString(data)
            name = message.name
            path = name[len(root) :] if name.startswith(root) else database.relative(name)
            created = wire.decode_time(message.create_time)
            yield Sent(path, message, wire.decode_time(message.update_time), created)

    def _path(self, document: bytes) -> str:
        return self._stores.database.relative(wire.identity_of(document)[0])


@dataclass(slots=True)
class _Progress:
    """A checkpoint that is made when it is known what was put. `after`: the partition then."""

    partition: Partition
    position: str | None
    counts: Counts
    ended: bool
    lease: float
    tally: Tally
    letters: Sequence[NewLetter] = ()
    after: Partition = None  # type: ignore[assignment]

    async def record(self, connection: Connection) -> None:
        counts: Counts = {name: dict(words) for name, words in self.partition.counts.items()}
        add(counts, self.counts)
        for (name, word), count in self.tally.items():
            if count:
                add(counts, {name: {word: count}})
        checkpoint = Checkpoint(
            self.partition, self.position, counts, self.ended, self.lease, self.letters
        )
        await checkpoint.record(connection)
        self.after = replace(self.partition, position=self.position, counts=counts)


def _query(partition: Partition, limit: int) -> Query:
    """The partition's documents behind its position."""
    if partition.collection != INTENTS:
        names = NameRange(partition.collection, partition.begin, partition.end)
        return within(names, after=partition.position, limit=limit)
    # Of Crossfade's own documents, only what PostgreSQL was never told of.
    after = partition.position
    return Query(
        collection=INTENTS,
        where=FieldFilter((UNMIRRORED,), Op.EQUAL, True),
        order_by=(Order(NAME),),
        start=None if after is None else Cursor((Reference(after),), before=False),
        limit=limit,
    )
