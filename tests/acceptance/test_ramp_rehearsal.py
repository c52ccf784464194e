"""The rehearsal of a whole ramp, in little: `make rehearse-ramp` makes it of 100,000 reads."""

import pytest

from crossfade.plan import Stage
from loadtests.ramp import Options, Rehearsal
from tests.sidecar import running

READS = 5_000
OPTIONS = Options(
    reads=READS,
    steps=(10, 100),
    bake=0.5,
    spoil_at=10,
    minutes=1.5,
    max_mismatch=0.02,
    max_error_delta=0.1,
    # Everything is in this process: what it says of latencies is of no use to anybody.
    max_p99_ratio=500,
    min_samples=100,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("crossfade.jobs.ramp.PERIOD_SECONDS", 0.1)
    monkeypatch.setattr("crossfade.rpc.ramps.SETTLE_SECONDS", 0.3)
    monkeypatch.setattr("crossfade.shadow.ALONE_PER_SECOND", 1_000.0)


async def test_a_ramp_goes_back_from_a_spoilt_mirror_and_then_to_its_end(postgres_database):
    shadow = {"rate": 100_000.0, "queue": 10_000, "lag": 60.0}
    url = await postgres_database()
    async with running(url, Stage.SHADOW, shadow_rate=1.0, shadow=shadow) as stack:
        await stack.copy()
        rehearsal = Rehearsal(stack.client, stack.admin, stack.sql.execute, OPTIONS)
        report = await rehearsal.run(print)
    assert report.ok, report
    assert sum(report.reads.values()) >= READS
    # Back to 0 at once, and through every step again, by itself.
    assert report.setbacks >= 1
    assert any("10 % -> 0 %: verdicts: " in move for move in report.moves)
    assert report.moves[-1].startswith("100 % -> 100 %: done: ")
    assert report.reads.keys() >= {0, 10, 100}
    assert report.verdicts["wrong"] > 0
    assert report.verdicts["match"] > READS / 4
