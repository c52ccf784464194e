"""Work that nobody waits for holds the event loop for short turns, and only when it is idle."""

import asyncio

import pytest

from crossfade import turns
from crossfade.turns import IDLE_SECONDS, MOST_RESTS, REST_SECONDS, TURN_SECONDS, Turns


class Clock:
    """`busy`: seconds that others take for a turn of the loop, so many of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.busy: list[float] = []
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(seconds)
        elif self.busy:
            self.now += self.busy.pop(0)
        self.now += seconds


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


@pytest.mark.parametrize("busy", [[IDLE_SECONDS], [0.0, IDLE_SECONDS], [0.0, 0.0, IDLE_SECONDS]])
async def test_it_waits_until_nothing_else_wants_the_loop(clock, busy):
    clock.busy = list(busy)
    working = Turns()
    clock.now += TURN_SECONDS
    await working.over()
    assert len(clock.slept) == (2 if len(busy) <= 2 else 1)


async def test_while_the_loop_is_busy_it_rests_for_long_but_not_for_ever(clock):
    clock.busy = [IDLE_SECONDS] * 1000
    await Turns().rest()
    assert clock.slept == [REST_SECONDS] * MOST_RESTS


async def test_a_rest_counts_as_no_work(clock):
    working = Turns()
    clock.now += TURN_SECONDS
    await working.over()
    await working.over()
    assert len(clock.slept) == 1


async def test_answers_are_made_before_work_goes_on():
    """On the loop itself: whoever has something to do all the time keeps the work waiting, for
    as long as it may be."""
    pieces = 0
    done = False

    async def answers() -> None:
        while not done:
            ends = asyncio.get_running_loop().time() + 2 * IDLE_SECONDS
            while asyncio.get_running_loop().time() < ends:
                pass
            await asyncio.sleep(0)

    async def work() -> None:
        nonlocal pieces
        working = Turns()
        while True:
            await working.rest()
            pieces += 1

    answering, working = asyncio.create_task(answers()), asyncio.create_task(work())
    await asyncio.sleep(MOST_RESTS * REST_SECONDS * 5)
    busy, pieces = pieces, 0
    done = True
    await answering
    await asyncio.sleep(MOST_RESTS * REST_SECONDS * 5)
    working.cancel()
    assert busy <= 5
    assert pieces > busy
