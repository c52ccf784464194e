"""What a process has counted, in a form that can be added up over sidecars, and what a ramp
is judged by: the difference of two of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from crossfade.durations import quantile
from crossfade.ramp import Calls, Figures
from crossfade.telemetry import VERDICTS, Telemetry
from crossfade.verdict import BAD, Verdict

READ_OPERATIONS = ("get", "query", "aggregate")
READ_ROLES = ("answered", "shadow")
STORES = ("firestore", "postgresql")
EVERY = ""
"""Stands for all collections together."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts since a beginning: comparisons, bad ones, and by store its reads, those that
    failed, and their durations by bucket of telemetry.py."""

    compared: int = 0
    bad: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[str, list[int]] = field(default_factory=dict)

    def stored(self) -> dict[str, Any]:
        return {
            "compared": self.compared,
            "bad": self.bad,
            "counts": dict(self.counts),
            "errors": dict(self.errors),
            "buckets": {store: list(held) for store, held in self.buckets.items()},
        }


def total(tallies: Iterable[Tally]) -> Tally:
    held = list(tallies)
    return Tally(
        sum(each.compared for each in held),
        sum(each.bad for each in held),
        {store: sum(each.counts.get(store, 0) for each in held) for store in STORES},
        {store: sum(each.errors.get(store, 0) for each in held) for store in STORES},
        {
            store: [
                sum(column)
                for column in zip_longest(
                    *(each.buckets.get(store, []) for each in held), fillvalue=0
                )
            ]
            for store in STORES
        },
    )


def tallies(telemetry: Telemetry) -> dict[str, Tally]:
    """By collection, and of all together, since the process began."""
    series = telemetry.latencies()
    verdicts = telemetry.counts(VERDICTS)
    names = {each.collection for each in series} | {name for name, _ in verdicts}
    found = {}
    for name in names:
        counts, errors, buckets = {}, {}, {}
        for store in STORES:
            reads = [
                each
                for each in series
                if (each.collection, each.store) == (name, store)
                and each.operation in READ_OPERATIONS
                and each.role in READ_ROLES
            ]
            counts[store] = sum(each.count for each in reads)
            errors[store] = sum(each.errors for each in reads)
            buckets[store] = [
                sum(column)
                for column in zip_longest(
                    *(
                        telemetry.buckets(
                            collection=name, operation=operation, store=store, role=role
                        )
                        for operation in READ_OPERATIONS
                        for role in READ_ROLES
                    ),
                    fillvalue=0,
                )
            ]
        # What could not be read says nothing about the data; it counts among the errors.
        compared = {v: n for (held, v), n in verdicts.items() if held == name}
        compared.pop(Verdict.ERROR.value, None)
        found[name] = Tally(
            sum(compared.values()),
            sum(n for verdict, n in compared.items() if verdict in BAD),
            counts,
            errors,
            buckets,
        )
    found[EVERY] = total(found.values())
    return found


def figures(now: Tally, before: Tally) -> Figures:
    """What is judged of the time between two tallies."""
    return shown(between(now, before))


def between(now: Tally, before: Tally) -> Tally:
    """What was counted between two tallies. Never negative, whatever was forgotten meanwhile."""

    def risen(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
        return {store: max(now.get(store, 0) - before.get(store, 0), 0) for store in STORES}

    compared = max(now.compared - before.compared, 0)
    return Tally(
        compared,
        min(max(now.bad - before.bad, 0), compared),
        risen(now.counts, before.counts),
        risen(now.errors, before.errors),
        {
            store: [
                max(a - b, 0)
                for a, b in zip_longest(
                    now.buckets.get(store, []), before.buckets.get(store, []), fillvalue=0
                )
            ]
            for store in STORES
        },
    )


def shown(tally: Tally) -> Figures:
    """A tally as it is judged."""

    def calls(store: str) -> Calls:
        return Calls(
            tally.counts.get(store, 0),
            tally.errors.get(store, 0),
            quantile(tally.buckets.get(store, []), 0.99),
        )

    return Figures(tally.compared, tally.bad, calls("firestore"), calls("postgresql"))
