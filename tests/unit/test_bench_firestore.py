"""The bench of the embedded Firestore: what it asks, and how it judges."""

import pytest
from google.cloud.firestore_v1 import types

from crossfade import wire
from crossfade.document import Database
from crossfade.query import run
from loadtests.bench import data
from loadtests.bench.measure import Case, Comparison, Group, Sample
from loadtests.firestore import __main__ as bench
from loadtests.firestore import messages
from loadtests.firestore.targets import GIBIBYTE, Memory, Target

DATABASE = Database("p")


def group(embedded: float, again: float = 100) -> Group:
    def sample(server: float) -> Sample:
        return Sample(rate=1.0, p50=1.0, p99=1.0, caller=1.0, server=server, store=0.0)

    cases = [
        Case("bare", caller=None, server=1, samples=[sample(100)]),  # type: ignore[arg-type]
        Case("bare again", caller=None, server=1, samples=[sample(again)]),  # type: ignore[arg-type]
        Case("embedded", caller=None, server=1, samples=[sample(embedded)]),  # type: ignore[arg-type]
    ]
    return Group("get", cases, [Comparison("embedded", "bare", ("server",))], 1, list)


FASTER = Target("get", "get", "embedded", "bare", "server", at_least=0.6, inverse=True)
SHORTER = Target("get", "get", "embedded", "bare", "server", at_most=5)


@pytest.mark.parametrize(
    ("target", "embedded", "seen", "met"),
    [
        (FASTER, 160, 0.625, True),
        (FASTER, 170, 100 / 170, False),
        (SHORTER, 500, 5.0, True),
        (SHORTER, 501, 5.01, False),
    ],
)
def test_a_target_is_met_or_missed(target, embedded, seen, met):
    verdict = target.judge([group(embedded)])
    assert verdict is not None
    assert (verdict.seen, verdict.met) == (pytest.approx(seen), met)
    assert ("met" if met else "MISSED") in verdict.text
    assert verdict.to_json()["met"] is met


@pytest.mark.parametrize(
    ("embedded", "again", "met"),
    [(150, 110, True), (160, 110, None), (170, 92, None), (200, 92, False)],
)
def test_a_target_is_left_open_where_the_control_could_turn_it(embedded, again, met):
    verdict = FASTER.judge([group(embedded, again)])
    assert verdict is not None
    assert verdict.met is met
    assert ("not resolved" in verdict.text) is (met is None)


def test_what_was_not_measured_is_not_judged():
    assert FASTER.judge([]) is None
    other = Target("x", "get", "embedded", "official emulator", "server", at_least=1)
    assert other.judge([group(100)]) is None


def test_memory_is_judged_by_what_is_resident():
    memory = Memory(1_000_000, 100 * 2**20, 2 * GIBIBYTE, seconds=100.0, cpu=50.0)
    assert memory.judge(2.0).met
    assert not memory.judge(1.9).met
    assert memory.each == pytest.approx(2_042.6, abs=0.1)
    assert "10,000/s, 50 µs" in memory.text


def test_every_target_is_of_a_group_that_the_bench_has():
    queries = {f"query: {name}" for name in messages.queries("p")}
    assert {target.group for target in bench.TARGETS} <= queries | set(bench.METHODS)


def test_commits_always_change_something():
    requests = messages.commits("p")
    assert len(requests) == len(set(requests)) == 2 * data.COUNT
    first, second = (
        wire.decode_write(types.CommitRequest.pb().FromString(request).writes[0], DATABASE)
        for request in (requests[0], requests[data.COUNT])
    )
    assert first.path == second.path
    assert first.fields != second.fields


@pytest.mark.parametrize("count", [1_000, 3_000])
def test_every_query_finds_as_many_however_many_there_are(count):
    documents = []
    for message in messages.items("p", count):
        document = types.Document.pb()()
        document.CopyFrom(message.update)
        document.create_time.seconds = document.update_time.seconds = 1
        documents.append(wire.decode_document(document, DATABASE))
    for request in messages.queries("p").values():
        asked = types.RunQueryRequest.pb().FromString(request)
        query = wire.decode_query(asked.structured_query, "", DATABASE)
        assert len(run(query, documents)) == messages.FOUND


def test_small_documents_are_small():
    writes = list(messages.small_documents("p", 3))
    assert len({write.update.name for write in writes}) == 3
    for write in writes:
        assert len(write.update.fields) == 5
        size = sum(len(value.SerializeToString()) for value in write.update.fields.values())
        assert 50 <= size + sum(map(len, write.update.fields)) <= 120
