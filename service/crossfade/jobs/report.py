"""The report of a validation: as plain data, and as one HTML page that needs nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from crossfade import redaction
from crossfade.jobs.integrity import Violation
from crossfade.jobs.tally import COMPARED, REPAIRED, RULED_OUT, SKIPPED, Tally
from crossfade.plan import StoreName
from crossfade.stores.postgres.findings import Found
from crossfade.verdict import Verdict

FORMAT = 1
"""Rises when what stands in a report means something else."""
MAX_SAMPLES = 200
MAX_MOVING = 100


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What was compared, when, by what. Times are UTC; `revisions` are the migrations that the
    database is at, `fingerprint` is of the tables that the mapping asks for."""

    job: int
    group: str
    mode: str
    since: datetime | None
    collections: tuple[str, ...]
    firestore: str
    postgresql: str
    authority: str
    stage: str
    epoch: int
    generation: int
    begun_at: datetime
    ended_at: datetime
    version: str
    mapping: str
    fingerprint: str
    revisions: tuple[str, ...]


def make_report(
    of: Circumstances,
    tally: Tally,
    samples: Sequence[Found],
    moving: Sequence[str],
    dead: int,
    integrity: Sequence[Violation],
) -> dict[str, Any]:
    """Everything as JSON can hold it. `dead`: dead letters among the documents that never stood
    still, which therefore never will."""
    hidden = [redaction.present().path(path) for path in moving]
    return {
        "format": FORMAT,
        "equal": not tally.bad and not dead,
        "job": of.job,
        "group": of.group,
        "mode": of.mode,
        "since": _time(of.since),
        "collections": list(of.collections),
        "stores": {"firestore": of.firestore, "postgresql": of.postgresql},
        "authority": of.authority,
        "stage": of.stage,
        "epoch": of.epoch,
        "generation": of.generation,
        "begun_at": _time(of.begun_at),
        "ended_at": _time(of.ended_at),
        "seconds": round((of.ended_at - of.begun_at).total_seconds(), 1),
        "versions": {
            "crossfade": of.version,
            "mapping": of.mapping,
            "schema": of.fingerprint,
            "migrations": list(of.revisions),
        },
        "totals": _counts(tally.total),
        "by_collection": [_collection(tally, name) for name in sorted(tally.counts)],
        "samples": [
            {
                "collection": each.collection,
                "path": redaction.present().path(each.path),
                "verdict": each.verdict,
                **each.body,
            }
            for each in samples[:MAX_SAMPLES]
        ],
        "moving": {"documents": len(moving), "dead_letters": dead, "first": hidden[:MAX_MOVING]},
        "integrity": [each.to_json() for each in integrity],
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


def _counts(of: Callable[[str], int]) -> dict[str, int]:
    words = {
        "compared": COMPARED,
        "firestore": StoreName.FIRESTORE,
        "postgresql": StoreName.POSTGRESQL,
        **{verdict.value: verdict for verdict in Verdict if verdict is not Verdict.ERROR},
        "ruled_out": RULED_OUT,
        "skipped": SKIPPED,
        "repaired": REPAIRED,
    }
    return {name: of(word) for name, word in words.items()}


def _collection(tally: Tally, name: str) -> dict[str, Any]:
    counted = tally.counts[name]
    return {
        "collection": name,
        **_counts(lambda word: counted.get(word, 0)),
        "digests": {store.value: tally.digest(name, store) for store in StoreName},
        "rules": tally.rules_of(name),
        "fields": [
            {"field": field, "kind": kind, "documents": count}
            for field, kind, count in tally.fields_of(name)
        ],
    }


# --- as a page ---------------------------------------------------------------------------------


def to_html(report: Mapping[str, Any]) -> str:
    """One page with everything in it; nothing is loaded from anywhere."""
    from jinja2 import Environment  # late: a sidecar needs none of it

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["value"] = _shown
    text = files("crossfade.jobs").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(report=report)


def _shown(value: Mapping[str, Any] | None) -> str:
    """A redacted value of a sample."""
    if value is None:
        return "-"
    length = f" of {value['length']}" if "length" in value else ""
    seen = repr(value["value"]) if "value" in value else f"#{value.get('hash', '')}"
    return f"{value['type']}{length} {seen}"
