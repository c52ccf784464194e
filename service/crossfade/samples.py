"""Samples of mismatches: what is kept of them, and what is shown of their values.

A sample stands for all mismatches of one signature (collection, operation, verdict, which
fields differ and how): the first and the latest of them are kept. Values are redacted,
unless their field is on the collection's `clear` list: type, length, and a keyed hash, by
which one sees whether two values are equal and nothing else.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from typing import Any, Protocol

import orjson
import structlog

from crossfade import redaction
from crossfade.diff import Difference, format_place
from crossfade.document import ABSENT, FieldPath, GeoPoint, Reference
from crossfade.errors import CrossfadeError
from crossfade.mapping.tagged import to_json
from crossfade.rules import is_under
from crossfade.store import Stored
from crossfade.telemetry import MISMATCHES_DROPPED, Telemetry
from crossfade.verdict import Finding, Offer

log = structlog.get_logger(__name__)

MAX_SIGNATURES = 500
"""Held in memory until they are written; more are dropped and counted."""
MAX_SHOWN_BYTES = 1_024
"""A longer value is redacted even where its field is clear."""
FLUSH_SECONDS = 1.0

_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "double",
    datetime: "timestamp",
    str: "string",
    bytes: "bytes",
    Reference: "reference",
    GeoPoint: "geo_point",
    list: "array",
    dict: "map",
}


class Redactor:
    """Shows values as samples may hold them.

    `clear`: by collection, the fields whose values may be read; it may be replaced. `key`: at
    most 64 bytes; under the same key equal values have equal hashes.
    """

    def __init__(self, key: bytes, clear: Mapping[str, Sequence[FieldPath]] | None = None) -> None:
        self._key = key
        self.clear = clear or {}

    def differences(self, collection: str, found: Sequence[Difference]) -> list[dict[str, Any]]:
        return [
            {
                "field": format_place(each.place),
                "kind": each.kind.value,
                "authority": self._shown(collection, each, each.authority),
                "mirror": self._shown(collection, each, each.mirror),
            }
            for each in found
        ]

    def _shown(self, collection: str, each: Difference, value: Any) -> dict[str, Any] | None:
        # A result as a whole has no value of its own.
        if value is ABSENT or not each.place:
            return None
        shown: dict[str, Any] = {"type": _TYPES[type(value)]}
        if isinstance(value, str | bytes | list | dict):
            shown["length"] = len(value)
        encoded = orjson.dumps(to_json(value), option=orjson.OPT_SORT_KEYS)
        if is_under(each.place, self.clear.get(collection, ())) and (
            len(encoded) <= MAX_SHOWN_BYTES
        ):
            return shown | {"value": to_json(value)}
        return shown | {"hash": blake2b(encoded, digest_size=8, key=self._key).hexdigest()}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What is known of one signature. `first` and `latest` are JSON; times are microseconds
    since 1970. `given_up`: its document was repaired too often in a row."""

    collection: str
    signature: str
    verdict: str
    operation: str
    path: str
    fields: tuple[str, ...]
    first: dict[str, Any]
    latest: dict[str, Any]
    count: int
    first_at: int
    latest_at: int
    given_up: bool


def signature(offer: Offer, finding: Finding) -> str:
    """The same for mismatches that differ in the same fields in the same way. The indices
    of arrays do not count."""
    places = sorted({(*_named(each), each.kind.value) for each in finding.differences})
    text = repr((offer.collection, offer.operation, finding.verdict.value, places))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _named(each: Difference) -> tuple[str, ...]:
    return tuple(part if isinstance(part, str) else "[]" for part in each.place)


class MismatchTable(Protocol):
    """Where the samples are kept."""

    async def put(self, mismatches: Sequence[Mismatch], *, timeout: float) -> None: ...


class Samples:
    """Collects samples and writes them now and then, never in anybody's way."""

    def __init__(
        self,
        redactor: Redactor,
        telemetry: Telemetry,
        table: MismatchTable | None = None,
        *,
        timeout: float = 5.0,
    ) -> None:
        self._redactor = redactor
        self._telemetry = telemetry
        self._table = table
        self._timeout = timeout
        self._held: dict[tuple[str, str], Mismatch] = {}

    @property
    def held(self) -> tuple[Mismatch, ...]:
        """Those that were not written yet."""
        return tuple(self._held.values())

    def add(self, offer: Offer, finding: Finding, *, given_up: bool = False) -> None:
        """Keeps a sample, or drops and counts it where too many are held."""
        mark = signature(offer, finding)
        known = self._held.get((offer.collection, mark))
        if known is None and len(self._held) >= MAX_SIGNATURES:
            self._telemetry.count(MISMATCHES_DROPPED, offer.collection)
            return
        now = time.time_ns() // 1_000
        body = self._body(offer, finding, now)
        if known is None:
            known = Mismatch(
                offer.collection,
                mark,
                finding.verdict.value,
                offer.operation,
                body["path"],
                tuple(dict.fromkeys(format_place(each.place) for each in finding.differences)),
                body,
                body,
                0,
                now,
                now,
                given_up=False,
            )
        self._held[offer.collection, mark] = replace(
            known,
            path=body["path"],
            latest=body,
            count=known.count + 1,
            latest_at=now,
            given_up=known.given_up or given_up,
        )

    def _body(self, offer: Offer, finding: Finding, now: int) -> dict[str, Any]:
        return {
            "path": redaction.present().path(finding.path),
            "at": now,
            "trace_id": None if offer.link is None else offer.link.id,
            "route": {
                "stage": offer.stage,
                "epoch": offer.epoch,
                "authority": offer.authority.value,
                "answered": offer.answered.value,
            },
            "versions": {
                "firestore": version_of(finding.firestore),
                "postgresql": version_of(finding.postgres),
            },
            "differences": self._redactor.differences(offer.collection, finding.differences),
        }

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes what is held. What PostgreSQL cannot take now is dropped and counted: there
        will be more, and the counters of verdicts have counted it."""
        if not self._held or self._table is None:
            return
        taken, self._held = self._held, {}
        try:
            await self._table.put(list(taken.values()), timeout=self._timeout)
        except CrossfadeError as error:
            for each in taken.values():
                self._telemetry.count(MISMATCHES_DROPPED, each.collection, by=each.count)
            log.warning("samples of mismatches were dropped", error=error.code, samples=len(taken))


def version_of(stored: Stored | None) -> dict[str, int | bool | None] | None:
    """As far as the store knows it."""
    if stored is None:
        return None
    epoch, moment = stored.version or (None, None)
    return {
        "exists": stored.data is not None,
        "epoch": epoch,
        "time": moment,
        "peer_time": stored.peer_time,
    }
