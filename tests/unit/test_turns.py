"""Work that nobody waits for holds the event loop for short turns and rests between them."""

import asyncio

import pytest

from crossfade import turns
from crossfade.turns import BUSY_SECONDS, MOST_RESTS, REST_SECONDS, TURN_SECONDS, Turns


class Clock:
    """`late`: seconds by which every sleep is too long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.late = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.late


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(turns, "perf_counter", clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    return clock


async def test_work_rests_after_each_turn_and_not_before(clock):
    working = Turns()
    for _ in range(40):
        await working.over()
        clock.now += TURN_SECONDS / 4
    # Four pieces are a turn; the last one is not followed by anything.
    assert clock.slept == [REST_SECONDS] * 9


async def test_while_the_loop_is_busy_it_rests_for_longer_but_not_for_ever(clock):
    clock.late = BUSY_SECONDS
    await Turns().rest()
    assert clock.slept == [REST_SECONDS] * MOST_RESTS


async def test_a_rest_counts_as_no_work(clock):
    working = Turns()
    clock.now += TURN_SECONDS
    await working.over()
    await working.over()
    assert len(clock.slept) == 1
