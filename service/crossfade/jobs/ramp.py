"""Carries ramps on, and guards the reads that PostgreSQL answers.

Every sidecar reports what it counted and looks every second; a ramp is carried on by
the one that holds its lease, whichever that is, so it survives any of them. A move back is
done before it is remembered, and one forward after: a sidecar that dies in between leaves
fewer reads in PostgreSQL, and the next look does the rest. A move and its row of the audit trail
are one statement.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from uuid import uuid4

import structlog

from crossfade.controls import Controls
from crossfade.errors import CrossfadeError
from crossfade.figures import EVERY, Tally, figures, tallies
from crossfade.ramp import (
    Limits,
    Plan,
    State,
    Status,
    Verb,
    advance,
    breach,
    judge,
    with_recent,
)
from crossfade.recent import Recent, judge_recent
from crossfade.snapshot import Traffic
from crossfade.stores.postgres.audit import Audit, Change
from crossfade.stores.postgres.ramps import Ramp, Ramps
from crossfade.telemetry import RAMP_MOVES, Telemetry

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 1.0
IDLE_SECONDS = 15.0
"""Between two reports while no ramp runs anywhere and nobody guards: for the checks of a
change of stage that is recent enough, and a report writes some kilobytes a collection."""
RECENT_SECONDS = 60.0
"""For so long the sums are kept where no guard looks back. A ramp's own figures begin at its last
move: what Firestore's reads took a moment before is as good, and known sooner."""
LEASE_SECONDS = 5.0
"""A sidecar that has not looked for so long has lost its ramps to another one."""


class Ramping:
    """The part of one sidecar in the ramps of all of them.

    `guard`: its limits and the seconds that it looks back; None: there is none.
    """

    def __init__(
        self,
        controls: Controls,
        ramps: Ramps,
        audit: Audit,
        telemetry: Telemetry,
        *,
        guard: tuple[Limits, float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._controls = controls
        self._ramps = ramps
        self._audit = audit
        self._telemetry = telemetry
        self._guard = None if guard is None else guard[0]
        self._clock = clock
        self._id = uuid4().hex
        self._reported = 0.0
        self._recent = Recent(RECENT_SECONDS if guard is None else guard[1])

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                await self.look()
            except CrossfadeError as error:
                # The reads are safe without it: a mirror that cannot show that it is fresh
                # answers nothing.
                log.info("the ramps cannot be looked at", error=error.code)

    async def begin(self, collection: str, plan: Plan, who: str) -> None:
        """Starts a ramp at 0 percent: the reads begin to move after a bake of comparisons."""
        await self._set(collection, 0.0)
        baseline = await self._report()
        state = State(since=self._clock())
        told = Change(who, "ramp", "none", "0 %", f"begun: {plan.steps}", collection)
        await self._ramps.start(collection, plan, state, _of(baseline, collection), told)
        _log(told)

    async def look(self) -> None:
        """Reports, moves what is due to move, and guards the rest."""
        idle = self._guard is None and not await self._ramps.running()
        if idle and self._clock() - self._reported < IDLE_SECONDS:
            return
        sums = await self._report()
        self._recent.add(self._clock(), sums)
        ramps = await self._ramps.claim(self._id, LEASE_SECONDS)
        for ramp in ramps:
            await self._carry_on(ramp, sums)
        if self._guard is not None:
            await self._watch(sums, self._guard)

    async def _report(self) -> Mapping[str, Tally]:
        await self._ramps.report(self._id, tallies(self._telemetry))
        self._reported = self._clock()
        return await self._ramps.sums()

    # --- ramps --------------------------------------------------------------------------------

    async def _carry_on(self, ramp: Ramp, sums: Mapping[str, Tally]) -> None:
        if not self._comparable(ramp.collection):
            return
        limits, percent = ramp.plan.limits, ramp.state.percent(ramp.plan)
        seen = figures(_of(sums, ramp.collection), ramp.baseline)
        parts = self._recent.parts(ramp.collection, ramp.state.since + ramp.plan.settle)
        recent = judge_recent(parts, self._recent.window(ramp.collection), limits)
        move = advance(ramp.plan, ramp.state, seen, self._clock(), recent)
        after = move.state.percent(ramp.plan)
        # What a move did to the traffic may not have been done, or be undone meanwhile. One that
        # goes back now may have been done already, by a sidecar that could not tell any more.
        if after >= percent and self._percent(ramp.collection) != percent:
            if not await self._ramps.move(self._id, ramp, ramp.state, ramp.reason):
                return  # it was stopped, and the percent set by hand
            await self._set(ramp.collection, percent)
        if move.verb is Verb.HOLD and move.state.status is ramp.state.status:
            begins = move.state.settled and not ramp.state.settled
            if begins or move.reason != ramp.reason:
                fresh = _of(sums, ramp.collection) if begins else None
                await self._ramps.move(self._id, ramp, move.state, move.reason, baseline=fresh)
            return
        if after < percent:
            await self._set(ramp.collection, after)  # at once, whatever becomes of the rest
        told = Change(
            ramp.who,
            "ramp",
            f"{percent:g} %",
            f"{after:g} %",
            move.reason,
            ramp.collection,
            with_recent(judge(seen, limits), recent),
        )
        if not await self._ramps.move(self._id, ramp, move.state, move.reason, told=told):
            return
        self._telemetry.count(RAMP_MOVES, ramp.collection or "*", move.verb.value)
        _log(told)
        if after > percent:
            await self._set(ramp.collection, after)

    # --- the guard ----------------------------------------------------------------------------

    async def _watch(self, sums: Mapping[str, Tally], limits: Limits) -> None:
        for collection in sorted({*sums, *self._controls.traffic()}):
            percent = self._percent(collection)
            if not percent or not self._comparable(collection):
                continue
            seen = self._recent.window(collection)
            recent = judge_recent(self._recent.parts(collection), seen, limits)
            answers = with_recent(judge(seen, limits), recent)
            why = breach(answers)
            if why is None or await self._ramping(collection):
                continue
            await self._set(collection, 0.0)
            self._telemetry.count(RAMP_MOVES, collection or "*", "guard")
            told = Change("guard", "guard", f"{percent:g} %", "0 %", why, collection, answers)
            _log(told)
            await self._audit.add(told)

    async def _ramping(self, collection: str) -> bool:
        """Whether a ramp sees to it, by figures of its own."""
        running = Status.RUNNING
        return any(
            each.collection == collection and each.state.status is running
            for each in await self._ramps.all()
        )

    # --- traffic ------------------------------------------------------------------------------

    def _comparable(self, collection: str) -> bool:
        """Whether there are two stores to move reads between."""
        snapshot = self._controls.snapshot_of(collection)
        return snapshot.rules.percent is not None and snapshot.writable

    def _percent(self, collection: str) -> float:
        return self._controls.snapshot_of(collection).plan_of(collection).threshold / 100

    async def _set(self, collection: str, percent: float) -> None:
        await self._controls.of(collection).set_traffic(collection, Traffic(read_percent=percent))


def _log(told: Change) -> None:
    log.warning(
        "reads are shifted",
        action=told.action,
        collection=told.collection or "*",
        before=told.before,
        after=told.after,
        reason=told.reason,
    )


def _of(sums: Mapping[str, Tally], collection: str) -> Tally:
    return sums.get(collection or EVERY, Tally())
