"""What can be asked and done over HTTP, as models: the admin services' methods, and the few
answers that are put together from several of them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from crossfade.admin import models
from crossfade.admin.calls import MARGIN_SECONDS, Calls, plain
from crossfade.admin.history import INTERVAL_SECONDS, History, ms, over_groups, plain_reads
from crossfade.admin.history import Calls as Counted
from crossfade.admin.parts import Parts
from crossfade.certified import Certified
from crossfade.errors import CrossfadeError, InvalidArgument
from crossfade.jobs.rollback import roll_back
from crossfade.plan import STAGES, Stage
from crossfade.ramp import Answer
from crossfade.telemetry import (
    BUDGET_LEFT,
    DEAD_LETTERS,
    FOLLOWED,
    FOLLOWER_LAG,
    FOREIGN,
    MISFITS,
    OLDEST_PENDING,
    PENDING,
    Gauge,
)
from crossfade_api.v1 import admin_pb2, jobs_pb2

EXPLAIN_SECONDS = 30.0
ACTIONS = {
    "pause": jobs_pb2.JOB_ACTION_PAUSE,
    "resume": jobs_pb2.JOB_ACTION_RESUME,
    "cancel": jobs_pb2.JOB_ACTION_CANCEL,
}


class Desk:
    """Every method raises CrossfadeError."""

    def __init__(self, parts: Parts, history: History) -> None:
        self._parts = parts
        self._history = history
        self.calls = Calls(parts.methods, parts.telemetry)

    # --- stages

    async def status(self, group: str = "") -> models.Status:
        request = admin_pb2.GetStatusRequest(group=group)
        return _status(await self.calls.ask("GetStatus", request, admin_pb2.Status))

    async def stages(self, group: str = "") -> models.Stages:
        now = (await self.status(group)).stage
        return models.Stages(
            stage=now,
            next=next_of(now),
            stages=[
                models.StageRules(
                    name=stage.value,
                    authority=rules.authority.value,
                    mirrored=rules.mirrored,
                    shadowed=rules.shadowed,
                )
                for stage, rules in STAGES.items()
            ],
        )

    async def set_stage(self, asked: models.SetStage, who: str) -> models.StageAnswer:
        request = admin_pb2.SetStageRequest(
            stage=asked.stage,
            group=asked.group,
            timeout_seconds=asked.timeout_seconds,
            check=True,
            dry_run=asked.dry_run,
            force=asked.force,
            who=who,
            reason=asked.reason,
        )
        reply = await self.calls.ask(
            "SetStage", request, admin_pb2.Status, asked.timeout_seconds + MARGIN_SECONDS
        )
        return _stage_answer(reply, changed=not asked.dry_run)

    async def roll_back(self, asked: models.RollBack, who: str) -> models.StageAnswer:
        replies = {
            "GetStatus": admin_pb2.Status,
            "SetStage": admin_pb2.Status,
            "SetTraffic": admin_pb2.Status,
            "StopRamp": admin_pb2.ListRampsReply,
            "ListRamps": admin_pb2.ListRampsReply,
        }

        async def ask(name: str, request: Any, timeout: float) -> Any:
            return await self.calls.ask(name, request, replies[name], timeout)

        status = await roll_back(
            ask,
            who=who,
            reason=asked.reason,
            timeout=asked.timeout_seconds,
            group=asked.group,
            force=asked.force,
        )
        return _stage_answer(status, changed=True)

    async def stand(self) -> dict[str, Any]:
        """The status, and of each group its stage and what the next one's checks say; for the
        dashboard."""
        status = await self.status()
        return {
            "status": status.model_dump(mode="json"),
            "groups": [await self._group(each, status) for each in status.groups],
        }

    async def _group(self, group: models.GroupStatus, status: models.Status) -> dict[str, Any]:
        target = next_of(group.stage)
        shown: dict[str, Any] = group.model_dump() | {
            "next": target,
            "checks": [],
            "checks_unknown": "",
        }
        if status.backlog_unknown:
            shown["checks_unknown"] = status.backlog_unknown
        elif target is not None:
            asked = models.SetStage(stage=target, group=group.group, dry_run=True)
            try:
                answer = await self.set_stage(asked, "")
                shown["checks"] = [each.model_dump() for each in answer.checks]
            except CrossfadeError as error:
                shown["checks_unknown"] = str(error)
        return shown

    async def last_minute(self) -> dict[str, Any]:
        """By collection and store; as in the points of the plots."""
        return plain_reads(self._history.last_minute())

    async def keeping_up(self) -> dict[str, Any]:
        """How the mirror kept up in the last minute, and what comparing may still cost today:
        None where it has no budget."""
        found = self._history.keeping()
        left = self._parts.telemetry.read_gauge(BUDGET_LEFT)
        return {
            "count": found.count,
            "p50_ms": ms(found.p50),
            "p99_ms": ms(found.p99),
            "recopied": found.recopied,
            "budget_left": next(iter(left.values()), None),
        }

    # --- traffic

    async def traffic(self) -> models.TrafficList:
        return models.TrafficList(traffic=(await self.status()).traffic)

    async def set_traffic(self, asked: models.SetTraffic, who: str) -> models.TrafficAnswer:
        before = self._of((await self.status()).traffic, asked)
        checks = _checks(await self._parts.judge(asked.collection))
        if asked.dry_run:
            if asked.read_percent is None and asked.shadow_rate is None and not asked.reset:
                raise InvalidArgument("read_percent: it, shadow_rate or reset must be given")
            given = asked.model_dump(include={"read_percent", "shadow_rate"}, exclude_none=True)
            would_be = before.model_copy(update=given)
            return models.TrafficAnswer(changed=False, before=before, after=would_be, checks=checks)
        request = admin_pb2.SetTrafficRequest(
            collection=asked.collection,
            group=asked.group,
            read_percent=asked.read_percent,
            shadow_rate=asked.shadow_rate,
            reset=asked.reset,
            who=who,
            reason=asked.reason,
        )
        status = _status(await self.calls.ask("SetTraffic", request, admin_pb2.Status))
        return models.TrafficAnswer(
            changed=True,
            before=before,
            after=self._of(status.traffic, asked),
            checks=checks,
        )

    def _of(self, traffic: Iterable[models.Traffic], asked: models.SetTraffic) -> models.Traffic:
        """A collection's, or else the defaults that it has: those of its group."""
        group = asked.group or self._parts.controls.of(asked.collection).group.name
        held = {(each.collection, each.group): each for each in traffic}
        found = held.get((asked.collection, group), held.get(("", group)))
        if found is None:
            raise InvalidArgument("group: there is none of that name")
        return found.model_copy(update={"collection": asked.collection})

    # --- ramps

    async def ramps(self) -> models.Ramps:
        request = admin_pb2.ListRampsRequest()
        return _ramps(await self.calls.ask("ListRamps", request, admin_pb2.ListRampsReply))

    async def start_ramp(self, asked: models.StartRamp, who: str) -> models.Ramp:
        request = admin_pb2.StartRampRequest(
            **asked.model_dump(exclude_none=True, exclude={"who"}), who=who
        )
        return models.Ramp.model_validate(
            plain(await self.calls.ask("StartRamp", request, admin_pb2.Ramp))
        )

    async def stop_ramp(self, asked: models.StopRamp, who: str) -> models.Ramps:
        request = admin_pb2.StopRampRequest(collection=asked.collection, all=asked.all, who=who)
        return _ramps(await self.calls.ask("StopRamp", request, admin_pb2.ListRampsReply))

    # --- what is not in order

    async def mismatches(
        self, collection: str, field: str, since: datetime | None, limit: int
    ) -> models.Mismatches:
        request = admin_pb2.ListMismatchesRequest(collection=collection, field=field, limit=limit)
        if since is not None:
            request.since.FromDatetime(since.astimezone(UTC))
        reply = await self.calls.ask("ListMismatches", request, admin_pb2.ListMismatchesReply)
        return models.Mismatches.model_validate(plain(reply))

    async def explain(self, name: str) -> models.Explanation:
        request = admin_pb2.ExplainMismatchRequest(name=name)
        reply = await self.calls.ask(
            "ExplainMismatch", request, admin_pb2.Explanation, EXPLAIN_SECONDS
        )
        return models.Explanation.model_validate(plain(reply))

    async def dead_letters(self, collection: str, after: str, limit: int) -> models.DeadLetters:
        request = admin_pb2.ListDeadLettersRequest(collection=collection, after=after, limit=limit)
        reply = await self.calls.ask("ListDeadLetters", request, admin_pb2.ListDeadLettersReply)
        return models.DeadLetters.model_validate(plain(reply))

    async def retry_dead_letters(self, asked: models.RetryDeadLetters) -> models.Retried:
        request = admin_pb2.RetryDeadLettersRequest(**asked.model_dump())
        reply = await self.calls.ask("RetryDeadLetters", request, admin_pb2.RetryDeadLettersReply)
        return models.Retried.model_validate(plain(reply))

    async def drift(self, *, schema: bool) -> models.Drift:
        telemetry = self._parts.telemetry
        return models.Drift(
            pending=self._sum(PENDING),
            oldest_pending_seconds=over_groups(telemetry, OLDEST_PENDING, max),
            dead_letters=self._sum(DEAD_LETTERS),
            foreign=self._sum(FOREIGN),
            followed={name: n for (name,), n in sorted(telemetry.counts(FOLLOWED).items())},
            follower_lag_seconds=over_groups(telemetry, FOLLOWER_LAG, max),
            misfits=[
                models.Misfits(collection=collection, field=field, cause=str(cause), count=count)
                for (collection, field, cause), count in sorted(telemetry.counts(MISFITS).items())
            ],
            schema_differences=await self._parts.schema_drift() if schema else None,
        )

    def _sum(self, gauge: Gauge) -> int | None:
        value = over_groups(self._parts.telemetry, gauge, sum)
        return None if value is None else int(value)

    # --- jobs

    async def jobs(self, kind: str, limit: int) -> models.Jobs:
        request = jobs_pb2.ListJobsRequest(kind=kind, limit=limit)
        reply = await self.calls.ask("ListJobs", request, jobs_pb2.ListJobsReply)
        return models.Jobs.model_validate(plain(reply))

    async def control_job(
        self, job: int, action: str, asked: models.ControlJob, who: str
    ) -> models.Job:
        request = jobs_pb2.ControlJobRequest(
            id=job, action=ACTIONS[action], who=who, reason=asked.reason
        )
        reply = await self.calls.ask("ControlJob", request, jobs_pb2.Job)
        return models.Job.model_validate(plain(reply))

    async def validations(self, group: str, limit: int) -> models.Validations:
        found = await self._parts.validations(group or None, limit)
        return models.Validations(validations=list(map(_validation, found)))

    # --- what was

    async def audit(self, collection: str, limit: int) -> models.Audit:
        request = admin_pb2.ListAuditRequest(collection=collection, limit=limit)
        reply = await self.calls.ask("ListAudit", request, admin_pb2.ListAuditReply)
        return models.Audit.model_validate(plain(reply))

    async def latency(
        self, collection: str, operation: str, since_seconds: float, step_seconds: float
    ) -> models.Latency:
        request = admin_pb2.GetLatencyRequest(
            since_seconds=since_seconds,
            collection=collection,
            operation=operation,
            step_seconds=step_seconds,
        )
        reply = await self.calls.ask("GetLatency", request, admin_pb2.GetLatencyReply)
        return models.Latency.model_validate(plain(reply))

    def latency_history(self, collection: str) -> models.LatencyHistory:
        return models.LatencyHistory(
            collection=collection,
            interval_seconds=INTERVAL_SECONDS,
            points=[
                models.LatencyPoint(
                    at=datetime.fromtimestamp(point.at, UTC),
                    **{
                        store: _quantiles(calls) for store, calls in point.reads[collection].items()
                    },
                )
                for point in self._history.since(0)
                if collection in point.reads
            ],
        )

    async def config(self) -> models.Config:
        return models.Config(
            settings=self._parts.redacted(),
            problem=self._parts.settings_problem(),
            traffic=(await self.status()).traffic,
        )


def next_of(stage: str) -> models.StageName | None:
    """The stage after one; None: there is none."""
    stages = list(Stage)
    index = stages.index(Stage(stage)) + 1
    return stages[index].value if index < len(stages) else None


def _status(message: admin_pb2.Status) -> models.Status:
    return models.Status.model_validate(plain(message))


def _stage_answer(message: admin_pb2.Status, *, changed: bool) -> models.StageAnswer:
    checks = [models.Check.model_validate(plain(each)) for each in message.checks]
    return models.StageAnswer(
        changed=changed,
        passed=all(each.outcome == "pass" for each in checks),
        checks=checks,
        status=_status(message),
    )


def _checks(answers: Iterable[Answer]) -> list[models.Check]:
    return [
        models.Check(name=each.name, outcome=each.outcome.value, reason=each.reason)
        for each in answers
    ]


def _validation(found: Certified) -> models.Validation:
    summary, certificate = found.summary, found.summary.certificate
    return models.Validation(
        job=certificate.job,
        group=summary.group,
        mode=certificate.mode,
        collections=list(certificate.collections),
        equal=certificate.equal,
        ended_at=certificate.at,
        age_seconds=certificate.age,
        seconds=summary.seconds,
        certificate=not found.why_not,
        why_not=found.why_not,
        by_collection=[
            models.Compared(collection=name, **counts) for name, counts in summary.counts.items()
        ],
        breaches=summary.breaches,
        moving=summary.moving,
        dead_letters=summary.dead,
    )


def _ramps(message: admin_pb2.ListRampsReply) -> models.Ramps:
    return models.Ramps.model_validate(plain(message))


def _quantiles(calls: Counted) -> models.Quantiles:
    return models.Quantiles(
        count=calls.count,
        errors=calls.errors,
        p50_ms=ms(calls.p50),
        p95_ms=ms(calls.p95),
        p99_ms=ms(calls.p99),
    )
