"""The commands that move the migration by hand: stage, rollback, traffic; and the audit trail."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from crossfade.asking import (
    ALL,
    DEFAULT_ADDRESS,
    FAILED,
    MARGIN_SECONDS,
    OK,
    READ_SECONDS,
    Address,
    Json,
    Limit,
    OfGroup,
    Percent,
    Reason,
    run,
    show,
    time_of,
    who,
)
from crossfade.probes import CannotStart

if TYPE_CHECKING:
    from crossfade_api.v1 import admin_pb2

stage = App(
    name="stage",
    help="Where the migration stands, and moving it to another stage.",
    help_epilogue="The stages in order: off, dual_write, shadow, live, ramp_down, complete. "
    "Going back is always allowed, except from complete.",
    help_format="markdown",
)
traffic = App(
    name="traffic",
    help="Which share of the reads PostgreSQL answers, and which share is compared.",
    help_format="markdown",
)


# --- stage -------------------------------------------------------------------------------------


@stage.default
def show_stage(
    *, group: OfGroup = "", address: Address = DEFAULT_ADDRESS, json_: Json = False
) -> int:
    """Shows where the migration stands; where there are several groups, where each of them does.

    Example: crossfade stage --json
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        request = admin_pb2.GetStatusRequest(group=group)
        status = await admin.GetStatus(request, timeout=READ_SECONDS)
        if len(status.groups) > 1 and not group and not json_:
            _show_groups(status)
            return OK
        rows = [
            ("stage", status.stage),
            ("authority", status.authority),
            ("epoch", str(status.epoch)),
            ("copied", "yes" if status.copied else "no"),
            ("pending", str(status.pending)),
            ("dead letters", str(status.dead_letters)),
            ("a rollback would lose", f"{status.rollback_loses} writes"),
        ]
        if status.settings_problem:
            rows.append(("settings are refused", status.settings_problem))
        show(status, json_, ("", ""), rows)
        return OK

    return run(address, work)


def _show_groups(status: "admin_pb2.Status") -> None:
    rows = [
        (
            each.group,
            ", ".join(each.collections) or "(all others)",
            each.stage,
            each.authority,
            str(each.epoch),
            "yes" if each.copied else "no",
            str(each.pending),
            str(each.dead_letters),
            str(each.rollback_loses),
        )
        for each in status.groups
    ]
    columns = ("group", "collections", "stage", "authority", "epoch", "copied", "pending")
    show(status, False, (*columns, "dead letters", "a rollback would lose"), rows)
    if status.settings_problem:
        print(f"settings are refused: {status.settings_problem}")


@stage.command(name="set")
def set_stage(
    target: str,
    *,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    force: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    group: OfGroup = "",
    timeout: Annotated[float, Parameter(validator=Number(gt=0, lte=3600))] = 10.0,
    reason: Reason = "",
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Moves the migration to a stage, if the checks of the change pass.

    Checks pass, hold (not known yet) or fail, each with its figures. Going back has none.
    A change of authority holds back writes until nothing is pending; none fails.

    Example: crossfade stage set live --dry-run

    :param target: off, dual_write, shadow, live, ramp_down or complete.
    :param dry_run: Only says what the checks say. Ends with 1 if one does not pass.
    :param force: Goes on against the checks. The audit trail keeps what they said.
    :param timeout: Seconds for which a change of authority may hold back writes.
    """

    async def work(admin: Any) -> int:
        status = await _set_stage(
            admin, target, reason, timeout, group=group, dry_run=dry_run, force=force
        )
        rows = ((each.name, each.outcome, each.reason) for each in status.checks)
        if status.checks or json_:
            show(status, json_, ("check", "outcome", "why"), rows)
        if not json_:
            of = f" of group {status.group}" if group else ""
            print(f"stage {status.stage}{of}, epoch {status.epoch}")
        passed = all(check.outcome == "pass" for check in status.checks)
        return OK if passed or not dry_run else FAILED

    return run(address, work)


async def _set_stage(
    admin: Any,
    target: str,
    reason: str,
    timeout: float,
    *,
    group: str = "",
    dry_run: bool = False,
    force: bool = False,
) -> "admin_pb2.Status":
    from crossfade_api.v1 import admin_pb2

    status: admin_pb2.Status = await admin.SetStage(
        admin_pb2.SetStageRequest(
            stage=target,
            group=group,
            timeout_seconds=timeout,
            dry_run=dry_run,
            force=force,
            who=who(),
            reason=reason,
        ),
        timeout=timeout + MARGIN_SECONDS,
    )
    return status


def rollback(
    *,
    group: OfGroup = "",
    timeout: Annotated[float, Parameter(validator=Number(gt=0, lte=3600))] = 30.0,
    force: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    reason: Reason = "rollback",
    address: Address = DEFAULT_ADDRESS,
) -> int:
    """Takes the way back, from any stage but complete: Firestore decides and answers all reads.

    From live and ramp_down it goes to stage shadow, without losing a write; then, and in
    shadow, every read percent becomes 0 and running ramps are stopped. PostgreSQL is still
    written, so that the way forward stays open.

    Of several groups it is one that goes back; the others stay where they are.

    Example: crossfade rollback --reason "p99 of tasks"

    :param timeout: Seconds for which the change of authority may hold back writes.
    :param force: Although PostgreSQL, which decides, does not answer. What it had not sent on
        to Firestore is lost: `crossfade stage` says how much that is. Ramps and percents stay
        as they are until it is back: run this once more then.
    """
    from crossfade.jobs.rollback import roll_back

    async def work(admin: Any) -> int:
        async def ask(name: str, request: Any, seconds: float) -> Any:
            return await getattr(admin, name)(request, timeout=seconds)

        status = await roll_back(
            ask, who=who(), reason=reason, timeout=timeout, group=group, force=force
        )
        if force and status.backlog_unknown:
            print(f"stage {status.stage}: Firestore decides; PostgreSQL does not answer")
            return OK
        of = f" of group {status.group}" if group else ""
        print(f"stage {status.stage}{of}: Firestore decides and answers all reads")
        return OK

    return run(address, work)


# --- traffic -----------------------------------------------------------------------------------


@traffic.default
def show_traffic(*, address: Address = DEFAULT_ADDRESS, json_: Json = False) -> int:
    """Shows percent and shadow rate of every collection that has its own, and the defaults.

    Example: crossfade traffic
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        status = await admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=READ_SECONDS)
        _show_traffic(status, json_)
        return OK

    return run(address, work)


@traffic.command(name="set")
def set_traffic(
    collection: str,
    percent: Percent | None = None,
    *,
    shadow_rate: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None,
    reason: Reason = "",
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Sets the share of a collection's reads that PostgreSQL answers, at once.

    It stands over the settings file until `crossfade traffic reset`.

    Example: crossfade traffic set tasks 5

    :param collection: A collection id, or "all": the defaults and every collection that has
        a setting of its own.
    :param percent: 0..100, two decimals.
    :param shadow_rate: 0..1, the share of reads that are compared.
    """
    if percent is None and shadow_rate is None:
        raise CannotStart("give a PERCENT, or --shadow-rate")
    changes = {"read_percent": percent, "shadow_rate": shadow_rate}
    return _change_traffic(address, collection, reason, json_, changes)


@traffic.command(name="reset")
def reset_traffic(
    collection: str,
    *,
    reason: Reason = "",
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Forgets what was set by command: the settings file is in force again.

    Example: crossfade traffic reset all

    :param collection: A collection id, or "all".
    """
    return _change_traffic(address, collection, reason, json_, {"reset": True})


def _change_traffic(
    address: str, collection: str, reason: str, json_: bool, changes: dict[str, Any]
) -> int:
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        status = await admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=READ_SECONDS)
        named = admin_pb2.Traffic(collection=collection)
        chosen = status.traffic if collection == ALL else [named]
        status = await _set_traffic(admin, chosen, reason, **changes)
        _show_traffic(status, json_)
        return OK

    return run(address, work)


async def _set_traffic(
    admin: Any, chosen: "Iterable[admin_pb2.Traffic]", reason: str, **changes: Any
) -> "admin_pb2.Status":
    """Each by its collection; a group's defaults by the group."""
    from crossfade_api.v1 import admin_pb2

    given = {key: value for key, value in changes.items() if value is not None}
    status = admin_pb2.Status()
    for each in chosen:
        request = admin_pb2.SetTrafficRequest(
            collection=each.collection,
            group="" if each.collection else each.group,
            who=who(),
            reason=reason,
            **given,
        )
        status = await admin.SetTraffic(request, timeout=READ_SECONDS)
    return status


def _show_traffic(status: "admin_pb2.Status", json_: bool) -> None:
    several = len(status.groups) > 1
    rows = (
        (
            each.collection or (f"(default of {each.group})" if several else "(default)"),
            f"{each.read_percent:g}",
            f"{each.shadow_rate:g}",
        )
        for each in status.traffic
    )
    show(status, json_, ("collection", "percent", "shadow rate"), rows)


# --- audit -------------------------------------------------------------------------------------


def audit(
    *,
    collection: str = "",
    limit: Limit = 20,
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Who changed what of the migration, the latest first.

    Example: crossfade audit --limit 5
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        request = admin_pb2.ListAuditRequest(collection=collection, limit=limit)
        reply = await admin.ListAudit(request, timeout=READ_SECONDS)
        rows = (
            (
                time_of(each.at),
                each.who,
                each.action + (f" {each.collection}" if each.collection else ""),
                f"{each.before} -> {each.after}",
                each.reason,
            )
            for each in reply.entries
        )
        show(reply, json_, ("at", "who", "what", "change", "reason"), rows)
        return OK

    return run(address, work)
