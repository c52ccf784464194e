"""The tables of ramps and of the figures that they are judged by."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from crossfade.figures import Tally, total
from crossfade.ramp import Limits, Plan, State, Status
from crossfade.stores.postgres.audit import Change, adding, arguments, without_nul
from crossfade.stores.postgres.lanes import Lanes

KEEP_DAYS = 7
"""For so long the figures of a sidecar that is gone count towards the sums."""

_REPORT = """insert into crossfade.figures (sidecar, collection_id, tally)
select $1::text, collection_id, tally
from jsonb_to_recordset($2::jsonb) as given (collection_id text, tally jsonb)
on conflict (sidecar, collection_id) do update set tally = excluded.tally, at = now()"""
_FORGET = "delete from crossfade.figures where at < now() - $1::int4 * interval '1 day'"
_SUMS = "select collection_id, tally from crossfade.figures"
_START = """insert into crossfade.ramps as r (collection_id, plan, state, baseline, reason, who)
values ($1, $2::jsonb, $3::jsonb, $4::jsonb, $5, $6)
on conflict (collection_id) do update set plan = excluded.plan, state = excluded.state,
    baseline = excluded.baseline, reason = excluded.reason, who = excluded.who,
    holder = null, lease_until = null, updated_at = now()
returning collection_id"""
_START_TOLD = f"with started as ({_START}) {adding('from started', 7)}"
# Running ramps that are this sidecar's, or nobody's any more.
_CLAIM = """update crossfade.ramps
set holder = $1, lease_until = clock_timestamp() + $2::float8 * interval '1 second'
where state ->> 'status' = 'running'
    and (holder = $1 or holder is null or lease_until < clock_timestamp())
returning collection_id, plan, state, baseline, reason, who"""
_MOVE = """update crossfade.ramps set state = $4::jsonb, reason = $5, updated_at = now(),
    baseline = coalesce($6::jsonb, baseline)
where collection_id = $1 and holder = $2 and state = $3::jsonb
returning collection_id"""
_MOVE_TOLD = f"with moved as ({_MOVE}) {adding('from moved', 7)}"
_STOP = """with stopped as (
    update crossfade.ramps set state = jsonb_set(state, '{status}', '"stopped"'),
        reason = 'stopped by ' || $2::text, updated_at = now()
    where ($1::text is null or collection_id = $1) and state ->> 'status' = 'running'
    returning collection_id, reason
)
insert into crossfade.audit (who, action, collection_id, before, after, checks, reason)
select $2::text, 'ramp', collection_id, 'running', 'stopped', '[]', reason from stopped
returning collection_id"""
_RUNNING = "select exists (select from crossfade.ramps where state ->> 'status' = 'running')"
_ALL = """select collection_id, plan, state, baseline, reason, who
from crossfade.ramps order by collection_id"""


@dataclass(frozen=True, slots=True)
class Ramp:
    collection: str
    plan: Plan
    state: State
    baseline: Tally
    reason: str
    who: str


class Ramps:
    """Everything that the sidecars share about ramps."""

    def __init__(self, lanes: Lanes, timeout: float = 5.0) -> None:
        self._lanes = lanes
        self._timeout = timeout

    # --- figures ------------------------------------------------------------------------------

    async def report(self, sidecar: str, tallies: Mapping[str, Tally]) -> None:
        """What this sidecar has counted since its start."""
        rows = [{"collection_id": name, "tally": tally.stored()} for name, tally in tallies.items()]
        await self._lanes.execute(_REPORT, sidecar, rows, timeout=self._timeout)
        await self._lanes.execute(_FORGET, KEEP_DAYS, timeout=self._timeout)

    async def sums(self) -> dict[str, Tally]:
        """By collection, of all sidecars together."""
        held: dict[str, list[Tally]] = {}
        for row in await self._lanes.fetch(_SUMS, timeout=self._timeout):
            held.setdefault(row["collection_id"], []).append(Tally(**row["tally"]))
        return {name: total(each) for name, each in held.items()}

    # --- ramps --------------------------------------------------------------------------------

    async def start(
        self, collection: str, plan: Plan, state: State, baseline: Tally, told: Change
    ) -> None:
        """Begins a ramp of `told.who`, and tells of it; one that the collection had is
        forgotten."""
        await self._lanes.execute(
            _START_TOLD,
            collection,
            asdict(plan),
            asdict(state),
            baseline.stored(),
            "begun",
            without_nul(told.who),
            *arguments(told),
            timeout=self._timeout,
        )

    async def running(self) -> bool:
        """Whether any ramp runs, whoever carries it on."""
        return bool(await self._lanes.fetchval(_RUNNING, timeout=self._timeout))

    async def claim(self, holder: str, lease: float) -> list[Ramp]:
        """The running ramps that `holder` carries on for the next `lease` seconds."""
        rows = await self._lanes.fetch(_CLAIM, holder, lease, timeout=self._timeout)
        return [_ramp(row) for row in rows]

    async def move(
        self,
        holder: str,
        ramp: Ramp,
        state: State,
        reason: str,
        *,
        baseline: Tally | None = None,
        told: Change | None = None,
    ) -> bool:
        """Remembers a move, and tells of it. False: somebody else has the ramp, or it was stopped
        meanwhile."""
        tag = await self._lanes.execute(
            _MOVE if told is None else _MOVE_TOLD,
            ramp.collection,
            holder,
            asdict(ramp.state),
            asdict(state),
            reason,
            None if baseline is None else baseline.stored(),
            *(() if told is None else arguments(told)),
            timeout=self._timeout,
        )
        return tag in {"UPDATE 1", "INSERT 0 1"}

    async def stop(self, collection: str | None, who: str) -> list[str]:
        """Ends running ramps, where they are, and tells of it; returns whose."""
        rows = await self._lanes.fetch(_STOP, collection, without_nul(who), timeout=self._timeout)
        return [row[0] for row in rows]

    async def all(self) -> list[Ramp]:
        return [_ramp(row) for row in await self._lanes.fetch(_ALL, timeout=self._timeout)]


def _ramp(row: Any) -> Ramp:
    plan, state = row["plan"], row["state"]
    return Ramp(
        row["collection_id"],
        Plan(**plan | {"steps": tuple(plan["steps"]), "limits": Limits(**plan["limits"])}),
        State(**state | {"status": Status(state["status"])}),
        Tally(**row["baseline"]),
        row["reason"],
        row["who"],
    )
