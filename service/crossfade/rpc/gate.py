"""Who calls, whether they may, and how much: asked of every call, before its method is.

A sidecar without tokens and limits has no gate, and its calls pay nothing. Health and
reflection are served beside the wrapper and stay open: they tell nothing of documents.
"""

import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from crossfade import wire
from crossfade.access import ANYONE, EMULATOR, Access, Caller, Role, acting, check_role
from crossfade.call import Call
from crossfade.errors import (
    CrossfadeError,
    InfrastructureError,
    OutcomeUnknown,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from crossfade.limits import UNLIMITED, Allowance, Meter
from crossfade.rpc.methods import Needs
from crossfade.telemetry import DENIED, LIMITED, Telemetry

AUTHORIZATION = "authorization"
ALL = "all callers"
_NAMES = ("x509_subject_alternative_name", "x509_common_name")


class Gate:
    """`trust`: transports over which no token is needed: "unix", "loopback"."""

    def __init__(
        self,
        access: Access,
        limits: Allowance,
        telemetry: Telemetry,
        *,
        trust: Sequence[str] = (),
        certificates: bool = False,
    ) -> None:
        self._access = access
        self._telemetry = telemetry
        self._trust = frozenset(trust)
        self._certificates = certificates
        self._all = self._meter(limits, ALL) if limits != UNLIMITED else None
        self._named: dict[str, Meter] = {}
        self.under_way = 0

    def enter(self, name: str, needs: Needs, context: Any, call: Call) -> "Passage":
        """Lets a call in; `Passage.leave` counts it out. Raises Unauthenticated,
        PermissionDenied, ResourceExhausted."""
        try:
            caller = self._caller(context)
            check_role(caller, needs.role)
        except (Unauthenticated, PermissionDenied) as error:
            self._telemetry.count(DENIED, name, error.code)
            raise
        acting.set(caller)
        meters = [meter for meter in (self._all, self._meter_of(caller)) if meter is not None]
        return Passage(self, meters, needs, call)

    def _caller(self, context: Any) -> Caller:
        access = self._access
        if access.open:
            return ANYONE
        shown = None
        for key, value in context.invocation_metadata() or ():
            if key == AUTHORIZATION:
                shown = value
        if shown is not None and not shown.endswith(EMULATOR):
            return access.caller(shown)
        names: tuple[str, ...] = ()
        if self._certificates:
            found = context.auth_context()
            names = tuple(name.decode() for key in _NAMES for name in found.get(key, ()))
        return access.caller(shown, trust=self._trusts(context), certificates=names)

    def _trusts(self, context: Any) -> bool:
        if not self._trust:
            return False
        peer = context.peer()
        if peer.startswith("unix:"):
            return "unix" in self._trust
        return "loopback" in self._trust and peer.startswith(
            ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")
        )

    def _meter_of(self, caller: Caller) -> Meter | None:
        if caller.allowance == UNLIMITED:
            return None
        meter = self._named.get(caller.name)
        if meter is None:
            meter = self._named[caller.name] = self._meter(caller.allowance, f"token {caller.name}")
        elif meter.allowance != caller.allowance:
            meter.change(caller.allowance)
        return meter

    def _meter(self, allowance: Allowance, whose: str) -> Meter:
        return Meter(allowance, whose, refused=partial(self._refused, whose))

    def _refused(self, whose: str, limit: str) -> None:
        self._telemetry.count(LIMITED, limit, whose.removeprefix("token "))


class Passage:
    """One call on its way: what it uses of the limits that hold for it."""

    __slots__ = ("_broken", "_call", "_documents", "_gate", "_meters", "_needs", "_size", "_timed")

    def __init__(self, gate: Gate, meters: Sequence[Meter], needs: Needs, call: Call) -> None:
        self._gate = gate
        self._needs = needs
        self._call = call
        self._documents = 0
        self._size = 0
        self._timed: Meter | None = None
        self._broken: CrossfadeError | None = None
        self._meters: list[Meter] = []
        for meter in meters:
            try:
                meter.begin()
            except ResourceExhausted:
                self._end()
                raise
            self._meters.append(meter)
        gate.under_way += 1

    def asked(self, size: int) -> None:
        """The request has so many bytes, and its time begins. Raises ResourceExhausted."""
        for meter in self._meters:
            meter.check_message(size)
            seconds = meter.allowance.seconds
            if seconds is not None:
                ends = time.monotonic() + seconds
                if ends < self._call.deadline:
                    self._call.deadline = ends
                    self._timed = meter

    async def requests(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The requests of a stream, each of which counts as a call. They end with the first that
        is refused, and `check` raises what refused it: raised here it would be lost in the
        tasks that read them."""
        first = True
        async for data in requests:
            try:
                for meter in self._meters:
                    if not first:
                        meter.count()
                    meter.check_message(len(data))
            except ResourceExhausted as error:
                self._broken = error
                return
            first = False
            yield data

    def check(self) -> None:
        """Raises what refused a request of the stream."""
        if self._broken is not None:
            raise self._broken

    def answers(self, frame: bytes) -> None:
        """A part of the answer. Raises ResourceExhausted when there is too much of it."""
        if not self._meters:
            return
        self._size += len(frame)
        if self._needs.documents and any(m.allowance.documents for m in self._meters):
            self._documents += count_documents(frame)
        for meter in self._meters:
            meter.check_result(self._documents, self._size)

    def judged(self, error: Exception) -> Exception:
        """What the caller is told: of a deadline that a limit set, the limit. A write keeps the
        error it has: it may have been done, and nobody expects that of a refusal."""
        timed = self._timed
        if (
            timed is None
            or not isinstance(error, InfrastructureError | OutcomeUnknown)
            or time.monotonic() < self._call.deadline
        ):
            return error
        refusal = timed.timed_out()
        return refusal if self._needs.role is Role.READER else error

    def leave(self) -> None:
        self._gate.under_way -= 1
        self._end()

    def _end(self) -> None:
        for meter in self._meters:
            meter.end()


def count_documents(frame: bytes) -> int:
    """The documents in a message of an answer."""
    return sum(number == 1 and isinstance(value, bytes) for number, value in wire.scan(frame))
