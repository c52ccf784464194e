"""The guard, at its own pace: what fails takes the reads away from PostgreSQL within 10 s."""

import asyncio
import time

import pytest

from crossfade.telemetry import RAMP_MOVES
from crossfade_api.v1 import admin_pb2
from tests.ramped import audited, percent, ramping, trouble
from tests.sidecar import Running, eventually

PROMISED = 10.0
SLOW = 2.0
# Far from what a busy machine does to the one store or the other. `min_samples` is the default, so
# that nothing is said of latency while connections are opened for the first time.
GUARD = {"guard": True, "max_mismatch": 0.05, "max_error_delta": 0.2, "max_p99_ratio": 12}
CHECKS = {"wrong": "verdicts", "errors": "error rates", "latency": "p99 ratio"}


def hide(stack: Running) -> None:
    """Good reads as many as a busy minute has: in the window they outnumber what comes after."""
    for store, seconds in (("firestore", 0.05), ("postgresql", 0.03)):
        for _ in range(10_000):
            stack.telemetry.record_store("notes", "get", store, "answered", seconds)


@pytest.mark.parametrize("kind", ["wrong", "errors", "latency"])
async def test_the_guard_takes_reads_away_within_10_s_of_a_breach(
    postgres_database, monkeypatch, kind
):
    # As many callers as a small service has; they do not keep this process's loop busy.
    async with ramping(await postgres_database(), readers=12, pause=0.05, ramp=GUARD) as stack:
        await stack.admin.SetTraffic(
            # The authority answers a part of the reads, so that there is something to compare with.
            admin_pb2.SetTrafficRequest(collection="notes", read_percent=60)
        )

        async def compared() -> bool:
            pairs = stack.telemetry.paired.comparisons(operation="get")
            return sum(each.count for each in pairs) >= 60

        await eventually(compared, 20)
        await asyncio.sleep(1.2)  # so that the guard has looked
        hide(stack)
        await asyncio.sleep(1.2)  # and again, and found all well
        assert percent(stack) == 60
        with monkeypatch.context() as patch:
            began = time.monotonic()
            if kind == "wrong":
                await stack.sql.execute("""update crossfade.documents set fields = '{"n": -1}'""")
            else:
                trouble(stack, patch, kind, SLOW)

            async def taken() -> bool:
                return percent(stack) == 0

            await eventually(taken, 60)
            assert time.monotonic() - began <= PROMISED

        async def told() -> bool:
            return bool(await audited(stack, "guard"))

        await eventually(told)
        (entry,) = await audited(stack, "guard")
        assert (entry.before, entry.after, entry.who) == ("60 %", "0 %", "guard")
        failed = {each.name for each in entry.checks if each.outcome == "fail"}
        assert failed == {CHECKS[kind]}
        assert CHECKS[kind] in entry.reason
        assert stack.telemetry.counts(RAMP_MOVES)["notes", "guard"] == 1
