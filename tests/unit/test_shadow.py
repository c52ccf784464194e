"""The bounds of comparing: what is dropped, why, and that nobody waits for it."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
import structlog

from crossfade.comparing import Comparer
from crossfade.diff import diff
from crossfade.document import Database
from crossfade.errors import FailedPrecondition, Unavailable
from crossfade.plan import StoreName
from crossfade.repairs import Repairs
from crossfade.samples import MAX_SIGNATURES, Redactor, Samples
from crossfade.shadow import BATCH, Bounds, Shadow
from crossfade.store import Stored, Stores
from crossfade.telemetry import (
    MISMATCHES_DROPPED,
    REPAIRS,
    REPAIRS_GIVEN_UP,
    SHADOW_DROPPED,
    VERDICTS,
    Telemetry,
)
from crossfade.verdict import Finding, Judge, Offer, Verdict

F, P = StoreName.FIRESTORE, StoreName.POSTGRESQL
SECRET = "mail@example.org"


def offer(path: str = "c/1", size: int = 10) -> Offer:
    documents = (Stored(path, b"x" * size, (0, 1)),)
    return Offer("c", "get", F, F, 1, "shadow", (path,), documents, None)


def wrong(path: str = "c/1", field: str = "mail", value: Any = "old") -> Finding:
    stored = Stored(path, b"", (1, 5), None)
    found = tuple(diff({field: SECRET, "status": "new"}, {field: value, "status": "old"}))
    return Finding(Verdict.WRONG, path, found, stored, stored)


class Given(Comparer):
    """Finds what it is told to."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(Stores(), Database("test"), telemetry, Judge(Database("test")))
        self.findings: list[Finding] = []
        self.fails: Exception | None = None
        self.blocked: asyncio.Event | None = None
        self.calls = 0

    async def compare(self, offer: Offer) -> list[Finding]:
        self.calls += 1
        if self.blocked is not None:
            await self.blocked.wait()
        if self.fails is not None:
            raise self.fails
        return self.findings


class Table:
    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.fails = False

    async def put(self, mismatches, *, timeout):
        if self.fails:
            raise Unavailable("away")
        self.rows += mismatches


class Parts:
    def __init__(self, **options: Any) -> None:
        self.telemetry = Telemetry()
        self.comparer = Given(self.telemetry)
        self.table = Table()
        self.marked: list[str] = []
        redactor = Redactor(b"k" * 16, {"c": [("status",)]})
        self.samples = Samples(redactor, self.telemetry, self.table)
        self.repairs = Repairs(self._mark, self.telemetry, limit=2)
        self.shadow = Shadow(self.comparer, self.telemetry, self.samples, self.repairs, **options)

    async def _mark(self, paths, epoch, authority):
        self.marked += paths

    def dropped(self) -> dict[str, int]:
        return {cause: n for (_, cause), n in self.telemetry.counts(SHADOW_DROPPED).items()}

    def verdicts(self) -> dict[str, int]:
        return {verdict: n for (_, verdict), n in self.telemetry.counts(VERDICTS).items()}

    async def work(self, condition) -> None:
        task = asyncio.create_task(self.shadow.run())
        try:
            async with asyncio.timeout(5):
                while not condition():  # noqa: ASYNC110 - anything may be waited for
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# --- bounds ------------------------------------------------------------------------------------


def test_a_full_queue_drops_and_counts():
    parts = Parts(bounds=Bounds(queue=3))
    for _ in range(5):
        parts.shadow.offer(offer())
    assert (parts.shadow.waiting, parts.dropped()) == (3, {"queue": 2})


async def test_what_waits_is_bounded_in_bytes():
    parts = Parts(bounds=Bounds(memory=25_000))
    for _ in range(5):
        parts.shadow.offer(offer(size=10_000))
    assert (parts.shadow.waiting, parts.dropped()) == (2, {"memory": 3})
    await parts.work(lambda: parts.shadow.idle)
    assert parts.shadow.held == 0
    parts.shadow.offer(offer(size=10_000))
    assert parts.shadow.waiting == 1


def test_a_second_has_room_for_so_many_and_no_more(monkeypatch):
    now = 1_000.0
    monkeypatch.setattr("crossfade.shadow.time.monotonic", lambda: now)
    parts = Parts(bounds=Bounds(rate=10))
    for _ in range(15):
        parts.shadow.offer(offer())
    assert (parts.shadow.waiting, parts.dropped()) == (10, {"rate": 5})
    now += 0.31
    for _ in range(5):
        parts.shadow.offer(offer())
    assert (parts.shadow.waiting, parts.dropped()) == (13, {"rate": 7})
    now += 3_600  # what was not used is not saved up
    for _ in range(15):
        parts.shadow.offer(offer())
    assert (parts.shadow.waiting, parts.dropped()) == (23, {"rate": 12})


async def test_what_has_waited_too_long_is_not_compared():
    parts = Parts(bounds=Bounds(age=0.01))
    parts.shadow.offer(offer())
    await asyncio.sleep(0.05)
    await parts.work(lambda: parts.shadow.idle)
    assert (parts.comparer.calls, parts.dropped()) == (0, {"age": 1})


async def test_a_busy_process_compares_nothing():
    parts = Parts(bounds=Bounds(lag=0.05))
    task = asyncio.create_task(parts.shadow.run())
    try:
        await asyncio.sleep(0.1)
        time.sleep(0.3)  # noqa: ASYNC251 - this is the load
        for _ in range(10):  # turns of the loop until the measuring one has its own
            if parts.shadow.lag < 0.2:
                await asyncio.sleep(0)
        parts.shadow.offer(offer())
        assert parts.dropped() == {"load": 1}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_without_budget_nothing_is_compared():
    parts = Parts(afford=lambda _: False)
    parts.shadow.offer(offer())
    assert (parts.shadow.waiting, parts.dropped()) == (0, {"budget": 1})


async def test_offering_to_workers_that_hang_costs_nothing():
    parts = Parts(bounds=Bounds(queue=10))
    parts.comparer.blocked = asyncio.Event()
    task = asyncio.create_task(parts.shadow.run())
    try:
        began = time.perf_counter()
        for _ in range(1_000):
            parts.shadow.offer(offer())
            await asyncio.sleep(0)
        assert time.perf_counter() - began < 5
        assert parts.comparer.calls == 2
        assert parts.dropped() == {"queue": 988}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [Unavailable("away"), TimeoutError(), ValueError("defect")])
async def test_a_failure_is_a_verdict_and_ends_nothing(failure):
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    parts = Parts()
    parts.comparer.fails = failure
    parts.shadow.offer(offer())
    await parts.work(lambda: parts.verdicts().get("error") == 1)
    parts.comparer.fails = None
    parts.shadow.offer(offer())
    await parts.work(lambda: parts.verdicts().get("match") == 1)


async def test_check_raises_places_and_no_values():
    parts = Parts(raises=True)
    await parts.shadow.check(offer())
    parts.comparer.findings = [Finding(Verdict.BEHIND, "c/1")]
    await parts.shadow.check(offer())
    parts.comparer.findings = [wrong(), wrong("c/2")]
    with pytest.raises(FailedPrecondition) as raised:
        await parts.shadow.check(offer())
    text = str(raised.value)
    assert "c/1 is wrong: mail (value), status (value), and 1 more" in text
    assert SECRET not in text
    assert parts.verdicts() == {"match": 1, "behind": 1, "wrong": 1}


async def test_check_lets_pass_what_cannot_be_compared():
    parts = Parts(raises=True)
    parts.comparer.fails = Unavailable("away")
    await parts.shadow.check(offer())
    assert parts.verdicts() == {"error": 1}


# --- many by one call --------------------------------------------------------------------------


def paired_store(parts: Parts, monkeypatch: Any, apart: set[str]) -> list[int]:
    """The other store agrees on all paths but these; returns the sizes of the calls of it."""
    sizes: list[int] = []

    async def agreeing(offers):
        sizes.append(len(offers))
        if parts.comparer.fails is not None:
            raise parts.comparer.fails
        return [each.asked[0] not in apart for each in offers]

    monkeypatch.setattr(parts.comparer, "agreeing", agreeing)
    monkeypatch.setattr("crossfade.shadow.ALONE_PER_SECOND", 1.0)
    return sizes


@pytest.mark.parametrize(("answered", "calls"), [(P, 5), (F, 10)])
async def test_gets_beyond_a_few_a_second_are_read_by_few_calls(answered, calls, monkeypatch):
    parts = Parts(workers=1)
    sizes = paired_store(parts, monkeypatch, set())
    for number in range(50):
        parts.shadow.offer(replace(offer(f"c/{number}"), answered=answered))
    await parts.work(lambda: parts.verdicts().get("match") == 50)
    assert parts.comparer.calls + sum(sizes) == 50
    assert 1 <= parts.comparer.calls <= 5
    assert len(sizes) <= calls
    assert max(sizes) == BATCH
    assert parts.shadow.held == 0


async def test_a_batch_that_is_complete_waits_for_nobody(monkeypatch):
    monkeypatch.setattr("crossfade.shadow.BATCH_SECONDS", 60.0)
    parts = Parts(workers=2)
    sizes = paired_store(parts, monkeypatch, set())
    most = BATCH

    async def fill() -> None:
        # One by one: the first waits, whoever takes it, and the last completes its company.
        for number in range(1 + 3 * most):
            parts.shadow.offer(offer(f"c/{number}"))
            await asyncio.sleep(0)

    filling = asyncio.create_task(fill())
    await parts.work(lambda: parts.verdicts().get("match", 0) >= 1 + 2 * most)
    await filling
    assert sizes[:2] == [most, most]


async def test_what_does_not_agree_with_the_others_is_looked_at_by_itself(monkeypatch):
    parts = Parts(workers=1)
    sizes = paired_store(parts, monkeypatch, {"c/7"})
    parts.shadow.offer(offer("c/0"))
    await parts.work(lambda: parts.verdicts().get("match") == 1)
    parts.comparer.findings = [wrong("c/7")]
    for number in range(1, 20):
        parts.shadow.offer(offer(f"c/{number}"))
    await parts.work(lambda: sum(parts.verdicts().values()) == 20)
    assert parts.verdicts() == {"match": 19, "wrong": 1}
    assert parts.marked == ["c/7"]
    assert sum(sizes) == 19


async def test_a_call_for_many_that_fails_is_an_error_of_each(monkeypatch):
    parts = Parts(workers=1)
    paired_store(parts, monkeypatch, set())
    parts.shadow.offer(offer("c/0"))
    await parts.work(lambda: parts.verdicts().get("match") == 1)
    parts.comparer.fails = Unavailable("away")
    for number in range(10):
        parts.shadow.offer(offer(f"c/{number}"))
    await parts.work(lambda: parts.verdicts().get("error") == 10)
    assert parts.shadow.idle


async def test_reads_that_another_store_answered_are_not_read_by_the_same_call(monkeypatch):
    parts = Parts(workers=1)
    sizes = paired_store(parts, monkeypatch, set())
    parts.shadow.offer(offer("c/0"))
    for number in range(12):
        made = offer(f"c/{number}")
        parts.shadow.offer(replace(made, answered=P) if number % 6 >= 3 else made)
    await parts.work(lambda: parts.verdicts().get("match") == 13)
    assert max(sizes) == 3


# --- repairs -----------------------------------------------------------------------------------


async def test_a_document_that_no_repair_helps_is_reported_instead():
    parts = Parts()
    parts.comparer.findings = [wrong()]
    for _ in range(4):
        await parts.shadow.compare(offer())
    assert parts.marked == ["c/1", "c/1"]
    assert parts.telemetry.counts(REPAIRS) == {("c", "wrong"): 2}
    assert parts.telemetry.counts(REPAIRS_GIVEN_UP) == {("c",): 2}
    (sample,) = parts.samples.held
    assert (sample.count, sample.given_up) == (4, True)


async def test_a_good_comparison_begins_the_count_anew():
    parts = Parts()
    for _ in range(3):
        parts.comparer.findings = [wrong()]
        await parts.shadow.compare(offer())
        await parts.shadow.compare(offer())
        parts.comparer.findings = []
        await parts.shadow.compare(offer())
    assert parts.marked == ["c/1"] * 6


async def test_a_result_that_is_wrong_by_itself_is_nothing_to_copy():
    parts = Parts()
    parts.comparer.findings = [replace(wrong(), firestore=None, postgres=None)]
    await parts.shadow.compare(offer())
    assert parts.marked == []


# --- samples -----------------------------------------------------------------------------------


async def test_the_first_and_the_latest_of_a_signature_are_kept():
    parts = Parts()
    for path in ("c/1", "c/2", "c/3"):
        parts.comparer.findings = [wrong(path)]
        await parts.shadow.compare(offer(path))
    parts.comparer.findings = [wrong("c/4", field="phone")]
    await parts.shadow.compare(offer("c/4"))
    await parts.samples.flush()
    first, second = parts.table.rows
    assert (first.count, first.first["path"], first.latest["path"]) == (3, "c/1", "c/3")
    assert (first.fields, second.fields) == (("mail", "status"), ("phone", "status"))
    assert parts.samples.held == ()


async def test_a_sample_shows_values_of_clear_fields_only():
    parts = Parts()
    parts.comparer.findings = [wrong(), wrong("c/2", value=SECRET.upper())]
    await parts.shadow.compare(offer())
    (sample,) = parts.samples.held
    mail, status = sample.first["differences"]
    assert mail["field"] == "mail"
    assert mail["authority"].keys() == {"type", "length", "hash"}
    assert (mail["authority"]["type"], mail["authority"]["length"]) == ("string", len(SECRET))
    assert mail["authority"]["hash"] != mail["mirror"]["hash"]
    # Equal values have equal hashes.
    assert mail["authority"]["hash"] == sample.latest["differences"][0]["authority"]["hash"]
    assert (status["authority"]["value"], status["mirror"]["value"]) == ("new", "old")
    assert SECRET not in repr(sample)
    assert sample.first["versions"]["postgresql"] == {
        "exists": True,
        "epoch": 1,
        "time": 5,
        "peer_time": None,
    }


def test_hashes_depend_on_the_key():
    shown = [
        Redactor(key).differences("c", wrong().differences)[0]["authority"]["hash"]
        for key in (b"k" * 16, b"l" * 16)
    ]
    assert shown[0] != shown[1]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "boolean"),
        (1, "integer"),
        (float("nan"), "double"),
        (b"\0", "bytes"),
        ([1, {"a": None}], "array"),
        ({"$a": "\0"}, "map"),
    ],
)
def test_values_of_every_type_are_redacted(value, kind):
    shown = Redactor(b"k" * 16).differences("c", wrong(value=value).differences)[0]["mirror"]
    assert shown["type"] == kind
    assert "value" not in shown


async def test_samples_that_cannot_be_kept_are_dropped_and_counted():
    parts = Parts()
    parts.table.fails = True
    parts.comparer.findings = [wrong()]
    await parts.shadow.compare(offer())
    await parts.shadow.compare(offer())
    await parts.samples.flush()
    assert parts.telemetry.counts(MISMATCHES_DROPPED) == {("c",): 2}
    assert parts.samples.held == ()
    parts.comparer.findings = [wrong(field=f"f{n}") for n in range(MAX_SIGNATURES + 3)]
    await parts.shadow.compare(offer())
    assert len(parts.samples.held) == MAX_SIGNATURES
    assert parts.telemetry.counts(MISMATCHES_DROPPED) == {("c",): 5}
