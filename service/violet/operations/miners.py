"""Miners and what validators say of them. Pure.

Every validator reports every miner it can reach. A report is kept for good, merged into
the miner's status, and kept as that validator's latest in the miner's consensus, from
which the consensus is made: so it needs no query over reports that grow for ever, and
two validators that report at once are both in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from crossfade.document import Document, Fields, identical
from crossfade.write import Write
from violet.operations import loads
from violet.operations.decision import Decision, put
from violet.operations.fields import age, at, items, moment, number, uids, whole

WINDOW = 5 * 60.0
"""Seconds that a report counts in a consensus."""
MEANS = ("stake", "performance_score", "current_load")
TOLERANCE = 0.1
"""Shares by which numbers of two reports may differ and not be in conflict."""
_TIMES = ("last_seen", "last_updated", "updated_at")


def miner_path(uid: int) -> str:
    return f"miners/{uid}"


def consensus_path(uid: int) -> str:
    return f"miner_consensus/{uid}"


# --- registration ------------------------------------------------------------------------------


def register(uid: int, miner: Document | None, fields: Fields, now: int) -> Decision[Fields]:
    """Sets the given fields. A miner that registers again keeps its first time and its load."""
    before = {} if miner is None else miner.fields
    given = {name: value for name, value in fields.items() if name != "uid"}
    if "current_load" in before:
        given.pop("current_load", None)
    times: Fields = {"registered_at": at(now), "current_load": 0}
    after = {**times, **before, **given, "uid": uid, "last_seen": at(now), "updated_at": at(now)}
    return Decision(after, put(miner, miner_path(uid), after))


def adjust(uid: int, status: Document | None, delta: int, now: int) -> Decision[Fields]:
    after = loads.adjusted(uid, status, delta, now)
    return Decision(after, put(status, loads.status_path(uid), after))


# --- reports -----------------------------------------------------------------------------------


def merge_report(
    uid: int,
    status: Document | None,
    validator: int,
    epoch: int,
    report: Fields,
    now: int,
) -> Decision[Fields]:
    """One validator's report in the miner's status.

    The highest stake; serving if anybody says so while that is fresh; of scores the mean,
    weighted by the reports there were. A load that assignments count (`assigned_task_count`)
    is not overwritten by what a validator saw some time ago.
    """
    before = {} if status is None else status.fields
    reports = max(whole(before.get("validator_reports_count")) or 0, 0)
    after: Fields = {**before, **report}
    after["stake"] = _most(before.get("stake"), report.get("stake"))
    after["performance_score"] = _mean(
        before.get("performance_score"), reports, report.get("performance_score")
    )
    for name in ("stake", "performance_score"):
        if after[name] is None:
            _restore(after, name, report, before)
    if "assigned_task_count" in before:
        for name in ("current_load", "assigned_task_count"):
            after.pop(name, None)
            if name in before:
                after[name] = before[name]
    seen = age(before, _TIMES, now)
    fresh = seen is not None and seen <= WINDOW
    if before.get("is_serving") is True and fresh and "is_serving" in report:
        after["is_serving"] = True
    after |= {
        "uid": uid,
        "epoch": epoch,
        "last_reported_by_validator": validator,
        "reported_by_validators": _with_validator(before.get("reported_by_validators"), validator),
        "validator_reports_count": reports + 1,
        "last_updated": at(now),
        "last_seen": _seen(report, now),
    }
    return Decision(after, put(status, loads.status_path(uid), after))


@dataclass(frozen=True, slots=True)
class Report:
    """`confidence`: 0.1..1."""

    validator: int
    miner: int
    epoch: int
    status: Fields
    confidence: float = 1.0


def record(report: Report, path: str, now: int) -> Decision[Fields]:
    """The report itself, under a path of its own."""
    fields: Fields = {
        "validator_uid": report.validator,
        "miner_uid": report.miner,
        "timestamp": at(now),
        "epoch": report.epoch,
        "miner_status": report.status,
        "confidence_score": report.confidence,
    }
    return Decision(fields, (Write(path, fields),))


def agree(
    report: Report, consensus: Document | None, now: int, window: float = WINDOW
) -> Decision[Fields]:
    """The miner's consensus with this report as its validator's latest.

    Reports that are older than the window are let go; that of the same validator is
    replaced. Numbers are means by confidence, serving is what most of the confidence says,
    of everything else the most confident latest report's value stands.
    """
    before = {} if consensus is None else consensus.fields
    latest = _latest(before.get("latest_reports"), now, window)
    latest[str(report.validator)] = {
        "timestamp": at(now),
        "epoch": report.epoch,
        "confidence_score": report.confidence,
        "miner_status": report.status,
    }
    status, confidence, conflicts = _consensus(latest)
    status |= {
        "consensus_timestamp": at(now),
        "consensus_validators": [*sorted(map(int, latest))],
        "consensus_confidence": confidence,
        # Maps, for Firestore has no array in an array: a disputed miner got no consensus.
        "conflicts_detected": [{"field": name} for name in conflicts],
    }
    after: Fields = {
        **before,
        "miner_uid": report.miner,
        "consensus_status": status,
        "last_consensus": at(now),
        "validator_reports_count": len(latest),
        "consensus_confidence": confidence,
        "latest_reports": latest,
    }
    return Decision(after, put(consensus, consensus_path(report.miner), after))


def _latest(known: Any, now: int, window: float) -> dict[str, Any]:
    """The reports that still count, by validator."""
    found = {}
    for name, item in (known if isinstance(known, dict) else {}).items():
        if not isinstance(item, dict) or not name.isascii() or not name.isdigit():
            continue
        old, sure = age(item, ("timestamp",), now), number(item.get("confidence_score"))
        understood = isinstance(item.get("miner_status"), dict) and sure is not None and sure > 0
        if understood and old is not None and old <= window:
            found[name] = item
    return found


def _consensus(latest: Mapping[str, Any]) -> tuple[Fields, float, list[str]]:
    """What the reports say together, how sure that is, and the fields they differ in."""
    reports = sorted(
        (
            (float(item["confidence_score"]), name, item["miner_status"])
            for name, item in latest.items()
        ),
        key=lambda entry: (entry[0], entry[1]),
    )
    total = sum(weight for weight, _, _ in reports)
    status: Fields = {}
    conflicts: list[str] = []
    for name in dict.fromkeys(name for _, _, fields in reports for name in fields):
        given = [(weight, fields[name]) for weight, _, fields in reports if name in fields]
        status[name], agrees = _agreed(name, given)
        if not agrees:
            conflicts.append(name)
    fields = len(status) or 1
    confidence = total / len(reports) * (1 - len(conflicts) / fields)
    return status, confidence, sorted(conflicts)


def _agreed(name: str, given: Sequence[tuple[float, Any]]) -> tuple[Any, bool]:
    """The value of a field, and whether the reports agree. `given`: the most sure one last."""
    values = [value for _, value in given]
    if name == "is_serving":
        yes = sum(weight for weight, value in given if value is True)
        return yes * 2 > sum(weight for weight, _ in given), len({v is True for v in values}) == 1
    numbers = [(weight, found) for weight, v in given if (found := number(v)) is not None]
    if name in MEANS and numbers:
        total = sum(weight for weight, _ in numbers)
        mean = sum(weight * float(value) for weight, value in numbers) / total
        spread = max(value for _, value in numbers) - min(value for _, value in numbers)
        return mean, spread <= TOLERANCE * max(abs(mean), 1.0)
    if name in _TIMES:
        return values[-1], True
    return values[-1], all(identical(value, values[-1]) for value in values)


# --- validators and metrics --------------------------------------------------------------------


def put_validator(
    uid: int, validator: Document | None, fields: Fields, now: int
) -> Decision[Fields]:
    """Sets the given fields and leaves the others: three writers made the document anew,
    each without what the others had set. Both names of its key are set, too."""
    before = {} if validator is None else validator.fields
    key: Fields = {"uid": uid, "validator_uid": uid}
    after = {"created_at": at(now), **before, **fields, **key, "updated_at": at(now)}
    if "last_seen" not in fields:
        after["last_seen"] = at(now)
    return Decision(after, put(validator, f"validators/{uid}", after))


def metrics_path(uid: int, hotkey: str) -> str:
    """Of a uid and who holds it: a later holder begins anew."""
    return f"miner_metrics/{uid}_{hotkey}"


def add_metrics(
    uid: int,
    hotkey: str,
    metrics: Document | None,
    increments: Fields,
    fields: Fields,
    unions: Fields,
    now: int,
) -> Decision[Fields]:
    before = {} if metrics is None else metrics.fields
    after: Fields = {"first_seen": at(now), **before, **fields}
    for name, amount in increments.items():
        added = number(amount)
        if added is not None:
            after[name] = (number(before.get(name)) or 0) + added
    for name, more in unions.items():
        has = items(before.get(name))
        new: list[Any] = []
        for item in items(more):
            if not any(identical(item, known) for known in [*has, *new]):
                new.append(item)
        after[name] = [*has, *new]
    after |= {"uid": uid, "hotkey": hotkey, "last_updated": at(now)}
    return Decision(after, put(metrics, metrics_path(uid, hotkey), after))


def is_stale(document: Document, now: int, older_than: float) -> bool:
    """Whether nothing has been heard of it for so long: by its times, whatever their type,
    else by that of its last write."""
    names = ("last_seen", "last_active", "last_updated", "updated_at")
    old = age(document.fields, names, now)
    return ((now - document.update_time) / 1e6 if old is None else old) > older_than


def _most(one: Any, other: Any) -> int | float | None:
    found = [value for value in (number(one), number(other)) if value is not None]
    return max(found, default=None)


def _mean(before: Any, reports: int, given: Any) -> float | None:
    old, new = number(before), number(given)
    if new is None:
        return None
    weight = min(reports, 9) if old is not None else 0  # so that it follows what is new
    return (float(old or 0) * weight + float(new)) / (weight + 1)


def _restore(after: Fields, name: str, report: Fields, before: Fields) -> None:
    """Where there is no number to make, what is there stays as it is."""
    after.pop(name)
    for fields in (before, report):
        if name in fields:
            after[name] = fields[name]


def _seen(report: Fields, now: int) -> datetime:
    """When the validator saw the miner, if it says so and that is not to come."""
    found = moment(report.get("last_seen"))
    return at(now) if found is None else min(found, at(now))


def _with_validator(value: Any, validator: int) -> list[Any]:
    """Texts of another writer ("validator_48") stay as they are."""
    known = items(value)
    return known if validator in uids(known) else [*known, validator]
