"""The commands that ask a running sidecar, and move the migration: stage, traffic, ramp,
rollback, mismatches, audit. Each talks to the admin service at --address."""

import asyncio
import getpass
import json
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from crossfade.admin_commands import connected
from crossfade.probes import CannotStart

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from crossfade_api.v1 import admin_pb2

OK, FAILED = 0, 1
ALL = "all"
READ_SECONDS = 15.0
MARGIN_SECONDS = 15.0
"""Over the time that a change of stage may take."""

Address = Annotated[
    str,
    Parameter(
        env_var="CROSSFADE_ADDRESS",
        help="HOST:PORT or unix:PATH of the sidecar, as `crossfade serve` prints.",
    ),
]
Json = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="Prints JSON on stdout.")
]
Reason = Annotated[str, Parameter(help="For the audit trail.")]
Percent = Annotated[float, Parameter(validator=Number(gte=0, lte=100))]
OfGroup = Annotated[
    str,
    Parameter(
        name="--group", help="A group of collections, by its name in the settings; else default."
    ),
]
Limit = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000))]
DEFAULT_ADDRESS = "127.0.0.1:7600"

mismatches = App(
    name="mismatches",
    help="What shadow reads found to differ. Values are redacted; docs/shadow.md says how.",
    help_format="markdown",
)
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
ramp = App(
    name="ramp",
    help="Moves reads to PostgreSQL step by step, as long as the figures allow, and back by "
    "itself when they do not.",
    help_format="markdown",
)


# --- mismatches --------------------------------------------------------------------------------


@mismatches.default
def list_mismatches(
    *,
    collection: str = "",
    field: str = "",
    since: str | None = None,
    limit: Limit = 100,
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Lists them by signature (collection, verdict, which fields differ), the latest first.

    Ends with 1 if there are any.

    Example: crossfade mismatches --collection tasks --since 1h

    :param field: A field path; mismatches within it are listed, too.
    :param since: Only those met since then: 90s, 10m, 2h, 7d, or a time such as
        2026-03-01T12:00:00Z.
    """
    from crossfade_api.v1 import admin_pb2

    request = admin_pb2.ListMismatchesRequest(collection=collection, field=field, limit=limit)
    if since is not None:
        request.since.FromDatetime(moment(since))

    async def work(admin: Any) -> int:
        reply = await admin.ListMismatches(request, timeout=READ_SECONDS)
        rows = (
            (
                each.collection,
                each.verdict + (" (given up)" if each.given_up else ""),
                ", ".join(each.fields) or "(the whole)",
                str(each.count),
                each.path,
                _time(each.latest.at),
            )
            for each in reply.mismatches
        )
        columns = ("collection", "verdict", "fields", "count", "latest document", "at")
        _show(reply, json_, columns, rows)
        return FAILED if reply.mismatches else OK

    return _run(address, work)


@mismatches.command
def explain(path: str, *, address: Address = DEFAULT_ADDRESS, json_: Json = False) -> int:
    """Reads one document from both stores now and shows what differs. Repairs nothing.

    Ends with 1 if it is wrong, stale, missing or extra.

    Example: crossfade mismatches explain tasks/42

    :param path: A document's path, as COLLECTION/ID.
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        request = admin_pb2.ExplainMismatchRequest(name=path)
        found = await admin.ExplainMismatch(request, timeout=2 * READ_SECONDS)
        rows = (
            (each.field, each.kind, _shown(each, "authority"), _shown(each, "mirror"))
            for each in found.differences
        )
        if not json_:
            versions = ", ".join(
                f"{name} {_version(getattr(found, name))}" for name in ("firestore", "postgresql")
            )
            print(f"{found.path}: {found.verdict} ({found.authority} decides; {versions})")
        _show(found, json_, ("field", "kind", "authority", "mirror"), rows)
        return OK if found.verdict in {"match", "behind"} else FAILED

    return _run(address, work)


def _shown(difference: "admin_pb2.FieldDifference", side: str) -> str:
    if not difference.HasField(side):  # type: ignore[arg-type]
        return "-"
    value = getattr(difference, side)
    length = f" of {value.length}" if value.HasField("length") else ""
    return f"{value.type}{length} {value.value or '#' + value.hash}"


def _version(held: "admin_pb2.HeldVersion") -> str:
    if not held.exists:
        return "has none"
    return f"of {datetime.fromtimestamp(held.time / 1e6, UTC).isoformat()}"


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
        _show(status, json_, ("", ""), rows)
        return OK

    return _run(address, work)


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
    _show(status, False, (*columns, "dead letters", "a rollback would lose"), rows)
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
            _show(status, json_, ("check", "outcome", "why"), rows)
        if not json_:
            of = f" of group {status.group}" if group else ""
            print(f"stage {status.stage}{of}, epoch {status.epoch}")
        passed = all(check.outcome == "pass" for check in status.checks)
        return OK if passed or not dry_run else FAILED

    return _run(address, work)


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
            who=_who(),
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
            ask, who=_who(), reason=reason, timeout=timeout, group=group, force=force
        )
        if force and status.backlog_unknown:
            print(f"stage {status.stage}: Firestore decides; PostgreSQL does not answer")
            return OK
        of = f" of group {status.group}" if group else ""
        print(f"stage {status.stage}{of}: Firestore decides and answers all reads")
        return OK

    return _run(address, work)


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

    return _run(address, work)


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

    return _run(address, work)


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
            who=_who(),
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
    _show(status, json_, ("collection", "percent", "shadow rate"), rows)


# --- ramp --------------------------------------------------------------------------------------


@ramp.default
def show_ramps(*, address: Address = DEFAULT_ADDRESS, json_: Json = False) -> int:
    """Shows the ramps: where each stands, and what it did last or waits for.

    Example: crossfade ramp
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        reply = await admin.ListRamps(admin_pb2.ListRampsRequest(), timeout=READ_SECONDS)
        _show_ramps(reply, json_)
        return OK

    return _run(address, work)


@ramp.command(name="start")
def start_ramp(
    collection: str,
    *,
    steps: str = "1,5,25,50,100",
    bake: str = "10m",
    max_mismatch: str | None = None,
    max_error_delta: str | None = None,
    max_p99_ratio: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    min_samples: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    address: Address = DEFAULT_ADDRESS,
    json_: Json = False,
) -> int:
    """Begins at 0 percent, and goes a step forward whenever bake and figures allow.

    It holds while the data are too few, goes back a step when PostgreSQL fails or is slow,
    and to 0 when the data differ; a sidecar carries it on, this command does not wait.
    Limits that are not given are those of [ramp] in the sidecar's settings.

    Example: crossfade ramp start tasks --steps 1,5,25,50,100 --bake 10m --max-mismatch 0.01%

    :param collection: A collection id, or "all": a ramp for the defaults and one for each
        collection that has a percent of its own.
    :param steps: Percents, rising.
    :param bake: How long each is looked at: 90s, 10m, 2h.
    :param max_mismatch: Share of comparisons that may be bad, as 0.01% or 0.0001.
    :param max_error_delta: How much larger PostgreSQL's share of failed reads may be.
    :param max_p99_ratio: How many times as slow PostgreSQL's p99 may be.
    :param min_samples: Comparisons, and reads of each store, that a step needs.
    """
    from crossfade_api.v1 import admin_pb2

    given: dict[str, Any] = {
        "max_mismatch": None if max_mismatch is None else share(max_mismatch),
        "max_error_delta": None if max_error_delta is None else share(max_error_delta),
        "max_p99_ratio": max_p99_ratio,
        "min_samples": min_samples,
    }
    try:
        percents = [float(step) for step in steps.split(",")]
    except ValueError:
        raise CannotStart("--steps: percents with commas between them, as 1,5,25") from None
    seconds = duration(bake)

    async def work(admin: Any) -> int:
        status = await admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=READ_SECONDS)
        every = dict.fromkeys(each.collection for each in status.traffic)
        for name in every if collection == ALL else [collection]:
            request = admin_pb2.StartRampRequest(
                collection=name, steps=percents, bake_seconds=seconds, who=_who(), **given
            )
            await admin.StartRamp(request, timeout=READ_SECONDS)
        reply = await admin.ListRamps(admin_pb2.ListRampsRequest(), timeout=READ_SECONDS)
        _show_ramps(reply, json_)
        return OK

    return _run(address, work)


@ramp.command(name="stop")
def stop_ramp(collection: str, *, address: Address = DEFAULT_ADDRESS, json_: Json = False) -> int:
    """Ends a ramp and leaves the reads where they are.

    Example: crossfade ramp stop all

    :param collection: A collection id, or "all".
    """
    from crossfade_api.v1 import admin_pb2

    async def work(admin: Any) -> int:
        everything = collection == ALL
        request = admin_pb2.StopRampRequest(
            collection="" if everything else collection, all=everything, who=_who()
        )
        _show_ramps(await admin.StopRamp(request, timeout=READ_SECONDS), json_)
        return OK

    return _run(address, work)


def _show_ramps(reply: "admin_pb2.ListRampsReply", json_: bool) -> None:
    rows = (
        (each.collection or "(default)", each.status, f"{each.percent:g}", each.reason)
        for each in reply.ramps
    )
    _show(reply, json_, ("collection", "status", "percent", "why"), rows)


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
                _time(each.at),
                each.who,
                each.action + (f" {each.collection}" if each.collection else ""),
                f"{each.before} -> {each.after}",
                each.reason,
            )
            for each in reply.entries
        )
        _show(reply, json_, ("at", "who", "what", "change", "reason"), rows)
        return OK

    return _run(address, work)


# --- words -------------------------------------------------------------------------------------

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def duration(text: str) -> float:
    """Seconds of "90s", "10m", "2h", "7d". Raises CannotStart."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise CannotStart(f'"{text[:40]}" is no duration: write 90s, 10m, 2h or 7d')
    return float(found[1]) * _UNITS[found[2]]


def moment(text: str) -> datetime:
    """A moment in UTC: so long ago, or an ISO time (UTC where it says nothing else)."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(time.time() - duration(text), UTC).replace(tzinfo=None)
    return (at if at.tzinfo is None else at.astimezone(UTC)).replace(tzinfo=None)


def share(text: str) -> float:
    """0..1 of "0.01%" or "0.0001". Raises CannotStart."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e-\d+)?)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value <= 1:
        raise CannotStart(f'"{text[:40]}" is no share: write 0.01% or 0.0001')
    return value


# --- running -----------------------------------------------------------------------------------


def _run(address: str, work: Callable[[Any], Awaitable[int]]) -> int:
    """Runs `work` with a stub of the admin service."""
    return asyncio.run(_called(address, work))


async def _called(address: str, work: Callable[[Any], Awaitable[int]]) -> int:
    import grpc

    async with connected(address) as admin:
        try:
            return await work(admin)
        except grpc.aio.AioRpcError as error:
            print(f"crossfade: {error.details()} ({error.code().name})", file=sys.stderr)
            return FAILED


def _show(
    message: "Message", as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """The reply on stdout: as a table, or all of it as JSON."""
    if as_json:
        from google.protobuf.json_format import MessageToDict

        shown = MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        print(json.dumps(shown, indent=2))
        return
    from rich.console import Console

    from crossfade.display import print_table

    found = list(rows)
    if found:
        print_table(columns, found, Console(highlight=False))


def _time(stamp: Any) -> str:
    return str(stamp.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds"))


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container without an entry for its user
        return f"somebody@{socket.gethostname()}"
