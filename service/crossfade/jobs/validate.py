"""Validation: every document of both stores compared, while traffic runs.

Pages are compared as compare.py says. What differs is looked at again as a shadow read's
difference is (comparing.py): Firestore's state between two looks at PostgreSQL that agree
and show nothing pending. Only that counts. What moves at every look is kept, and looked at
once more when everything else is done.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crossfade.comparing import Comparer
from crossfade.content import Content, fields_bytes
from crossfade.document import collection_id, is_own
from crossfade.errors import EpochChanged
from crossfade.failpoints import reach
from crossfade.jobs.both import Both
from crossfade.jobs.compare import Apart, Slice, apart, as_stored, read_slice
from crossfade.jobs.tally import COMPARED, REPAIRED, RULED_OUT, SKIPPED, Tally
from crossfade.jobs.work import Read
from crossfade.plan import StoreName
from crossfade.samples import Redactor, version_of
from crossfade.store import Stored
from crossfade.stores.postgres.findings import Findings, Found
from crossfade.stores.postgres.intervals import Span
from crossfade.stores.postgres.jobs import Checkpoint, Job, Partition, intent_of
from crossfade.stores.postgres.ranges import Known, Ranges
from crossfade.verdict import BAD, Finding, Judge, Offer, Verdict
from crossfade_api.v1 import document_pb2 as pb

MAX_SAMPLES = 10
"""Of each collection and verdict, in each partition."""
MAX_MOVING = 2_000
"""Documents of a partition that moved at every look and are kept to be looked at again."""
MAX_MOVING_IN_ALL = 100_000
PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class How:
    """`quick`: by versions alone. `since`: only documents written from then on, in
    microseconds; None: all. `repair`: what differs is queued for a recopy."""

    quick: bool = False
    since: int | None = None
    repair: bool = False

    @property
    def mode(self) -> str:
        if self.since is not None:
            return "since"
        return "quick" if self.quick else "full"


@dataclass(frozen=True, slots=True)
class Side:
    """What a validation has beside what every job has."""

    both: Both
    ranges: Ranges
    findings: Findings
    redactor: Redactor
    stage: str


@dataclass(slots=True)
class _Told:
    """What came of a page. `bad`: the documents to be repaired."""

    tally: Tally
    found: list[Found] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


class ValidatePages:
    """The pages of one worker. `judge` and `comparer` are its own, so that what the rules took
    away is counted with the page that it was taken from."""

    def __init__(self, side: Side, job: Job, how: How, judge: Judge, comparer: Comparer) -> None:
        self._side = side
        self._both = side.both
        self._job = job
        self._how = how
        self._authority = StoreName(job.authority)
        self._judge = judge
        self._comparer = comparer
        self._group = side.both.control.group

    def _mine(self, path: str) -> bool:
        """Whether the document is of the group, and nobody's but the application's."""
        return self._group.holds(collection_id(path)) and not is_own(path)

    async def open(self) -> None:
        """Raises EpochChanged where what was compared so far says nothing any more."""
        snapshot = await self._both.control.refresh()
        if snapshot.epoch != self._job.epoch or snapshot.authority is not self._authority:
            raise EpochChanged(f"epoch {self._job.epoch} is over")

    async def close(self) -> None:
        """Nothing is held."""

    async def renew(self) -> None:
        """Nothing is held."""

    # --- a page -------------------------------------------------------------------------------

    async def read(self, partition: Partition, limit: int) -> Read[Slice]:
        span = Span(
            partition.begin if partition.position is None else partition.position,
            partition.end,
            included=partition.position is None,
            excluded=True,
        )
        piece, rest = await read_slice(
            self._both.firestore,
            self._both.database,
            span,
            limit=limit,
            timeout=self._both.timeout,
            names_only=self._how.quick or self._how.since is not None,
        )
        if not all(map(self._mine, piece.documents)):
            mine = {path: each for path, each in piece.documents.items() if self._mine(path)}
            piece = replace(piece, documents=mine)
        reach("validate.read")
        last = None if rest is None else rest.after
        return Read(piece, piece.reads, last, rest is None, max(1, piece.reads))

    async def settle(self, partition: Partition, page: Read[Slice], lease: float) -> Partition:
        told = _Told(Tally(partition.counts))
        if self._how.quick or self._how.since is not None:
            await self._by_version(page.items, told)
        else:
            async for found in apart(
                self._side.ranges,
                page.items,
                told.tally,
                timeout=self._both.timeout,
                mine=self._mine,
            ):
                await self._look_again(self._ruled(found, told.tally), told)
        await self.open()  # what was seen was seen under the epoch of the job
        if told.bad and self._how.repair:
            await self._repair(told)
        position = page.last or partition.position
        counts = told.tally.counts
        await self._side.findings.checkpoint(
            Checkpoint(partition, position, counts, page.ended, lease), told.found
        )
        reach("validate.counted")
        return replace(partition, position=position, counts=counts)

    async def _repair(self, told: _Told) -> None:
        await self._both.mirror.mark(
            intent_of(self._job.id),
            told.bad,
            epoch=self._job.epoch,
            reason="repair",
            authority=self._authority,
            timeout=self._both.timeout,
        )
        for path in told.bad:
            told.tally.count(collection_id(path), REPAIRED)

    # --- by version ---------------------------------------------------------------------------

    async def _by_version(self, piece: Slice, told: _Told) -> None:
        """Which documents have another version than they should, by what PostgreSQL remembers
        of Firestore's; those are looked at by content."""
        waiting = dict(piece.documents)
        tally, since = told.tally, self._how.since
        async for chunk in self._side.ranges.versions(piece.span, timeout=self._both.timeout):
            suspects: list[str] = []
            for known in chunk:
                ours = waiting.pop(known.path, None)
                if ours is None and not (piece.span.holds(known.path) and self._mine(known.path)):
                    continue
                if since is None:
                    suspect = not _agree(ours, known, tally)
                else:
                    suspect = _is_recent(ours, known, since)
                    if not suspect:
                        tally.count(collection_id(known.path), SKIPPED)
                    tally.count(collection_id(known.path), COMPARED)
                if suspect:
                    suspects.append(known.path)
            await self._look_again(suspects, told)
        await self._look_again(list(waiting), told)

    # --- what differs -------------------------------------------------------------------------

    def _ruled(self, found: Apart, tally: Tally) -> list[str]:
        """The paths that are to be looked at again. The others are equal under the rules."""
        suspects = []
        for path, (firestore, postgres) in found.items():
            if firestore is None or postgres is None:
                suspects.append(path)
                continue
            collection = collection_id(path)
            pair = as_stored(firestore), as_stored(postgres)
            left, right = pair if self._authority is StoreName.FIRESTORE else pair[::-1]
            counted = self._judge.differences(collection, left, right)
            if counted is not None:
                # What the rules took of it is counted with the second look.
                self._judge.take_ruled_out()
                suspects.append(path)
                continue
            tally.both(firestore, postgres)
            tally.count(collection, Verdict.MATCH)
            tally.count(collection, COMPARED)
            self._count_rules(tally, collection)
        return suspects

    def _count_rules(self, tally: Tally, collection: str) -> None:
        """Of a document that was just compared."""
        taken = self._judge.take_ruled_out()
        for (_, rule), count in taken.items():
            tally.rule(collection, rule, count)
        if taken:
            tally.count(collection, RULED_OUT)

    async def _look_again(self, suspects: Sequence[str], told: _Told) -> None:
        by_collection: dict[str, list[str]] = {}
        for path in suspects:
            by_collection.setdefault(collection_id(path), []).append(path)
        for collection, paths in by_collection.items():
            found = await self._comparer.settle(paths, offer_of(self._job, self._side, collection))
            # The rules have been asked once for each look; only the last one counts.
            self._judge.take_ruled_out()
            for finding in found:
                self._tell(collection, finding, told)

    def _tell(self, collection: str, finding: Finding, told: _Told) -> None:
        tally, verdict = told.tally, finding.verdict
        tally.count(collection, COMPARED)
        if verdict is Verdict.BEHIND:
            tally.count(collection, verdict)
            if tally.counts[collection][verdict] <= MAX_MOVING:
                told.found.append(Found(collection, finding.path, verdict.value, {}))
            return
        _count(tally, collection, finding)
        if verdict not in BAD:
            return
        told.bad.append(finding.path)
        if tally.counts[collection][verdict] <= MAX_SAMPLES:
            told.found.append(sample(self._side.redactor, collection, finding))


def _agree(ours: Content | None, known: Known, tally: Tally) -> bool:
    """Whether both stores have a path in the same version, or neither has it; counts that."""
    if not known.live and ours is None:
        return True
    if ours is None or not known.live or known.peer_time != ours.update_time:
        return False
    tally.equal(collection_id(ours.path), ours.version_lanes())
    return True


def _is_recent(ours: Content | None, known: Known, since: int) -> bool:
    if (ours is not None) is not known.live:
        return True
    return known.version[1] >= since or (ours is not None and ours.update_time >= since)


def _count(tally: Tally, collection: str, finding: Finding) -> None:
    """A finding that stands."""
    firestore, postgres = finding.firestore, finding.postgres
    tally.both(_content(firestore), _content(postgres))
    exists = any(each is not None and each.data is not None for each in (firestore, postgres))
    if finding.verdict is not Verdict.MATCH or exists:
        tally.count(collection, finding.verdict)
    if finding.verdict is Verdict.WRONG or finding.verdict is Verdict.STALE:
        tally.fields(collection, finding.differences)


def _content(stored: Stored | None) -> Content | None:
    if stored is None or stored.data is None:
        return None
    time = 0 if stored.version is None else stored.version[1]
    return Content(stored.path, time, fields_bytes(pb.Document.FromString(stored.data)))


def offer_of(job: Job, side: Side, collection: str) -> Offer:
    """As whom the comparer reads."""
    authority = StoreName(job.authority)
    return Offer(
        collection, "validate", authority, authority, job.epoch, side.stage, ("",), (), None
    )


def sample(redactor: Redactor, collection: str, finding: Finding) -> Found:
    """What is kept of a difference."""
    body: dict[str, Any] = {
        "differences": redactor.differences(collection, finding.differences),
        "versions": {
            "firestore": version_of(finding.firestore),
            "postgresql": version_of(finding.postgres),
        },
    }
    return Found(collection, finding.path, finding.verdict.value, body)


# --- the end -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Settled:
    """What came of the documents that had moved at every look: what differs, and the paths of
    those that still move."""

    found: list[Found] = field(default_factory=list)
    moving: list[str] = field(default_factory=list)


async def settle_moving(
    side: Side, job: Job, judge: Judge, comparer: Comparer, tally: Tally, patience: float
) -> Settled:
    """Looks at them again, for `patience` seconds at most while any moves; changes `tally`."""
    waiting = await side.findings.list(job.id, MAX_MOVING_IN_ALL, behind=True)
    left: dict[str, list[str]] = {}
    for each in waiting:
        left.setdefault(each.collection, []).append(each.path)
    settled = Settled()
    ends = time.monotonic() + patience
    while left:
        moving: dict[str, list[str]] = {}
        for collection, paths in left.items():
            findings = await comparer.settle(paths, offer_of(job, side, collection))
            judge.take_ruled_out()
            for finding in findings:
                if finding.verdict is Verdict.BEHIND:
                    moving.setdefault(collection, []).append(finding.path)
                    continue
                tally.count(collection, Verdict.BEHIND, -1)
                _count(tally, collection, finding)
                if finding.verdict in BAD:
                    settled.found.append(sample(side.redactor, collection, finding))
        left = moving
        if time.monotonic() >= ends:
            break
        if left:
            await asyncio.sleep(PAUSE_SECONDS)
    settled.moving = sorted(path for paths in left.values() for path in paths)
    return settled
