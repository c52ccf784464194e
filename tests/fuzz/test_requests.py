"""Hostile requests to every RPC: each is answered in time with a status that says why, by a
server that lives on, says nothing on stderr and grows no further than its bound.

`CROSSFADE_FUZZ_REQUESTS` is how many at least, `CROSSFADE_FUZZ_SEED` which ones: the same
two figures hold the same conversations again. What fails is made small and printed with
the bytes that were sent.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.holding import Holding
from tests.fuzz.mutations import Case, cases
from tests.fuzz.server import MEBIBYTE

REQUESTS = int(os.environ.get("CROSSFADE_FUZZ_REQUESTS", "3000"))
SEED = int(os.environ.get("CROSSFADE_FUZZ_SEED", "1"))
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
    warm = 0

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
        nonlocal warm
        holding.hold(held)
        if holding.requests <= REQUESTS * WARM or not warm:
            warm = holding.resident

    hold()
    growth = holding.resident - warm
    print(f"{holding.requests} requests: {dict(sorted(holding.statuses.items()))}")
    print(f"{warm / MEBIBYTE:.0f} MiB when warm, {growth / MEBIBYTE:+.0f} MiB since")
    assert not holding.failures, "\n\n".join(holding.failures)
    assert holding.requests >= REQUESTS
    assert growth < GROWTH
