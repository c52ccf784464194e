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
from crossfade.document import Database, check_id
from crossfade.effective import Effective
from crossfade.errors import FailedPrecondition, InfrastructureError, InvalidArgument
from crossfade.figures import EVERY, Tally, figures
from crossfade.jobs.backfill import backfill
from crossfade.jobs.both import Both
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.query import Query
from crossfade.ramp import Answer, Limits, Outcome, overall
from crossfade.rpc.ramps import answers as as_messages
from crossfade.rpc.server import Wrapper, check_visible, parse
from crossfade.snapshot import Traffic, parse_stage
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.audit import Audit, Change
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


class Admin:
    """The methods of the service, from request bytes to reply bytes.

    `collections`: ids that are known beforehand, because they are mapped.
    """

    def __init__(
        self,
        control: Control,
        coordinator: Coordinator,
        telemetry: Telemetry,
        database: Database,
        firestore: FirestoreStore | None,
        mirror: Mirror | None,
        collections: Iterable[str] = (),
        *,
        ramps: Ramps | None = None,
        audit: Audit | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._control = control
        self._coordinator = coordinator
        self._telemetry = telemetry
        self.effective = Effective(telemetry)
        self._database = database
        self._firestore = firestore
        self._mirror = mirror
        self._collections = frozenset(collections)
        self._ramps = ramps
        self._audit = audit
        self._limits = limits or Limits()
        self.copying: Both | None = None
        """What a copy works with; None: one of the stores is not configured."""
        self.settings_problem: Callable[[], str] = str
        """Why the settings file is not in force; empty: it is, or there is none."""

    async def get_status(self, data: bytes, _: Call) -> bytes:
        parse(admin_pb2.GetStatusRequest, data)
        return (await self.status()).SerializeToString()

    async def set_stage(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.SetStageRequest, data)
        target = parse_stage(request.stage)
        seconds = request.timeout_seconds or BARRIER_SECONDS
        if not 0 < seconds <= MAX_BARRIER_SECONDS:
            raise InvalidArgument(
                f"timeout_seconds: {seconds:g} is outside 0..{MAX_BARRIER_SECONDS:g}"
            )
        if STAGES[target].mirrored and self._firestore is None:
            raise FailedPrecondition(f"stage {target} needs Firestore, which is not configured")
        if request.without_postgresql:
            await self._coordinator.set_stage(target, timeout=seconds, force=True)
            return (await self.status()).SerializeToString()
        before = self._control.snapshot.stage
        checked = request.check or request.dry_run or request.force
        answers = await self._checks(before, target) if checked else ()
        if not request.dry_run:
            if overall(answers) is not Outcome.PASS and not request.force:
                raise FailedPrecondition(_refusal(target, answers))
            await self._coordinator.set_stage(target, timeout=seconds)
            await self._remember(
                request.who, "stage", before.value, target.value, request.reason, checks=answers
            )
        status = await self.status()
        status.checks.extend(as_messages(answers))
        return status.SerializeToString()

    async def _checks(self, before: Stage, target: Stage) -> tuple[Answer, ...]:
        """What the checks of the change say now."""
        if not checks_of(before, target):
            return ()
        backlog = await self.backlog()
        sums = await self._ramps.sums() if self._ramps is not None else {}
        facts = Facts(
            copied=backlog.copied,
            pending=backlog.pending,
            oldest_seconds=backlog.oldest_seconds,
            dead=backlog.dead,
            figures=figures(sums.get(EVERY, Tally()), Tally()),
            limits=self._limits,
        )
        return run_checks(before, target, facts)

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
        """A change was made: that it cannot be written down does not undo it."""
        log.info("changed", action=action, collection=collection, before=before, after=after)
        if self._audit is None:
            return
        who = signed(who)
        try:
            await self._audit.add(Change(who, action, before, after, reason, collection, checks))
        except InfrastructureError as error:
            log.warning("a change is missing in the audit trail", action=action, error=error.code)

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
        await self._control.set_traffic(
            request.collection, Traffic(percent, rate), reset=request.reset
        )
        await self._remember(
            request.who,
            "traffic",
            before,
            self._shown_traffic(request.collection),
            request.reason,
            collection=request.collection,
        )
        return (await self.status()).SerializeToString()

    def _shown_traffic(self, collection: str) -> str:
        plan = self._control.snapshot.plan_of(collection)
        return f"{plan.threshold / 100:g} %, shadow rate {plan.shadow_rate:g}"

    async def check_collection(self, name: str) -> None:
        """Refuses a name that nothing has: with a misspelt one a ramp would do nothing.

        Where Firestore cannot be asked, the name is believed: an operator who takes reads
        away from a store in an outage must not be told to wait for the outage to end.
        """
        check_id(name, "collection", numeric=False)
        check_visible(name, "collection")
        used = {collection for collection, _ in self._telemetry.counts(READS)}
        known = self._collections | self._control.snapshot.traffic.keys() | used - {""}
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
        parse(admin_pb2.CopyRequest, data)
        if self.copying is None:
            raise FailedPrecondition("a copy needs both stores; one is not configured")
        async for step in backfill(self.copying):
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
            after=request.after,
            limit=limit + 1,
            timeout=call.left(),
        )
        reply = admin_pb2.ListDeadLettersReply(more=len(found) > limit)
        for letter in found[:limit]:
            added = reply.letters.add(
                path=letter.path,
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
            path=request.path or None,
            collection=request.collection or None,
            overwrite_foreign=request.overwrite_foreign,
            timeout=call.left(),
        )
        self._coordinator.wake_recopy()
        return admin_pb2.RetryDeadLettersReply(retried=retried).SerializeToString()

    def _needs_mirror(self) -> Mirror:
        if self._mirror is None:
            raise FailedPrecondition("this sidecar runs without PostgreSQL; set DATABASE_URL")
        return self._mirror

    async def status(self) -> admin_pb2.Status:
        snapshot = self._control.snapshot
        backlog, unknown = Backlog(), ""
        try:
            backlog = await self.backlog()
        except InfrastructureError as error:
            unknown = str(error)
        lease = self._control.lease
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
        )
        for name in sorted({"", *snapshot.traffic}):
            traffic = snapshot.traffic_of(name)
            plan = snapshot.plan_of(name)
            status.traffic.add(
                collection=name,
                read_percent=plan.threshold / 100,
                shadow_rate=plan.shadow_rate
                if traffic.shadow_rate is None
                else traffic.shadow_rate,
            )
        self._add_counts(status)
        return status

    async def backlog(self) -> Backlog:
        """What the mirror has still to get. Raises InfrastructureError when PostgreSQL
        cannot be asked."""
        snapshot = self._control.snapshot
        if self._mirror is None:
            return Backlog()
        summary = await self._mirror.summary(timeout=SUMMARY_SECONDS)
        loses = forced = 0
        if snapshot.stage is Stage.COMPLETE:
            # Nothing is mirrored any more: what was written since exists here alone.
            loses = forced = await self._mirror.written_in(snapshot.epoch, timeout=SUMMARY_SECONDS)
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


def _refusal(target: Stage, answers: Iterable[Answer]) -> str:
    why = "; ".join(
        f"{each.name} {each.outcome}: {each.reason}"
        for each in answers
        if each.outcome is not Outcome.PASS
    )
    return f"stage {target} is not reached: {why}"


def handler(
    admin: Admin, wrap: Wrapper, more: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
) -> grpc.GenericRpcHandler:
    """The whole service; `more` are its methods of other modules, by name."""
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetStatus": wrap.unary(f"{SERVICE}/GetStatus", admin.get_status),
        "SetStage": wrap.unary(f"{SERVICE}/SetStage", admin.set_stage),
        "SetTraffic": wrap.unary(f"{SERVICE}/SetTraffic", admin.set_traffic),
        "Copy": wrap.streaming(f"{SERVICE}/Copy", admin.copy),
        "ListDeadLetters": wrap.unary(f"{SERVICE}/ListDeadLetters", admin.list_dead_letters),
        "RetryDeadLetters": wrap.unary(f"{SERVICE}/RetryDeadLetters", admin.retry_dead_letters),
        **more,
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)
