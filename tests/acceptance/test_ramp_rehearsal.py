"""The rehearsals of a whole ramp, in little: `make rehearse-ramp` makes each of 100,000 reads."""

from dataclasses import replace
from typing import Any

import pytest

from crossfade.plan import Stage
from crossfade.stores.postgres.store import PostgresStore
from loadtests.ramp import CAUGHT_BY, SPOIL, Options, Rehearsal
from loadtests.troubled import troubled
from tests.sidecar import running

SLOW = 2.0
OPTIONS = Options(
    reads=2_000,
    steps=(10, 100),
    bake=0.5,
    fault_at=10,
    slow=SLOW,
    minutes=1.5,
    max_mismatch=0.02,
    max_error_delta=0.1,
    # Everything is in this process, and busy: what it says of latencies is to be taken coarsely.
    max_p99_ratio=500,
    min_samples=100,
)
FAULTS: dict[str, dict[str, Any]] = {
    "wrong": {"reads": 5_000},
    "errors": {},
    "latency": {"max_p99_ratio": 12},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("crossfade.jobs.ramp.PERIOD_SECONDS", 0.1)
    monkeypatch.setattr("crossfade.rpc.ramps.SETTLE_SECONDS", 0.3)
    monkeypatch.setattr("crossfade.shadow.ALONE_PER_SECOND", 1_000.0)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_ramp_goes_back_from_a_mirror_in_trouble_and_then_to_its_end(
    postgres_database, monkeypatch, fault
):
    if fault == "latency":
        # As long as a read takes that is begun in trouble.
        monkeypatch.setattr("crossfade.rpc.ramps.SETTLE_SECONDS", SLOW + 0.5)
    options = replace(OPTIONS, fault=fault, **FAULTS[fault])
    shadow = {"rate": 100_000.0, "queue": 10_000, "lag": 60.0}
    url = await postgres_database()
    async with running(url, Stage.SHADOW, shadow_rate=1.0, shadow=shadow) as stack:
        await stack.copy()
        said = ""
        get = troubled(PostgresStore.get, lambda: said)
        monkeypatch.setattr(PostgresStore, "get", get)

        async def inject(kind: str) -> None:
            nonlocal said
            if kind == "wrong":
                await stack.sql.execute(SPOIL)
            else:
                said = f"latency {SLOW}" if kind == "latency" else kind

        report = await Rehearsal(stack.client, stack.admin, inject, options).run(print)
    assert report.ok, report
    assert sum(report.reads.values()) >= options.reads
    # Back to 0 at once, and through every step again, by itself.
    assert report.setbacks >= 1
    assert any(f"10 % -> 0 %: {CAUGHT_BY[fault]}: " in move for move in report.moves)
    assert report.moves[-1].startswith("100 % -> 100 %: done: ")
    assert report.reads.keys() >= {0, 10, 100}
    assert (report.verdicts.get("wrong", 0) > 0) == (report.spoilt > 0) == (fault == "wrong")
    assert (report.slow > 0) == (fault == "latency")
    assert report.verdicts["match"] > options.reads / 4
