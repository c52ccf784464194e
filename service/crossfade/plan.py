"""Stages as a table, and decide(): which store answers a read. Pure, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

BUCKETS = 10_000


class StoreName(StrEnum):
    FIRESTORE = "firestore"
    POSTGRESQL = "postgresql"

    @property
    def other(self) -> "StoreName":
        return StoreName.POSTGRESQL if self is StoreName.FIRESTORE else StoreName.FIRESTORE


class Stage(StrEnum):
    """The six stages of a migration, in order."""

    OFF = "off"
    DUAL_WRITE = "dual_write"
    SHADOW = "shadow"
    LIVE = "live"
    RAMP_DOWN = "ramp_down"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class Rules:
    """One line of the stage table.

    `percent` is the read percent where none is configured; None: reads stay at
    the authority, whatever is configured.
    """

    authority: StoreName
    mirrored: bool
    percent: float | None
    shadowed: bool


STAGES: Mapping[Stage, Rules] = {
    Stage.OFF: Rules(StoreName.FIRESTORE, mirrored=False, percent=None, shadowed=False),
    Stage.DUAL_WRITE: Rules(StoreName.FIRESTORE, mirrored=True, percent=None, shadowed=False),
    Stage.SHADOW: Rules(StoreName.FIRESTORE, mirrored=True, percent=0.0, shadowed=True),
    Stage.LIVE: Rules(StoreName.POSTGRESQL, mirrored=True, percent=100.0, shadowed=True),
    Stage.RAMP_DOWN: Rules(StoreName.POSTGRESQL, mirrored=True, percent=None, shadowed=False),
    Stage.COMPLETE: Rules(StoreName.POSTGRESQL, mirrored=False, percent=None, shadowed=False),
}


@dataclass(frozen=True, slots=True)
class Route:
    """Where one read goes. `shadow` is the store compared after the answer, if any."""

    authority: StoreName
    answer: StoreName
    shadow: StoreName | None
    mirrored: bool

    @property
    def by_mirror(self) -> bool:
        return self.answer is not self.authority


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """All a read of one collection needs to be routed: made once per change of settings.

    `threshold` of 10,000 buckets are answered by PostgreSQL. `routes` is indexed by
    [PostgreSQL answers][shadowed], so that deciding makes no object.
    """

    threshold: int
    shadow_rate: float
    salt: bytes
    routes: tuple[tuple[Route, Route], tuple[Route, Route]]


def plan(stage: Stage, salt: str, percent: float | None, shadow_rate: float) -> CollectionPlan:
    """The plan of a collection. `percent` None takes the stage's own. Two plans of equal
    salts put a key into the same bucket."""
    rules = STAGES[stage]
    if rules.percent is None:
        threshold = BUCKETS if rules.authority is StoreName.POSTGRESQL else 0
    else:
        threshold = round((rules.percent if percent is None else percent) * BUCKETS / 100)

    def route(answer: StoreName, shadowed: bool) -> Route:
        return Route(rules.authority, answer, answer.other if shadowed else None, rules.mirrored)

    def routes(answer: StoreName) -> tuple[Route, Route]:
        return route(answer, shadowed=False), route(answer, shadowed=True)

    return CollectionPlan(
        threshold,
        shadow_rate if rules.shadowed else 0.0,
        blake2b(salt.encode(), digest_size=32).digest(),
        (routes(StoreName.FIRESTORE), routes(StoreName.POSTGRESQL)),
    )


def bucket(salt: bytes, key: str) -> int:
    """0..9999; the same key always falls into the same bucket of a salt (at most 64 bytes)."""
    digest = blake2b(key.encode(), digest_size=8, key=salt).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def decide(plan: CollectionPlan, key: str, draw: float) -> Route:
    """The route of one read of `key` (a document path, or a query's shape).

    `draw` is uniform in 0..1 and decides whether the read is compared. Raising the
    percent only adds keys to PostgreSQL's share, lowering it only removes some.
    """
    threshold = plan.threshold
    by_postgresql = threshold >= BUCKETS or (threshold > 0 and bucket(plan.salt, key) < threshold)
    return plan.routes[by_postgresql][draw < plan.shadow_rate]
