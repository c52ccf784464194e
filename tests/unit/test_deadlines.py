"""One timer for many calls: each ends at its own deadline, as under asyncio.timeout."""

import asyncio
from time import monotonic

import pytest

from crossfade.stores.postgres.deadlines import Deadlines


async def call(deadlines: Deadlines, seconds: float, lasts: float) -> str:
    """What a lane does with a statement."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    deadlines.start(task, seconds)
    try:
        await asyncio.sleep(lasts)
    except asyncio.CancelledError:
        if deadlines.stop(task) and task.uncancel() <= before:
            return "expired"
        raise
    assert not deadlines.stop(task)
    return "done"


async def test_each_call_ends_at_its_own_deadline():
    deadlines = Deadlines()
    begun = monotonic()
    outcomes = tuple(
        await asyncio.gather(
            call(deadlines, 5.0, 0.02),
            call(deadlines, 0.15, 9.0),
            call(deadlines, 0.05, 9.0),
            call(deadlines, 0.1, 0.01),
            call(deadlines, 0.0, 9.0),
            call(deadlines, -1.0, 9.0),
        )
    )
    assert outcomes == ("done", "expired", "expired", "done", "expired", "expired")
    assert 0.15 <= monotonic() - begun < 2.0


async def test_one_timer_serves_calls_that_come_later():
    deadlines = Deadlines()
    for _ in range(3):
        assert await call(deadlines, 0.03, 0.0) == "done"
    assert await call(deadlines, 5.0, 0.1) == "done"  # the timer of the first three goes off
    assert await call(deadlines, 0.03, 9.0) == "expired"


async def test_a_task_that_expired_can_go_on():
    deadlines = Deadlines()

    async def twice() -> list[str]:
        return [await call(deadlines, 0.02, 9.0), await call(deadlines, 5.0, 0.01)]

    task = asyncio.create_task(twice())
    assert await task == ["expired", "done"]
    assert task.cancelling() == 0


async def test_a_cancellation_from_outside_is_not_a_deadline():
    deadlines = Deadlines()
    task = asyncio.create_task(call(deadlines, 5.0, 9.0))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
