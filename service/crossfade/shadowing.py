"""What compares the stores, built from the settings: one queue, one budget, one set of samples,
and for each group of collections a comparer of its own."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import structlog

from crossfade.budget import Budget
from crossfade.comparing import Comparer, Comparers, ReadTotals, Sums
from crossfade.control import Control
from crossfade.controls import Controls
from crossfade.document import Database, FieldPath
from crossfade.groups import Groups
from crossfade.jobs.settings_watch import Apply
from crossfade.pending import Pending
from crossfade.plan import StoreName
from crossfade.repairs import Mark, Repairs
from crossfade.rules import Rule
from crossfade.samples import Redactor, Samples
from crossfade.settings import Settings, field_paths
from crossfade.shadow import Bounds, Shadow
from crossfade.snapshot import Traffic
from crossfade.store import Aggregating, Stores
from crossfade.stores.postgres.budget import BudgetTable
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mismatches import Mismatches
from crossfade.telemetry import BUDGET_LEFT, BUDGET_SPENT, Telemetry
from crossfade.verdict import Judge, Totals

log = structlog.get_logger(__name__)

LEASE_SECONDS = 2.0
"""For a comparison that finds no lease."""


def traffic_of(settings: Settings) -> dict[str, Traffic]:
    traffic = {
        name: Traffic(collection.read_percent, collection.shadow_rate, collection.salt)
        for name, collection in settings.collections.items()
    }
    traffic[""] = Traffic(settings.migration.read_percent, settings.migration.shadow_rate)
    return traffic


@dataclass(frozen=True, slots=True)
class Shadowing:
    """What compares, and what it found."""

    shadow: Shadow
    judge: Judge
    comparer: Comparers
    samples: Samples
    redactor: Redactor
    repairs: Repairs
    budget: Budget
    table: Mismatches | None

    def applier(self, controls: Controls) -> Apply:
        """Applies what may change while the sidecar runs."""

        async def apply(settings: Settings) -> None:
            # Nothing here waits or fails before all of it is done.
            self.judge.rules = _rules(settings)
            self.redactor.clear = _clear(settings)
            await controls.configure(traffic_of(settings))

        return apply


def _rules(settings: Settings) -> dict[str, list[Rule]]:
    return {
        name: [each.rule() for each in collection.rules]
        for name, collection in settings.collections.items()
    }


def _clear(settings: Settings) -> dict[str, tuple[FieldPath, ...]]:
    return {name: field_paths(each.clear) for name, each in settings.collections.items()}


def build(
    settings: Settings,
    telemetry: Telemetry,
    database: Database,
    lanes: Lanes | None,
    groups: Groups,
    controls: Controls,
    stores: Mapping[str, Stores],
    pending: Mapping[str, Pending],
) -> Shadowing:
    """`stores` and `pending` by the names of the groups."""
    chosen = settings.shadow
    key = chosen.hash_key
    redactor = Redactor(
        secrets.token_bytes(32) if key is None else key.get_secret_value().encode(),
        _clear(settings),
    )
    table = None if lanes is None else Mismatches(lanes, per_collection=chosen.samples)
    samples = Samples(redactor, telemetry, table)
    judge = Judge(database, _rules(settings), chosen.behind_bound)

    budget = Budget(chosen.daily_reads, None if lanes is None else BudgetTable(lanes))

    def charge(reads: int) -> None:
        budget.spend(reads)
        telemetry.count(BUDGET_SPENT, by=reads)

    telemetry.gauge(BUDGET_LEFT, lambda: {} if budget.left is None else budget.left)

    by_group = {
        name: Comparer(
            stores[name],
            database,
            telemetry,
            judge,
            read_totals=_totals(stores[name]),
            vouched=_vouched(control),
            charge=charge,
        )
        for name, control in controls.items()
    }
    comparer = Comparers(lambda collection: by_group[groups.of(collection)])
    repairs = Repairs(
        _repair(groups, pending) if pending and chosen.repair else None,
        telemetry,
        limit=chosen.repairs_in_a_row,
    )
    shadow = Shadow(
        comparer,
        telemetry,
        samples,
        repairs,
        bounds=Bounds(
            chosen.queue, chosen.memory_mb * 1_048_576, chosen.age, chosen.rate, chosen.lag
        ),
        workers=chosen.workers,
        raises=chosen.on_mismatch == "raise",
        afford=lambda _: budget.afford(),
        complete=lambda offer: controls.of(offer.collection).mirror_is_complete(),
    )
    if shadow.raises:
        log.warning("reads fail where the stores differ: on_mismatch = raise is meant for tests")
    return Shadowing(shadow, judge, comparer, samples, redactor, repairs, budget, table)


def _totals(stores: Stores) -> ReadTotals:
    async def read_totals(store: StoreName, totals: Totals, timeout: float) -> Sums:
        asked = cast(Aggregating, stores[store])
        found = await asked.aggregate(totals.query, totals.aggregations, timeout=timeout)
        return Sums(found.values, found.state)

    return read_totals


def _vouched(control: Control) -> Callable[[], Awaitable[bool]]:
    async def vouched() -> bool:
        return control.mirror_vouches(await control.admit(lambda: LEASE_SECONDS))

    return vouched


def _repair(groups: Groups, pending: Mapping[str, Pending]) -> Mark:
    async def repair(paths: Sequence[str], epoch: int, authority: StoreName) -> None:
        # What was compared together is of one group.
        [name] = groups.spanned(paths)
        await pending[name].mark(paths, epoch, "repair", authority)

    return repair
