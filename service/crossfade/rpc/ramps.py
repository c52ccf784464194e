"""crossfade.v1.Admin: ramps, and the audit trail."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import grpc

from crossfade import wire
from crossfade.access import signed
from crossfade.call import Call
from crossfade.document import to_micros
from crossfade.errors import FailedPrecondition, InvalidArgument
from crossfade.figures import EVERY, Tally, figures
from crossfade.jobs.ramp import Ramping
from crossfade.ramp import Answer, Limits, Plan, judge
from crossfade.rpc.server import Unary, Wrapper, parse
from crossfade.stores.postgres.audit import Audit
from crossfade.stores.postgres.ramps import Ramp, Ramps
from crossfade_api.v1 import admin_pb2

SERVICE = "crossfade.v1.Admin"
MAX_LIMIT, DEFAULT_LIMIT = 1_000, 100
SETTLE_SECONDS = Plan().settle


class RampMethods:
    """The methods, from request bytes to reply bytes. `check_collection` refuses a name that
    nothing bears. Without PostgreSQL there are none of these."""

    def __init__(
        self,
        ramping: Ramping | None,
        ramps: Ramps | None,
        audit: Audit | None,
        limits: Limits,
        check_collection: Callable[[str], Awaitable[None]],
    ) -> None:
        self._ramping = ramping
        self._ramps = ramps
        self._audit = audit
        self._limits = limits
        self._check_collection = check_collection

    async def start(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.StartRampRequest, data)
        if self._ramping is None or self._ramps is None:
            raise _without()
        if request.collection:
            await self._check_collection(request.collection)
        plan = self._plan(request)
        await self._ramping.begin(request.collection, plan, signed(request.who))
        found = [each for each in await self._shown() if each.collection == request.collection]
        return found[0].SerializeToString()

    def _plan(self, request: admin_pb2.StartRampRequest) -> Plan:
        known = {each.name for each in fields(Limits)}
        given = {field.name: value for field, value in request.ListFields() if field.name in known}
        for name, value in given.items():
            if not value >= 0:
                raise InvalidArgument(f"{name}: it is not negative")
        limits = replace(self._limits, **given)
        default = Plan()
        try:
            return Plan(
                tuple(request.steps) or default.steps,
                request.bake_seconds or default.bake,
                limits=limits,
                settle=SETTLE_SECONDS,
            )
        except ValueError as error:
            raise InvalidArgument(str(error)) from None

    async def stop(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.StopRampRequest, data)
        if self._ramps is None:
            raise _without()
        collection = None if request.all else request.collection
        await self._ramps.stop(collection, signed(request.who))
        return admin_pb2.ListRampsReply(ramps=await self._shown()).SerializeToString()

    async def list_ramps(self, data: bytes, _: Call) -> bytes:
        parse(admin_pb2.ListRampsRequest, data)
        return admin_pb2.ListRampsReply(ramps=await self._shown()).SerializeToString()

    async def _shown(self) -> list[admin_pb2.Ramp]:
        if self._ramps is None:
            raise _without()
        sums = await self._ramps.sums()
        return [
            _ramp(each, sums.get(each.collection or EVERY, Tally()))
            for each in await self._ramps.all()
        ]

    async def judged(self, collection: str) -> tuple[Answer, ...]:
        """What the figures of a collection ("": of all) say, since the sidecars' start."""
        if self._ramps is None:
            raise _without()
        sums = await self._ramps.sums()
        return judge(figures(sums.get(collection or EVERY, Tally()), Tally()), self._limits)

    async def list_audit(self, data: bytes, _: Call) -> bytes:
        request = parse(admin_pb2.ListAuditRequest, data)
        limit = request.limit or DEFAULT_LIMIT
        if not 0 < limit <= MAX_LIMIT:
            raise InvalidArgument(f"limit: {limit} is outside 1..{MAX_LIMIT}")
        if self._audit is None:
            raise _without()
        reply = admin_pb2.ListAuditReply()
        for at, change in await self._audit.list(request.collection or None, limit):
            entry = reply.entries.add(
                who=change.who,
                action=change.action,
                collection=change.collection,
                before=change.before,
                after=change.after,
                checks=answers(change.checks),
                reason=change.reason,
            )
            wire.encode_time(to_micros(at), entry.at)
        return reply.SerializeToString()


def unary(ramps: RampMethods) -> dict[str, Unary]:
    return {
        "StartRamp": ramps.start,
        "StopRamp": ramps.stop,
        "ListRamps": ramps.list_ramps,
        "ListAudit": ramps.list_audit,
    }


def methods(ramps: RampMethods, wrap: Wrapper) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
    return {name: wrap.unary(f"{SERVICE}/{name}", method) for name, method in unary(ramps).items()}


def answers(given: Iterable[Answer]) -> list[admin_pb2.CheckAnswer]:
    return [
        admin_pb2.CheckAnswer(name=each.name, outcome=each.outcome.value, reason=each.reason)
        for each in given
    ]


def _ramp(ramp: Ramp, now: Tally) -> admin_pb2.Ramp:
    shown = admin_pb2.Ramp(
        collection=ramp.collection,
        status=ramp.state.status.value,
        percent=ramp.state.percent(ramp.plan),
        steps=ramp.plan.steps,
        bake_seconds=ramp.plan.bake,
        setbacks=ramp.state.setbacks,
        reason=ramp.reason,
        who=ramp.who,
        checks=answers(judge(figures(now, ramp.baseline), ramp.plan.limits)),
    )
    wire.encode_time(round(ramp.state.since * 1e6), shown.since)
    return shown


def _without() -> FailedPrecondition:
    return FailedPrecondition("this sidecar runs without PostgreSQL, which keeps ramps and audit")
