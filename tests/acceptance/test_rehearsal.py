"""The rehearsal finds nothing in the code as it is, and finds each law that is broken."""

import asyncio
from random import Random

import pytest

from crossfade import migrator
from crossfade.errors import CrossfadeError
from crossfade.plan import StoreName
from crossfade.rehearse import RehearsalOptions, Report, rehearse
from crossfade.snapshot import Snapshot
from crossfade.stores.postgres.mirror import Mirror

pytestmark = pytest.mark.timeout(180)
SHORT = RehearsalOptions(seconds=0.5, workers=8, tasks=30)


async def rehearsed(seed: int = 1) -> Report:
    return await rehearse(RehearsalOptions(SHORT.seconds, SHORT.workers, SHORT.tasks, seed))


async def test_the_rehearsal_finds_nothing():
    report = await rehearsed()
    assert report.ok, report.notes
    assert (report.lost, report.wrong, report.missing, report.extra, report.stale) == (0,) * 5
    assert report.documents > 150
    names = [step.name for step in report.steps]
    assert names[0] == "off"
    assert names[-1] == "complete"
    by_name = {step.name: step for step in report.steps}
    # Both stores really answered, and comparisons really were made.
    assert by_name["shadow"].reads.keys() == {"firestore"}
    assert by_name["shadow 50 %"].reads.keys() == {"firestore", "postgresql"}
    # (a step begins while the former stage still stands)
    assert by_name["live again"].reads["postgresql"] > by_name["live again"].reads.get(
        "firestore", 0
    )
    assert all(step.writes for step in report.steps if step.name != "compare")
    assert sum(step.verdicts.get("match", 0) for step in report.steps) > 100


@pytest.mark.parametrize("guarded", [True, False])
async def test_puts_out_of_order_are_harmless_only_because_of_the_version_guard(
    monkeypatch, guarded
):
    real, random = Mirror.put, Random(1)

    async def put(self, images, *, epoch, timeout, **owner):
        await asyncio.sleep(random.random() * 0.4)  # the later one may come first
        if not guarded:
            await self._lanes.execute(
                "update crossfade.versions set epoch = 0 where path = any($1::text[])",
                [image.path for image in images],
                timeout=timeout,
            )
        return await real(self, images, epoch=epoch, timeout=timeout, **owner)

    monkeypatch.setattr(Mirror, "put", put)
    report = await rehearsed()
    assert report.ok is guarded, report.notes


async def test_without_the_pending_rule_it_fails(monkeypatch):
    """The mirror answers whatever is pending, which is so for long enough to be met."""
    real, random = Mirror.put, Random(1)

    async def put(self, images, *, epoch, timeout, **owner):
        await asyncio.sleep(random.random() * 0.4)
        return await real(self, images, epoch=epoch, timeout=timeout, **owner)

    monkeypatch.setattr(Mirror, "put", put)
    monkeypatch.setattr(Snapshot, "vouches", Snapshot.current)
    report = await rehearsed()
    assert not report.ok
    assert report.stale + report.extra + report.lost > 0


async def test_with_a_fallback_on_not_found_it_fails(monkeypatch):
    """What the answering store does not have is looked up in the other: deletes come back."""
    real = migrator.Migrator._get

    async def get(self, store, role, paths, snapshot, call):
        reading = await real(self, store, role, paths, snapshot, call)
        if role != "answered" or all(stored.data for stored in reading.documents):
            return reading
        other = StoreName(store).other
        try:
            return await real(self, other, role, paths, snapshot, call)
        except CrossfadeError:
            return reading

    monkeypatch.setattr(migrator.Migrator, "_get", get)
    report = await rehearsed()
    assert not report.ok
    assert report.extra > 0
