"""What validations found, and the certificates that come of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from crossfade.mapping import escape_path, unescape_path
from crossfade.stores.postgres.jobs import Checkpoint, End
from crossfade.stores.postgres.lanes import Lanes

KEPT = 50
"""Certificates of a group; older ones go, with what they found."""

_ADD = """insert into crossfade.findings (job, collection_id, path, verdict, body)
values ($1, $2, $3, $4, $5)"""
_LIST = """select collection_id, path, verdict, body from crossfade.findings
where job = $1 and (verdict = 'behind') = $2 order by id limit $3"""
_CERTIFY = """insert into crossfade.certificates
    (job, grp, epoch, generation, fingerprint, mode, collections, equal, report)
values ($1, $2, $3, $4, $5, $6, $7::text[], $8, $9)"""
_PRUNE = """with gone as (delete from crossfade.certificates where job in (
    select job from crossfade.certificates where grp = $1 order by job desc offset $2)
    returning job)
delete from crossfade.findings where job in (select job from gone)"""
_LATEST = """select job, at, extract(epoch from clock_timestamp() - at)::float8 as age,
    epoch, generation, fingerprint, mode, collections, equal
from crossfade.certificates
where grp = $1 and mode = 'full' and collections = '{}' order by job desc limit 1"""
_SUMMARIES = """select grp, job, at, extract(epoch from clock_timestamp() - at)::float8 as age,
    epoch, generation, fingerprint, mode, collections, equal,
    (report->>'seconds')::float8 as seconds, report->'by_collection' as by_collection,
    report->'moving' as moving, report->'integrity' as integrity
from crossfade.certificates where $1::text is null or grp = $1 order by job desc limit $2"""
_REPORT = "select report from crossfade.certificates where job = $1"


@dataclass(frozen=True, slots=True)
class Found:
    """`body`: what is shown of it, as JSON; values in it are redacted."""

    collection: str
    path: str
    verdict: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The outcome of a validation. `age`: seconds. `collections` none: everything."""

    job: int
    at: datetime
    age: float
    epoch: int
    generation: int
    fingerprint: str
    mode: str
    collections: tuple[str, ...]
    equal: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcome of a validation of a group, with what it counted and without a single
    document's name. `counts`: by collection id, then by the words of its report. `breaches`: how
    many documents violate integrity; `moving`: that never stood still, `dead` letters among
    them."""

    group: str
    certificate: Certificate
    seconds: float
    counts: Mapping[str, Mapping[str, int]]
    breaches: int
    moving: int
    dead: int


class Findings:
    def __init__(self, lanes: Lanes, timeout: float = 10.0) -> None:
        self._lanes = lanes
        self._timeout = timeout

    async def checkpoint(self, checkpoint: Checkpoint, found: Sequence[Found]) -> None:
        """How far a partition is, and what was found on the way there: both or neither.
        Raises JobStopped."""
        async with self._lanes.transaction(self._timeout) as connection:
            await checkpoint.record(connection)
            for each in found:
                await connection.execute(
                    _ADD,
                    checkpoint.partition.job,
                    escape_path(each.collection),
                    escape_path(each.path),
                    each.verdict,
                    dict(each.body),
                )

    async def list(self, job: int, limit: int, *, behind: bool = False) -> Sequence[Found]:
        """The samples, or the documents that moved."""
        rows = await self._lanes.fetch(_LIST, job, behind, limit, timeout=self._timeout)
        return [Found(unescape_path(r[0]), unescape_path(r[1]), r[2], r[3]) for r in rows]

    async def certify(
        self,
        end: End,
        report: Mapping[str, Any],
        *,
        group: str,
        epoch: int,
        generation: int,
        fingerprint: str,
        mode: str,
        collections: Sequence[str],
        equal: bool,
    ) -> None:
        """Ends the job with its certificate. Raises JobStopped where somebody else was first."""
        async with self._lanes.transaction(self._timeout) as connection:
            await end.record(connection)
            await connection.execute(
                _CERTIFY,
                end.job,
                group,
                epoch,
                generation,
                fingerprint,
                mode,
                [escape_path(name) for name in collections],
                equal,
                json.dumps(report),
            )
            await connection.execute(_PRUNE, group, KEPT)

    async def latest(self, group: str) -> Certificate | None:
        """Of the validations of everything, by content."""
        row = await self._lanes.fetchrow(_LATEST, group, timeout=self._timeout)
        if row is None:
            return None
        return Certificate(**{**dict(row), "collections": tuple(row["collections"])})

    async def summaries(self, group: str | None, limit: int) -> Sequence[Summary]:
        """The latest first; of a group, or of all."""
        rows = await self._lanes.fetch(_SUMMARIES, group, limit, timeout=self._timeout)
        return [_summary(dict(row)) for row in rows]

    async def report(self, job: int) -> Mapping[str, Any] | None:
        text = await self._lanes.fetchval(_REPORT, job, timeout=self._timeout)
        report: Mapping[str, Any] | None = None if text is None else json.loads(text)
        return report


def _summary(row: dict[str, Any]) -> Summary:
    by_collection, moving, integrity = (
        json.loads(row.pop(name)) for name in ("by_collection", "moving", "integrity")
    )
    group, seconds = row.pop("grp"), row.pop("seconds")
    collections = tuple(map(unescape_path, row.pop("collections")))
    return Summary(
        group,
        Certificate(**row, collections=collections),
        seconds,
        {
            each["collection"]: {word: n for word, n in each.items() if isinstance(n, int)}
            for each in by_collection
        },
        sum(each["count"] for each in integrity),
        moving["documents"],
        moving["dead_letters"],
    )
