"""Hostile requests to every RPC: each is answered in time with a status that says why, by a
server that lives on, says nothing on stderr and grows no further than its bound.

`CROSSFADE_FUZZ_REQUESTS` is how many at least, `CROSSFADE_FUZZ_SEED` which ones: the same
two figures hold the same conversations again. What fails is made small and printed with
the bytes that were sent.
"""

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.holding import Holding
from tests.fuzz.mutations import Case, cases, single_cases
from tests.fuzz.server import MEBIBYTE

REQUESTS = int(os.environ.get("CROSSFADE_FUZZ_REQUESTS", "3000"))
SEED = int(os.environ.get("CROSSFADE_FUZZ_SEED", "1"))
ALL_FROM = 100_000
SIDE_BY_SIDE = 12
WARM = 0.25
"""The part of the requests after which the server's memory is taken as its start."""
GROWTH = 192 * MEBIBYTE
"""What documents that the requests leave behind may take, with old versions and caches that
the server bounds: some of the documents are a megabyte."""


@pytest.fixture
def holding(tmp_path: Any) -> Iterator[Holding]:
    made = Holding(tmp_path)
    yield made
    made.close()


@pytest.mark.timeout(180 + REQUESTS // 20)
def test_hostile_requests_are_answered_and_the_server_goes_on(holding: Any) -> None:
    print(f"\nCROSSFADE_FUZZ_SEED={SEED} CROSSFADE_FUZZ_REQUESTS={REQUESTS}", flush=True)

    # Only generated here: `Holding` knows better how to make a failure small.
    @seed(SEED)
    @settings(
        max_examples=-(-REQUESTS // SIDE_BY_SIDE),
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(cases(), min_size=SIDE_BY_SIDE, max_size=SIDE_BY_SIDE))
    def hold(held: list[Case]) -> None:
        holding.hold(held)
        if not holding.warm and holding.requests > REQUESTS * WARM:
            holding.warm = holding.resident

    hold()
    judge(holding, REQUESTS)


@pytest.mark.timeout(180 + REQUESTS // 20)
def test_every_hostile_content_in_every_field(holding: Any) -> None:
    """One after the other, as many as there is time for: all of them from 100,000 requests on."""
    every = single_cases()
    random.Random(SEED).shuffle(every)
    some = every[: REQUESTS // 3] if REQUESTS < ALL_FROM else every
    print(f"\n{len(some)} of {len(every)} single changes", flush=True)
    for start in range(0, len(some), SIDE_BY_SIDE):
        holding.hold(some[start : start + SIDE_BY_SIDE])
        if not holding.warm and start > len(some) * WARM:
            holding.warm = holding.resident
    judge(holding, len(some))


def judge(holding: Holding, least: int) -> None:
    growth = holding.resident - holding.warm
    print(f"{holding.requests} requests: {dict(sorted(holding.statuses.items()))}")
    print(f"{holding.warm / MEBIBYTE:.0f} MiB when warm, {growth / MEBIBYTE:+.0f} MiB since")
    assert not holding.failures, "\n\n".join(holding.failures)
    assert holding.requests >= least
    assert growth < GROWTH
