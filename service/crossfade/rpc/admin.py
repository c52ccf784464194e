"""crossfade.v1.Admin: where the migration stands, and the controls that move it."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import grpc
import structlog

from crossfade.access import signed
from crossfade.barrier import Coordinator
from crossfade.call import Call
from crossfade.checks import checks_of, run_checks
from crossfade.checks.facts import Facts
from crossfade.control import Control
from crossfade.controls import Controls
from crossfade.document import Database, check_id
from crossfade.effective import Effective
from crossfade.errors import FailedPrecondition, InfrastructureError, InvalidArgument, NotFound
from crossfade.figures import EVERY, Tally, figures, total
from crossfade.groups import DEFAULT
from crossfade.jobs.backfill import backfill
from crossfade.jobs.both import Both
from crossfade.jobs.trail import Trail
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.query import Query
from crossfade.ramp import Answer, Limits, Outcome, overall
from crossfade.redaction import present
from crossfade.rpc.ramps import answers as as_messages
from crossfade.rpc.server import Unary, Wrapper, check_visible, parse
from crossfade.snapshot import Traffic, parse_stage
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.audit import Change
from crossfade.stores.postgres.findings import Findings
from crossfade.stores.postgres.mirror import Mirror
from crossfade.stores.postgres.ramps import Ramps
from crossfade.telemetry import (
    COMMITS,
    FALLBACK_READS,
    READS,
    SHADOW_DROPPED,
    VERDICTS,
    Telemetry,
)
from crossfade_api.v1 import admin_pb2
from crossfade_api.v1.crossfade_pb2 import QueryReply

log = structlog.get_logger(__name__)

SERVICE = "crossfade.v1.Admin"
BARRIER_SECONDS = 10.0
MAX_BARRIER_SECONDS = 3600.0
LOOK_SECONDS = 2.0
SUMMARY_SECONDS = 5.0
LETTERS, MAX_LETTERS = 100, 1000


@dataclass(frozen=True, slots=True)
class Backlog:
    """Documents of which the mirror may be behind, and what a rollback would lose now:
    by barrier, and by force."""

    pending: int = 0
    oldest_seconds: float = 0.0
    dead: int = 0
    foreign: int = 0
    copied: bool = False
    rollback_loses: int = 0
    forced_rollback_loses: int = 0


@dataclass(frozen=True, slots=True)
class Led:
    """What moves a group, and its side of PostgreSQL (None: the sidecar runs without)."""

    coordinator: Coordinator
    mirror: Mirror | None


class Admin:
    """The methods of the service, from request bytes to reply bytes.

    `led` by the names of the groups. `collections`: ids that are known beforehand, because they
    are mapped. `findings`: where the certificates of validations are, which count for
    `certificate_age` seconds; `fingerprint`: of the tables of this sidecar's mapping.
    """

    def __init__(
        self,
        controls: Controls,
        led: Mapping[str, Led],
        telemetry: Telemetry,
        database: Database,
        firestore: FirestoreStore | None,
        collections: Iterable[str] = (),
        *,
        ramps: Ramps | None = None,
        trail: Trail | None = None,
        limits: Limits | None = None,
        findings: Findings | None = None,
        fingerprint: str = "",
        certificate_age: float = 86_400.0,
    ) -> None:
        self._controls = controls
        self._led = led
        self._telemetry = telemetry
        self.effective = Effective(telemetry)
        self._database = database
        self._firestore = firestore
        self._collections = frozenset(collections)
        self._ramps = ramps
        self._trail = trail
        self._limits = limits or Limits()
        self._findings = findings
        self._fingerprint = fingerprint
        self._certificate_age = certificate_age
        self.copying: Mapping[str, Both] = {}
        """What copies work with, by group; empty: one of the stores is not configured."""
        self.settings_problem: Callable[[], str] = str
        """Why the settings file is not in force; empty: it is, or there is none."""

    async def get_status(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.GetStatusRequest, data)
        return (await self.status(self._group(request.group))).SerializeToString()

    def _group(self, name: str) -> str:
        """The group of that name; of none, the default one. Raises InvalidArgument."""
        if (name or DEFAULT) not in self._controls:
            known = ", ".join(self._controls)
            raise InvalidArgument(f'group: there is no group "{name[:60]}"; there are {known}')
        return name or DEFAULT

    async def set_stage(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.SetStageRequest, data)
        group = self._group(request.group)
        coordinator = self._led[group].coordinator
        target = parse_stage(request.stage)
        seconds = request.timeout_seconds or BARRIER_SECONDS
        if not 0 < seconds <= MAX_BARRIER_SECONDS:
            raise InvalidArgument(
                f"timeout_seconds: {seconds:g} is outside 0..{MAX_BARRIER_SECONDS:g}"
            )
        if STAGES[target].mirrored and self._firestore is None:
            raise FailedPrecondition(f"stage {target} needs Firestore, which is not configured")
        before = self._controls[group].snapshot.stage
        suffix = "" if group == DEFAULT else f" of group {group}"
        if request.without_postgresql:
            await coordinator.set_stage(target, timeout=seconds, force=True)
            why = " ".join(filter(None, (request.reason, "(by force, without PostgreSQL)")))
            # Without the mirror it may not be the one that was asked for.
            after = self._controls[group].snapshot.stage
            await self._remember(request.who, "stage", f"{before}{suffix}", f"{after}{suffix}", why)
            return (await self.status(group)).SerializeToString()
        answers = await self._checks(group, before, target)
        if not request.dry_run:
            if overall(answers) is not Outcome.PASS and not request.force:
                raise FailedPrecondition(_refusal(target, answers))
            await coordinator.set_stage(target, timeout=seconds)
            await self._remember(
                request.who,
                "stage",
                f"{before}{suffix}",
                f"{target}{suffix}",
                request.reason,
                checks=answers,
            )
        status = await self.status(group)
        status.checks.extend(as_messages(answers))
        return status.SerializeToString()

    async def _checks(self, group: str, before: Stage, target: Stage) -> tuple[Answer, ...]:
        """What the checks of the change say now."""
        if not checks_of(before, target):
            return ()
        backlog = await self.backlog(group)
        sums = await self._ramps.sums() if self._ramps is not None else {}
        snapshot = self._controls[group].snapshot
        latest = None if self._findings is None else await self._findings.latest(group)
        facts = Facts(
            copied=backlog.copied,
            pending=backlog.pending,
            oldest_seconds=backlog.oldest_seconds,
            dead=backlog.dead,
            figures=figures(self._of_group(group, sums), Tally()),
            limits=self._limits,
            epoch=snapshot.epoch,
            generation=snapshot.generation,
            fingerprint=self._fingerprint,
            certificate=latest,
            certificate_age=self._certificate_age,
        )
        return run_checks(before, target, facts)

    def _of_group(self, group: str, sums: Mapping[str, Tally]) -> Tally:
        """What was counted of the group's collections."""
        if len(self._controls) == 1:
            return sums.get(EVERY, Tally())
        holds = self._controls[group].group.holds
        return total(tally for name, tally in sums.items() if name != EVERY and holds(name))

    async def _remember(
        self,
        who: str,
        action: str,
        before: str,
        after: str,
        reason: str,
        *,
        collection: str = "",
        checks: tuple[Answer, ...] = (),
    ) -> None:
        """A change was made."""
        log.info("changed", action=action, collection=collection, before=before, after=after)
        if self._trail is not None:
            who = signed(who)
            await self._trail.add(Change(who, action, before, after, reason, collection, checks))

    async def set_traffic(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.SetTrafficRequest, data)
        percent = request.read_percent if request.HasField("read_percent") else None
        rate = request.shadow_rate if request.HasField("shadow_rate") else None
        if percent is None and rate is None and not request.reset:
            raise InvalidArgument("read_percent, shadow_rate, reset: at least one must be given")
        if percent is not None and not 0 <= percent <= 100:
            raise InvalidArgument(f"read_percent: {percent:g} is outside 0..100")
        if rate is not None and not 0 <= rate <= 1:
            raise InvalidArgument(f"shadow_rate: {rate:g} is outside 0..1")
        if request.collection:
            await self.check_collection(request.collection)
        before = self._shown_traffic(request.collection)
        await self._controls.set_traffic(
            request.collection,
            Traffic(percent, rate),
            group=request.group and self._group(request.group),
            reset=request.reset,
        )
        await self._remember(
            request.who,
            "traffic",
            before,
            self._shown_traffic(request.collection),
            request.reason,
            collection=request.collection,
        )
        group = self._controls.of(request.collection).group.name
        return (await self.status(request.group or group)).SerializeToString()

    def _shown_traffic(self, collection: str) -> str:
        plan = self._controls.snapshot_of(collection).plan_of(collection)
        return f"{plan.threshold / 100:g} %, shadow rate {plan.shadow_rate:g}"

    async def check_collection(self, name: str) -> None:
        """Refuses a name that nothing has: with a misspelt one a ramp would do nothing.

        Where Firestore cannot be asked, the name is believed: an operator who takes reads
        away from a store in an outage must not be told to wait for the outage to end.
        """
        check_id(name, "collection", numeric=False)
        check_visible(name, "collection")
        used = {collection for collection, _ in self._telemetry.counts(READS)}
        known = self._collections | self._controls.traffic() | used - {""}
        if name in known or self._firestore is None:
            return
        try:
            query = Query(collection=name, all_descendants=True, limit=1)
            async for page in self._firestore.query(query, timeout=LOOK_SECONDS):
                if QueryReply.FromString(page.frames).documents:
                    return
        except InfrastructureError:
            return
        close = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise InvalidArgument(
            f'collection: nothing is mapped, set or stored under "{name[:120]}"{hint}'
        )

    async def copy(self, data: bytes, _: Call) -> AsyncIterator[bytes]:
        group = self._group(parse(admin_pb2.CopyRequest, data).group)
        if group not in self.copying:
            raise FailedPrecondition("a copy needs both stores; one is not configured")
        async for step in backfill(self.copying[group]):
            yield admin_pb2.CopyProgress(
                copied=step.copied, removed=step.removed, done=step.done
            ).SerializeToString()

    async def list_dead_letters(self, data: bytes, call: Call) -> bytes:
        request = parse(admin_pb2.ListDeadLettersRequest, data)
        if not 0 <= request.limit <= MAX_LETTERS:
            raise InvalidArgument(f"limit: {request.limit} is outside 0..{MAX_LETTERS}")
        limit = request.limit or LETTERS
        found = await self._needs_mirror().dead_letters.list(
            collection=request.collection or None,
            after=await self._revealed(request.after, call),
            limit=limit + 1,
            timeout=call.left(),
        )
        reply = admin_pb2.ListDeadLettersReply(more=len(found) > limit)
        for letter in found[:limit]:
            added = reply.letters.add(
                path=present().path(letter.path),
                collection=letter.collection,
                reason=letter.reason,
                cause=letter.cause,
                attempts=letter.attempts,
                epoch=letter.epoch,
                foreign=letter.foreign,
                commits=letter.commits,
            )
            added.since.FromDatetime(letter.since)
        return reply.SerializeToString()

    async def retry_dead_letters(self, data: bytes, call: Call) -> bytes:
        request = parse(admin_pb2.RetryDeadLettersRequest, data)
        if sum(map(bool, (request.path, request.collection, request.all))) != 1:
            raise InvalidArgument("path, collection, all: exactly one must be given")
        retried = await self._needs_mirror().dead_letters.retry(
            path=await self._revealed(request.path, call) or None,
            collection=request.collection or None,
            overwrite_foreign=request.overwrite_foreign,
            timeout=call.left(),
        )
        for each in self._led.values():
            each.coordinator.wake_recopy()
        return admin_pb2.RetryDeadLettersReply(retried=retried).SerializeToString()

    async def _revealed(self, path: str, call: Call) -> str:
        """The path of the dead letter that is shown under this one: its id may be hidden."""
        redaction = present()
        if not redaction.hides(path):
            return path
        letters, after = self._needs_mirror().dead_letters, ""
        while True:
            found = await letters.list(after=after, limit=MAX_LETTERS, timeout=call.left())
            for letter in found:
                if redaction.path(letter.path) == path:
                    return letter.path
            if len(found) < MAX_LETTERS:
                raise NotFound(f"path: no dead letter is shown as {path[:200]} by this sidecar")
            after = found[-1].path

    def _needs_mirror(self) -> Mirror:
        mirror = self._led[DEFAULT].mirror
        if mirror is None:
            raise FailedPrecondition("this sidecar runs without PostgreSQL; set DATABASE_URL")
        return mirror

    async def status(self, group: str = DEFAULT) -> admin_pb2.Status:
        """Where a group stands, and in short where all of them do."""
        control = self._controls[group]
        snapshot = control.snapshot
        backlogs, unknown = {name: Backlog() for name in self._controls}, ""
        try:
            for name in self._controls:
                backlogs[name] = await self.backlog(name)
        except InfrastructureError as error:
            unknown = str(error)
        backlog = backlogs[group]
        lease = control.lease
        status = admin_pb2.Status(
            backlog_unknown=unknown,
            gate_open=lease is not None and lease.document.gate_open,
            effective_percent=self.effective.percents(),
            stage=snapshot.stage.value,
            authority=snapshot.authority.value if snapshot.writable else "none",
            epoch=snapshot.epoch,
            pending=backlog.pending,
            oldest_pending_seconds=backlog.oldest_seconds,
            copied=backlog.copied,
            dead_letters=backlog.dead,
            rollback_loses=backlog.rollback_loses,
            forced_rollback_loses=backlog.forced_rollback_loses,
            settings_problem=self.settings_problem(),
            group=group,
            groups=(self._group_status(name, known) for name, known in backlogs.items()),
        )
        for each in self._controls.values():
            _add_traffic(status, each)
        self._add_counts(status)
        return status

    def _group_status(self, name: str, backlog: Backlog) -> admin_pb2.GroupStatus:
        control = self._controls[name]
        snapshot = control.snapshot
        return admin_pb2.GroupStatus(
            group=name,
            collections=control.group.collections if control.group.named else (),
            stage=snapshot.stage.value,
            authority=snapshot.authority.value if snapshot.writable else "none",
            epoch=snapshot.epoch,
            pending=backlog.pending,
            dead_letters=backlog.dead,
            copied=backlog.copied,
            rollback_loses=backlog.rollback_loses,
        )

    async def backlog(self, group: str = DEFAULT) -> Backlog:
        """What the mirror has still to get. Raises InfrastructureError when PostgreSQL
        cannot be asked."""
        snapshot, mirror = self._controls[group].snapshot, self._led[group].mirror
        if mirror is None:
            return Backlog()
        summary = await mirror.summary(timeout=SUMMARY_SECONDS)
        loses = forced = 0
        if snapshot.stage is Stage.COMPLETE:
            # Nothing is mirrored any more: what was written since exists here alone.
            loses = forced = await mirror.written_in(snapshot.epoch, timeout=SUMMARY_SECONDS)
        elif snapshot.authority is StoreName.POSTGRESQL:
            forced = summary.pending
        return Backlog(
            summary.pending,
            summary.oldest_seconds,
            summary.dead,
            summary.foreign,
            copied=snapshot.stage is not Stage.OFF and not summary.wildcards,
            rollback_loses=loses,
            forced_rollback_loses=forced,
        )

    def _add_counts(self, status: admin_pb2.Status) -> None:
        """What the recorder holds since the start."""
        for (collection, verdict), count in sorted(self._telemetry.counts(VERDICTS).items()):
            status.verdicts.add(collection=collection, verdict=verdict, count=count)
        for series in self._telemetry.latencies():
            status.latencies.add(
                collection=series.collection,
                operation=series.operation,
                store=series.store,
                role=series.role,
                count=series.count,
                errors=series.errors,
                p50_ms=series.p50 * 1e3,
                p95_ms=series.p95 * 1e3,
                p99_ms=series.p99 * 1e3,
            )
        for (_, store), count in self._telemetry.counts(READS).items():
            status.reads_by_store[store] += count
        status.shadow_dropped = self._telemetry.total(SHADOW_DROPPED)
        status.fallback_reads = self._telemetry.total(FALLBACK_READS)
        status.commits = self._telemetry.total(COMMITS)


def _add_traffic(status: admin_pb2.Status, control: Control) -> None:
    snapshot = control.snapshot
    for name in sorted({"", *filter(control.group.holds, snapshot.traffic)}):
        traffic, plan = snapshot.traffic_of(name), snapshot.plan_of(name)
        status.traffic.add(
            collection=name,
            read_percent=plan.threshold / 100,
            shadow_rate=plan.shadow_rate if traffic.shadow_rate is None else traffic.shadow_rate,
            group=control.group.name,
        )


def _refusal(target: Stage, answers: Iterable[Answer]) -> str:
    why = "; ".join(
        f"{each.name} {each.outcome}: {each.reason}"
        for each in answers
        if each.outcome is not Outcome.PASS
    )
    return f"stage {target} is not reached: {why}"


def unary(admin: Admin) -> dict[str, Unary]:
    """The methods with one reply, by name."""
    return {
        "GetStatus": admin.get_status,
        "SetStage": admin.set_stage,
        "SetTraffic": admin.set_traffic,
        "ListDeadLetters": admin.list_dead_letters,
        "RetryDeadLetters": admin.retry_dead_letters,
    }


def handler(
    admin: Admin, wrap: Wrapper, more: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
) -> grpc.GenericRpcHandler:
    """The whole service; `more` are its methods of other modules, by name."""
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: wrap.unary(f"{SERVICE}/{name}", method) for name, method in unary(admin).items()
    }
    methods |= {"Copy": wrap.streaming(f"{SERVICE}/Copy", admin.copy), **more}
    return grpc.method_handlers_generic_handler(SERVICE, methods)
