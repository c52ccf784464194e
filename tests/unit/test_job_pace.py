"""Rates, pages by time, and how a job gives way to a store that has too much to do."""

import asyncio

import pytest

from crossfade.jobs.pace import (
    BURST_SECONDS,
    LEAST_PAGE,
    MOST_PAUSE,
    READING,
    TARGET_SECONDS,
    PageSize,
    Pressure,
    Rate,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_kept_over_many_pages_and_saves_nothing_up():
    clock = Clock()
    rate = Rate(100, clock)
    for _ in range(10):
        clock.now += rate.delay()
        rate.spend(50)
    assert clock.now + rate.delay() == pytest.approx(105)
    clock.now += 60
    assert rate.delay() == 0
    rate.spend(50)
    assert rate.delay() == pytest.approx(0.5)


def test_what_was_not_read_after_all_is_there_for_others():
    clock = Clock()
    rate = Rate(100, clock)
    rate.spend(50)
    rate.give_back(20)
    assert rate.delay() == pytest.approx(0.3)


def test_without_a_rate_nothing_waits():
    rate = Rate()
    rate.give_back(5)
    rate.spend(10**9)
    assert rate.delay() == 0


@pytest.mark.parametrize(("reading", "doing"), [(0, 1), (READING, 1), (READING, 0.1), (1, 1)])
def test_a_page_comes_to_take_the_time_that_it_should(reading, doing):
    size = PageSize()
    each = 0.0025
    for _ in range(30):
        documents = size.next(None)
        size.took(documents, reading * documents * each, doing * documents * each)
    assert size.next(None) * each == pytest.approx(TARGET_SECONDS, rel=0.2)
    for _ in range(30):
        size.took(size.next(None), 0.001, 10)
    assert size.next(None) == LEAST_PAGE
    size.took(3, 0.001, 0.001)  # the last of a partition
    assert size.next(None) == LEAST_PAGE


def test_a_page_of_a_slow_copy_is_no_burst():
    assert PageSize().next(100.0) <= 100 * BURST_SECONDS
    assert PageSize().next(0.5) == 1


async def test_a_store_that_refuses_is_asked_less_and_more_again_when_it_answers():
    pressure = Pressure(8, clock=Clock())
    for expected in (4, 2, 1, 1):
        pressure.refused()
        assert pressure.allowed == expected
    for _ in range(40):
        pressure.answered(LEAST_PAGE - 1, 0.1)
    assert pressure.allowed == 8


async def test_pauses_grow_while_even_one_page_is_refused():
    clock = Clock()
    pressure = Pressure(1, pause=0.5, clock=clock)
    pauses = []
    for _ in range(9):
        pressure.refused()
        pauses.append(pressure.delay())
        clock.now += pressure.delay()
    assert pauses[:3] == [0.5, 1, 2]
    assert pauses[-1] == MOST_PAUSE
    pressure.answered(100, 0.1)
    pressure.refused()
    assert pressure.delay() == 0.5


async def test_a_store_that_becomes_slow_is_asked_less():
    clock = Clock()
    pressure = Pressure(8, clock=clock)
    for _ in range(20):
        pressure.answered(100, 0.1)
    assert pressure.allowed == 8
    for _ in range(20):
        clock.now += 1.5
        pressure.answered(100, 2.0)
    assert pressure.allowed < 5


async def test_no_more_pages_are_under_way_than_allowed():
    pressure = Pressure(8, clock=Clock())
    pressure.refused()
    pressure.refused()
    under_way, most = 0, 0

    async def page() -> None:
        nonlocal under_way, most
        async with pressure.turn():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

    await asyncio.gather(*(page() for _ in range(20)))
    assert most == 2
