"""The daily budget of Firestore reads."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.budget import PARTS, Budget
from crossfade.errors import Unavailable

DAY = 86_400.0


class Kept:
    """As the table does it."""

    def __init__(self) -> None:
        self.given: dict[date, int] = {}
        self.away = False

    async def reserve(self, day, reads, daily):
        if self.away:
            raise Unavailable("away")
        before = self.given.get(day, 0)
        after = min(max(daily, before), before + reads)
        self.given[day] = after
        return after - before, after


async def test_without_a_limit_everything_is_affordable():
    budget = Budget(None, None)
    budget.spend(10**9)
    await budget.refill()
    assert (budget.afford(), budget.left) == (True, None)


async def test_a_budget_is_taken_in_parts_and_ends():
    kept = Kept()
    budget = Budget(1_000, kept, clock=lambda: 0.0)
    assert not budget.afford()  # nothing was taken yet
    spent = 0
    for _ in range(1_000):
        await budget.refill()
        if budget.afford():
            budget.spend(1)
            spent += 1
    assert spent == 1_000
    assert (budget.afford(), budget.left) == (False, 0)
    assert kept.given == {date(1970, 1, 1): 1_000}


async def test_several_sidecars_share_one_budget():
    kept = Kept()
    budgets = [Budget(1_000, kept, clock=lambda: 0.0) for _ in range(3)]
    spent = 0
    for turn in range(3_000):
        budget = budgets[turn % 3]
        await budget.refill()
        if budget.afford():
            budget.spend(1)
            spent += 1
    assert spent == 1_000


async def test_the_next_day_begins_with_a_budget_of_its_own():
    now = 0.0
    budget = Budget(100, Kept(), clock=lambda: now)
    for _ in range(300):
        await budget.refill()
        budget.spend(1)
    assert not budget.afford()
    now = DAY
    assert not budget.afford()
    await budget.refill()
    assert (budget.afford(), budget.left) == (True, 100)


async def test_what_was_left_of_yesterday_is_not_spent_today():
    now = 0.0
    kept = Kept()
    budget = Budget(1_000, kept, clock=lambda: now)
    await budget.refill()
    now = DAY
    assert not budget.afford()


async def test_while_it_cannot_be_asked_what_is_held_is_spent_and_no_more():
    kept = Kept()
    budget = Budget(10_000, kept, clock=lambda: 0.0)
    await budget.refill()
    kept.away = True
    held = 0
    while budget.afford():
        budget.spend(1)
        held += 1
    assert held == 10_000 // PARTS
    with pytest.raises(Unavailable):
        await budget.refill()
    kept.away = False
    await budget.refill()
    assert budget.afford()


@given(st.integers(1, 5_000), st.lists(st.integers(1, 40), max_size=100))
async def test_no_more_is_spent_than_the_budget_and_what_was_under_way(daily, costs):
    budget = Budget(daily, Kept(), clock=lambda: 0.0)
    spent = 0
    for cost in costs * 3:
        await budget.refill()
        if budget.afford():
            budget.spend(cost)
            spent += cost
    assert spent <= daily + 40
