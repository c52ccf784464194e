"""The state that requests are routed by: immutable, replaced as a whole. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import random
from typing import Any

from crossfade.document import collection_id
from crossfade.errors import InvalidArgument, Unavailable
from crossfade.plan import STAGES, CollectionPlan, Route, Rules, Stage, StoreName, decide, plan
from crossfade.store import MirrorState


@dataclass(frozen=True, slots=True)
class Traffic:
    """Read percent and shadow rate of a collection; None takes the default below it."""

    read_percent: float | None = None
    shadow_rate: float | None = None
    salt: str | None = None

    def over(self, default: "Traffic") -> "Traffic":
        return Traffic(
            default.read_percent if self.read_percent is None else self.read_percent,
            default.shadow_rate if self.shadow_rate is None else self.shadow_rate,
            default.salt if self.salt is None else self.salt,
        )


@dataclass(frozen=True)
class Snapshot:
    """The state that requests are routed by: immutable, replaced as a whole.

    `writable` is false while a barrier is under way; `authority` is then still the
    old one, which answers reads until the epoch changes.
    """

    stage: Stage
    epoch: int
    generation: int
    writable: bool = True
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    _plans: dict[str, CollectionPlan] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rules(self) -> Rules:
        return STAGES[self.stage]

    @property
    def authority(self) -> StoreName:
        return self.rules.authority

    def traffic_of(self, collection: str) -> Traffic:
        return self.traffic.get(collection, Traffic()).over(self.traffic.get("", Traffic()))

    def plan_of(self, collection: str) -> CollectionPlan:
        made = self._plans.get(collection)
        if made is None:
            traffic = self.traffic_of(collection)
            # Of this purpose and collection, so that no two have the same documents first.
            salt = "\0".join(("read", collection, traffic.salt or ""))
            rate = 1.0 if traffic.shadow_rate is None else traffic.shadow_rate
            made = self._plans[collection] = plan(self.stage, salt, traffic.read_percent, rate)
        return made

    def route(self, paths: tuple[str, ...]) -> Route:
        """The route of a read. Several documents go to the mirror only if each one would."""
        draw = random()  # noqa: S311 - sampling
        chosen = decide(self.plan_of(collection_id(paths[0])), paths[0], draw)
        for path in paths[1:]:
            route = decide(self.plan_of(collection_id(path)), path, draw)
            if route.answer is chosen.authority:
                chosen = route
        return chosen

    def route_query(self, collection: str, shape: str) -> Route:
        """The route of a query; the bucket is that of its shape."""
        route = decide(self.plan_of(collection), shape, random())  # noqa: S311
        if route.answer is StoreName.FIRESTORE and route.authority is StoreName.POSTGRESQL:
            # Firestore as mirror cannot say whether a result is complete: the
            # authority answers, and shadows as the draw decided.
            shadow = None if route.shadow is None else StoreName.FIRESTORE
            return replace(route, answer=StoreName.POSTGRESQL, shadow=shadow)
        return route

    def current(self, state: MirrorState) -> bool:
        """Whether PostgreSQL still stands in this snapshot's epoch."""
        return state.epoch == self.epoch

    def settles(self, state: MirrorState) -> bool:
        """Whether the mirror's answer stands, or shows that there is another authority now
        (the caller then decides again, and does not ask the old authority)."""
        return self.vouches(state) or not self.current(state)

    def vouches(self, state: MirrorState) -> bool:
        """Whether PostgreSQL, as the mirror, has shown its data to be no older than the
        authority's: same epoch, same generation, nothing pending, in one statement."""
        return (
            state.epoch == self.epoch and state.generation == self.generation and not state.pending
        )


def snapshot_of(row: Mapping[str, Any] | None, configured: Mapping[str, Traffic]) -> Snapshot:
    """What the control row says, with the configured traffic under the row's own."""
    if row is None:
        raise Unavailable("the control row is gone; was the schema created anew?")
    traffic = dict(configured)
    for name, stored in row["traffic"].items():
        traffic[name] = Traffic(**stored).over(traffic.get(name, Traffic()))
    return Snapshot(
        stage=Stage(row["stage"]),
        epoch=row["epoch"],
        generation=row["generation"],
        writable=row["authority"] != "none",
        traffic=traffic,
    )


def parse_stage(text: str) -> Stage:
    """Raises InvalidArgument naming the stages."""
    try:
        return Stage(text)
    except ValueError as error:
        raise InvalidArgument(
            f'stage: "{text[:40]}" is none of {", ".join(stage.value for stage in Stage)}'
        ) from error
