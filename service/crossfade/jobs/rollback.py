"""The way back in one piece: Firestore decides about a group and answers all of its reads.

From live and ramp_down to stage shadow; then every read percent of the group becomes 0 and its
running ramps are stopped. PostgreSQL is still written, so that the way forward stays open.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from crossfade_api.v1 import admin_pb2

Ask = Callable[[str, Message, float], Awaitable[Any]]
"""A method of the admin service by its name, a request, and the seconds that it may take."""

READ_SECONDS = 15.0
MARGIN_SECONDS = 15.0
"""Over the time that a change of stage may take."""
BACK = ("off", "dual_write", "shadow")
"""Stages from which the authority need not change."""


async def roll_back(
    ask: Ask, *, who: str, reason: str, timeout: float, group: str = "", force: bool = False
) -> admin_pb2.Status:
    """`timeout`: seconds for which the change of authority may hold back writes. `force`:
    although PostgreSQL, which decides, does not answer; ramps and percents then stay as they
    are, and `Status.backlog_unknown` says so."""
    asked = admin_pb2.GetStatusRequest(group=group)
    status: admin_pb2.Status = await ask("GetStatus", asked, READ_SECONDS)
    if status.stage not in BACK:
        request = admin_pb2.SetStageRequest(
            stage="shadow",
            group=group,
            timeout_seconds=timeout,
            check=True,
            without_postgresql=force,
            who=who,
            reason=reason,
        )
        status = await ask("SetStage", request, timeout + MARGIN_SECONDS)
    if force and status.backlog_unknown:
        return status
    await _stop_ramps(ask, status, who)
    for each in [each for each in status.traffic if each.group == status.group]:
        zero = admin_pb2.SetTrafficRequest(
            collection=each.collection,
            group="" if each.collection else each.group,
            read_percent=0.0,
            who=who,
            reason=reason,
        )
        status = await ask("SetTraffic", zero, READ_SECONDS)
    return status


async def _stop_ramps(ask: Ask, status: admin_pb2.Status, who: str) -> None:
    """Those of the group that the status is of."""
    if len(status.groups) == 1:
        await ask("StopRamp", admin_pb2.StopRampRequest(all=True, who=who), READ_SECONDS)
        return
    groups = {name: each.group for each in status.groups for name in each.collections}
    found = await ask("ListRamps", admin_pb2.ListRampsRequest(), READ_SECONDS)
    for each in found.ramps:
        if groups.get(each.collection, status.groups[0].group) == status.group:
            request = admin_pb2.StopRampRequest(collection=each.collection, who=who)
            await ask("StopRamp", request, READ_SECONDS)
