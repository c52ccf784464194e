"""Changes the groups of collections of a migration, while its sidecars are stopped.

A collection may go to a group that stands where its own does: the same stage, nothing under
way. A new group begins where the one stands that its collections come from. So nothing that
a group's steps have established is given up: the same store decides, what is pending stays
pending, what was not copied stays in doubt.

All groups get an epoch that none of them had. Firestore's documents come first, then the rows
of PostgreSQL in one transaction: a sidecar that was forgotten finds its documents to be of other
groups, and is not served any more when its lease is over. Until both are done neither the
former groups' sidecars nor the new ones' are, so whoever was interrupted runs it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from crossfade.control import DOUBT_EVERYTHING
from crossfade.errors import Aborted, FailedPrecondition
from crossfade.groups import Groups, groups_of, sources
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.stores.fences import ControlDocument, Fences
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.lanes import Connection, Lanes
from crossfade.stores.postgres.membership import listed, of_group, wildcards

TIMEOUT = 30.0
_ROWS = """select grp, stage, epoch, groups, barrier is not null as moving
from crossfade.control order by grp"""
_IN_DOUBT = f"""select exists (select from crossfade.pending
where position('/' in path) = 0 and {of_group("collection_id", 1)})"""
_NEW = """insert into crossfade.control
    (grp, stage, authority, epoch, generation, requested, copy_after, traffic, groups)
select $1, stage, authority, $3, generation, requested, copy_after, traffic, $4
from crossfade.control where grp = $2"""
# A copy waits for the latest of what it has to wait for.
_KEPT = """update crossfade.control set epoch = $3, groups = $4, updated_at = now(),
    copy_after = (select max(copy_after) from crossfade.control where grp = any($2::text[]))
where grp = $1"""
_GONE = "delete from crossfade.control where grp = any($1::text[])"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a group stands by its control row."""

    stage: Stage
    epoch: int
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Regrouping:
    """What a change of the groups comes to. `of`: by new group, those it takes collections from;
    `standings`: where the former ones stand."""

    before: Groups
    after: Groups
    of: Mapping[str, tuple[str, ...]]
    standings: Mapping[str, Standing]
    epoch: int

    def stage(self, group: str) -> Stage:
        return self.standings[self.of[group][0]].stage


def plan(before: Groups, after: Groups, standings: Mapping[str, Standing]) -> Regrouping:
    """Raises FailedPrecondition where a collection would change more than its group's name."""
    of = sources(before, after)
    moving = sorted(name for name, standing in standings.items() if standing.moving)
    if moving:
        raise FailedPrecondition(
            f"a change of stage is under way in {', '.join(moving)}; let it end first"
        )
    for name, names in of.items():
        stages = {each: standings[each].stage for each in names}
        if len(set(stages.values())) > 1:
            each = ", ".join(f"{group} in stage {stage}" for group, stage in stages.items())
            raise FailedPrecondition(
                f"group {name} would have collections of groups in different stages: {each}; "
                f"bring these to the same stage first (crossfade stage set --group)"
            )
    epoch = max(standing.epoch for standing in standings.values()) + 1
    return Regrouping(before, after, of, standings, epoch)


async def prepare(lanes: Lanes, after: Groups) -> Regrouping | None:
    """What is to be done; None: nothing. Raises FailedPrecondition."""
    rows = await lanes.fetch(_ROWS, timeout=TIMEOUT)
    if not rows:
        raise FailedPrecondition(
            "there is no control state yet: the first sidecar's start makes it, for the groups "
            "of its settings"
        )
    if len({row["groups"] for row in rows}) > 1:
        raise FailedPrecondition("the control rows are of different groups; was one restored?")
    before = groups_of(rows[0]["groups"])
    if before.layout == after.layout:
        return None
    standings = {
        row["grp"]: Standing(Stage(row["stage"]), row["epoch"], row["moving"]) for row in rows
    }
    return plan(before, after, standings)


async def apply(change: Regrouping, lanes: Lanes, firestore: FirestoreStore | None) -> None:
    """Raises FailedPrecondition while commits are in the outbox, Aborted where somebody else
    changes the control state meanwhile; it can be run again then."""
    epoch = change.epoch
    if firestore is not None:
        epoch = await _write_documents(change, firestore)
    async with lanes.locked("crossfade.control", TIMEOUT) as connection:
        await _write_rows(change, epoch, connection)


async def _write_documents(change: Regrouping, firestore: FirestoreStore) -> int:
    """Returns the epoch that they are of. They may be of a later one than the rows: after an
    interruption, or where PostgreSQL was restored."""
    former = {group.name: Fences(firestore, group) for group in change.before.all}
    following = {group.name: Fences(firestore, group) for group in change.after.all}
    found: dict[str, ControlDocument] = {}
    for name, fences in {**following, **former}.items():
        found[name] = await fences.read_any(timeout=TIMEOUT)
    for name, fences in former.items():
        if not found[name].gate_open or await fences.entries(timeout=TIMEOUT):
            raise FailedPrecondition(
                f"commits of group {name} are in the outbox, or may be: start the sidecars with "
                f"the former groups and let them drain it"
            )
    epoch = max(change.epoch, *(document.epoch + 1 for document in found.values()))
    for name, fences in following.items():
        rules = STAGES[change.stage(name)]
        after = replace(
            found[name],
            epoch=epoch,
            open=rules.authority is StoreName.FIRESTORE,
            mirrored=rules.mirrored,
        )
        await fences.change(found[name], after, timeout=TIMEOUT)
    for name in former.keys() - following.keys():
        if found[name].update_time:
            await former[name].remove(found[name], timeout=TIMEOUT)
    return epoch


async def _write_rows(change: Regrouping, epoch: int, connection: Connection) -> None:
    rows = await connection.fetch(_ROWS)
    standings = {
        row["grp"]: Standing(Stage(row["stage"]), row["epoch"], row["moving"]) for row in rows
    }
    if standings != change.standings or any(r["groups"] != change.before.layout for r in rows):
        raise Aborted("the control state has changed meanwhile; are sidecars running? Run it again")
    doubtful = {
        group.name
        for group in change.before.all
        if await connection.fetchval(_IN_DOUBT, *listed(group))
    }
    for group in change.after.all:
        of, existed = change.of[group.name], group.name in change.before
        await connection.execute(
            _KEPT if existed else _NEW,
            group.name,
            list(of) if existed else of[0],
            epoch,
            change.after.layout,
        )
        if doubtful & set(change.of[group.name]):
            await connection.execute(DOUBT_EVERYTHING, wildcards(group))
    gone: Sequence[str] = [name for name in standings if name not in change.after]
    await connection.execute(_GONE, gone)
