"""What a disagreement of two stores means, by version; and what races must not look like."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from crossfade import wire
from crossfade.aggregate import Aggregation, AggregationKind, aggregate
from crossfade.comparing import Comparer, Comparers, Sums, read_pages, stored_documents
from crossfade.diff import Kind
from crossfade.document import Database, Document
from crossfade.plan import StoreName
from crossfade.query import FieldFilter, Op, Order, Query, run
from crossfade.rules import Rule
from crossfade.store import MirrorState, Page, Reading, Stored, Stores
from crossfade.telemetry import RULED_OUT, Telemetry
from crossfade.verdict import Judge, Offer, Totals, Verdict, worst
from crossfade_api.v1 import crossfade_pb2

DATABASE = Database("test")
F, P = StoreName.FIRESTORE, StoreName.POSTGRESQL
LONG_AGO = 1_000_000
RECENT = time.time_ns() // 1_000 + 3_600_000_000


@dataclass
class Held:
    """A document of a fake store. `fields` None: a tombstone."""

    fields: dict[str, Any] | None
    time: int = LONG_AGO
    peer: int | None = None


class Fake:
    """A store of a few documents; `before` runs before each of its calls, with their number."""

    def __init__(self, name: StoreName, documents: dict[str, Held]) -> None:
        self.name = name
        self.documents = documents
        self.state = MirrorState(1, 1, pending=False) if name is P else None
        self.before: Callable[[int], None] = lambda _: None
        self.calls = 0
        self.shown: list[str] | None = None
        """What a query shows, for a store that evaluates it wrongly."""

    def _call(self) -> None:
        self.before(self.calls)
        self.calls += 1

    async def get(self, paths, *, timeout, turns=None):
        self._call()
        return Reading(tuple(map(self._stored, paths)), 0, self.state)

    async def query(self, query, *, timeout):
        self._call()
        live = [_document(path, h) for path, h in self.documents.items() if h.fields is not None]
        found = run(query, live)
        if self.shown is not None:
            found = [document for path in self.shown for document in found if document.path == path]
        reply = crossfade_pb2.QueryReply()
        for document in found:
            wire.encode_document(document, DATABASE, reply.documents.add())
        yield Page(reply.SerializeToString(), self.state)

    def _stored(self, path: str) -> Stored:
        held = self.documents.get(path)
        if held is None:
            return Stored(path, None, None)
        epoch = 0 if self.name is F else 1
        data = None if held.fields is None else _bytes(_document(path, held))
        # Firestore knows nothing of what it has not.
        version = None if data is None and self.name is F else (epoch, held.time)
        return Stored(path, data, version, held.peer)


def _document(path: str, held: Held) -> Document:
    assert held.fields is not None
    return Document(path, held.fields, LONG_AGO, held.time)


def _bytes(document: Document) -> bytes:
    return wire.document_bytes(document, DATABASE)


@dataclass
class Pair:
    firestore: Fake
    postgres: Fake
    telemetry: Telemetry
    rules: dict[str, list[Rule]]
    vouches: bool = True

    async def _vouched(self) -> bool:
        return self.vouches

    async def compare(self, asked: Any, authority: StoreName = F, **changes: Any):
        """As the authority would have answered."""
        comparer = self.comparer()
        store = {F: self.firestore, P: self.postgres}[authority]
        documents: tuple[Stored, ...] = ()
        totals = None
        if isinstance(asked, tuple):
            documents = (await store.get(asked, timeout=1)).documents
        elif isinstance(asked, Query):
            pages = await read_pages(cast("Any", store), asked, 1)
            documents = stored_documents(pages, DATABASE)
        else:
            totals = (await self._totals(authority, asked, 1)).values
        self.firestore.calls = self.postgres.calls = 0
        offer = Offer("c", "get", authority, authority, 1, "shadow", asked, documents, None, totals)
        return await comparer.compare(replace(offer, **changes))

    def comparer(self) -> Comparer:
        return Comparer(
            Stores(cast("Any", {F: self.firestore, P: self.postgres})),
            DATABASE,
            self.telemetry,
            Judge(DATABASE, self.rules, 5.0),
            read_totals=self._totals,
            vouched=self._vouched,
        )

    async def _totals(self, store: StoreName, asked: Totals, _: float) -> Sums:
        fake = {F: self.firestore, P: self.postgres}[store]
        fake._call()
        live = [_document(path, h) for path, h in fake.documents.items() if h.fields is not None]
        return Sums(aggregate(asked.query, live, asked.aggregations), fake.state)


def pair(firestore: dict[str, Held], postgres: dict[str, Held], *rules: Rule) -> Pair:
    return Pair(Fake(F, firestore), Fake(P, postgres), Telemetry(), {"c": list(rules)})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("crossfade.comparing.PAUSE_SECONDS", 0.0)


# --- one document ------------------------------------------------------------------------------

FROM_FIRESTORE = [
    (Held({"n": 1}, 5), Held({"n": 1}, 5), "match"),
    (None, None, "match"),
    (None, Held(None, 7), "match"),
    (Held({"n": 1}, 5), Held({"n": 2}, 5), "wrong"),
    (Held({"n": 1}, 5), Held({"n": 2}, 6), "wrong"),  # a version that nobody wrote
    (Held({"n": 1}, 5), Held({"n": 2}, 4), "stale"),
    (Held({"n": 1}, RECENT), Held({"n": 2}, 4), "behind"),  # its lag is within bounds
    (Held({"n": 1}, 5), None, "missing"),
    (Held({"n": 1}, 5), Held(None, 4), "missing"),
    (None, Held({"n": 1}, 5), "extra"),
]


@pytest.mark.parametrize(("firestore", "postgres", "verdict"), FROM_FIRESTORE)
async def test_verdicts_with_firestore_as_authority(firestore, postgres, verdict):
    stores = pair({"c/1": firestore} if firestore else {}, {"c/1": postgres} if postgres else {})
    found = await stores.compare(("c/1",))
    assert worst(found) == verdict
    assert [each.verdict for each in found] == ([] if verdict == "match" else [verdict])


FROM_POSTGRES = [
    (Held({"n": 1}, 9, peer=5), Held({"n": 1}, 5), "match"),
    (Held(None, 9, peer=0), None, "match"),
    (Held({"n": 1}, 9, peer=5), Held({"n": 2}, 5), "wrong"),
    (Held({"n": 1}, 9, peer=5), Held({"n": 2}, 6), "wrong"),  # a writer around the sidecar
    (Held({"n": 1}, 9, peer=5), Held({"n": 2}, 4), "stale"),
    (Held({"n": 1}, 9, peer=None), Held({"n": 2}, 4), "stale"),
    (Held({"n": 1}, RECENT, peer=None), Held({"n": 2}, 4), "behind"),
    (Held({"n": 1}, 9, peer=5), None, "missing"),
    (Held(None, 9, peer=0), Held({"n": 1}, 5), "extra"),
    (None, Held({"n": 1}, 5), "extra"),
]


@pytest.mark.parametrize(("postgres", "firestore", "verdict"), FROM_POSTGRES)
async def test_verdicts_with_postgresql_as_authority(postgres, firestore, verdict):
    stores = pair({"c/1": firestore} if firestore else {}, {"c/1": postgres} if postgres else {})
    assert worst(await stores.compare(("c/1",), authority=P)) == verdict


async def test_missing_and_extra_fields_are_said_of_the_mirror():
    firestore, postgres = {"a": 1}, {"b": 1}
    for authority, expected in (
        (F, ["a (missing)", "b (extra)"]),
        (P, ["a (extra)", "b (missing)"]),
    ):
        stores = pair({"c/1": Held(firestore, 5)}, {"c/1": Held(postgres, 5, peer=5)})
        (found,) = await stores.compare(("c/1",), authority=authority)
        assert list(found.fields) == expected


async def test_what_is_pending_is_behind_whatever_it_looks_like():
    stores = pair({"c/1": Held({"n": 1}, 5)}, {"c/1": Held({"n": 2}, 5)})
    stores.postgres.state = MirrorState(1, 1, pending=True)
    assert worst(await stores.compare(("c/1",))) == "behind"
    assert stores.firestore.calls == 0


async def test_an_offer_of_a_former_epoch_blames_nobody():
    stores = pair({"c/1": Held({"n": 1}, 5)}, {"c/1": Held({"n": 2}, 5)})
    assert worst(await stores.compare(("c/1",), epoch=7)) == "behind"


async def test_only_the_documents_that_differ_are_blamed():
    same, other = Held({"n": 1}, 5), Held({"n": 2}, 5)
    stores = pair({"c/1": same, "c/2": same, "c/3": same}, {"c/1": same, "c/2": other})
    found = await stores.compare(("c/1", "c/2", "c/3"))
    assert [(each.path, each.verdict) for each in found] == [("c/2", "wrong"), ("c/3", "missing")]


# --- races -------------------------------------------------------------------------------------


async def test_a_document_that_moves_all_the_time_is_behind():
    stores = pair({"c/1": Held({"n": 0}, 0)}, {"c/1": Held({"n": -1}, 0)})

    def write(call: int) -> None:
        stores.firestore.documents["c/1"] = Held({"n": call}, call + 1)
        stores.postgres.documents["c/1"] = Held({"n": call - 1}, call)

    stores.postgres.before = write
    assert worst(await stores.compare(("c/1",))) == "behind"


async def test_a_document_made_and_deleted_between_the_looks_is_not_extra():
    """Firestore never has it when it is looked at; PostgreSQL has it at times."""
    stores = pair({}, {"c/1": Held({"n": 1}, 1)})

    def write(call: int) -> None:
        made = call % 2 == 0
        stores.postgres.documents["c/1"] = Held({"n": 1} if made else None, call + 2)

    stores.postgres.before = write
    assert worst(await stores.compare(("c/1",))) == "behind"


async def test_a_write_that_is_pending_at_the_second_look_blames_nobody():
    stores = pair({"c/1": Held({"n": 1}, 5)}, {"c/1": Held({"n": 1}, 5)})
    documents = (await stores.firestore.get(("c/1",), timeout=1)).documents

    def write(call: int) -> None:
        stores.firestore.documents["c/1"] = Held({"n": 2}, 6)
        stores.postgres.state = MirrorState(1, 1, pending=call > 1)

    stores.firestore.before = write
    stores.postgres.before = write
    old = replace(documents[0], data=_bytes(Document("c/1", {"n": 0}, 1, 1)))
    assert worst(await stores.compare(("c/1",), documents=(old,))) == "behind"


async def test_while_commits_go_past_postgresql_it_is_not_to_blame():
    stores = pair({"c/1": Held({"n": 2}, 6)}, {"c/1": Held({"n": 1}, 5, peer=6)})
    stores.vouches = False
    assert worst(await stores.compare(("c/1",))) == "behind"
    # They do so only where Firestore is the authority.
    assert worst(await stores.compare(("c/1",), authority=P)) == "wrong"


# --- queries -----------------------------------------------------------------------------------

EVEN = Query(collection="c", where=FieldFilter(("even",), Op.EQUAL, True))
ORDERED = Query(collection="c", order_by=(Order(("n",)),))


def several(**changes: Held | None) -> dict[str, Held]:
    made = {f"c/{n}": Held({"n": n, "even": n % 2 == 0}, 5) for n in range(4)}
    for path, held in changes.items():
        name = path.replace("_", "/")
        made.pop(name, None)
        if held is not None:
            made[name] = held
    return made


async def test_a_document_that_left_a_result_is_judged_by_itself():
    stores = pair(several(), several(c_2=Held({"n": 2, "even": False}, 5)))
    (found,) = await stores.compare(EVEN)
    assert (found.path, found.verdict, found.fields) == ("c/2", "wrong", ("even (value)",))

    stores = pair(several(), several(c_2=Held({"n": 2, "even": False}, 4)))
    assert worst(await stores.compare(EVEN)) == "stale"


async def test_results_of_equal_documents_that_differ_are_the_querys_own_fault():
    stores = pair(several(), several())
    stores.postgres.shown = ["c/0"]
    (found,) = await stores.compare(EVEN)
    assert (found.path, found.verdict, found.fields) == ("c/2", "wrong", ("(missing)",))
    assert found.postgres is None

    stores.postgres.shown = ["c/0", "c/2"]
    stores.firestore.shown = ["c/0"]
    (found,) = await stores.compare(EVEN)
    assert (found.path, found.differences[0].kind) == ("c/2", Kind.EXTRA)


async def test_results_are_sequences_where_an_order_is_asked_for_and_sets_where_not():
    stores = pair(several(), several())
    stores.postgres.shown = ["c/0", "c/2", "c/1", "c/3"]
    (found,) = await stores.compare(ORDERED)
    assert (found.verdict, found.path, found.differences[0].kind) == ("wrong", "c/1", Kind.ORDER)
    assert await stores.compare(Query(collection="c")) == []


async def test_a_document_that_passes_through_a_result_blames_nobody():
    stores = pair(several(), several())
    stores.postgres.shown = ["c/0"]

    def write(call: int) -> None:
        # c/2 leaves the result and comes back, again and again.
        held = Held({"n": 2, "even": True}, 10 + call)
        stores.firestore.documents["c/2"] = stores.postgres.documents["c/2"] = held

    stores.postgres.before = write
    assert worst(await stores.compare(EVEN)) == "behind"


# --- aggregations ------------------------------------------------------------------------------

COUNT = Totals(EVEN, (Aggregation(AggregationKind.COUNT, "n"),))
SUM = Totals(Query(collection="c"), (Aggregation(AggregationKind.SUM, "s", ("n",)),))


async def test_aggregations_are_compared():
    assert await pair(several(), several()).compare(COUNT) == []
    (found,) = await pair(several(), several(c_2=None)).compare(COUNT)
    assert (found.verdict, found.path, found.fields) == ("wrong", "c", ("n (value)",))


async def test_sums_may_differ_in_their_last_bits():
    many = {f"c/{n}": Held({"n": 0.1 * n}, 5) for n in range(10)}
    nearly = {f"c/{n}": Held({"n": 0.1 * n * (1 + 1e-13)}, 5) for n in range(10)}
    assert await pair(many, nearly).compare(SUM) == []
    many["c/1"] = Held({"n": 0.2}, 5)
    assert worst(await pair(many, nearly).compare(SUM)) == "wrong"


async def test_an_aggregation_that_moves_blames_nobody():
    stores = pair(several(), several(c_2=None))

    def write(call: int) -> None:
        stores.firestore.documents[f"c/x{call}"] = Held({"even": True}, 5)

    stores.firestore.before = write
    assert worst(await stores.compare(COUNT)) == "behind"


# --- rules -------------------------------------------------------------------------------------


async def test_a_rule_makes_a_match_and_is_counted():
    rule = Rule("stamps", (("at",),))
    stores = pair({"c/1": Held({"at": 1}, 5)}, {"c/1": Held({"at": 2}, 5)}, rule)
    assert await stores.compare(("c/1",)) == []
    assert stores.telemetry.counts(RULED_OUT) == {("c", "stamps"): 1}
    # Nothing is read again for what a rule excuses.
    assert (stores.firestore.calls, stores.postgres.calls) == (0, 1)


async def test_a_rule_does_not_hide_what_it_does_not_name():
    rule = Rule("stamps", (("at",),))
    stores = pair({"c/1": Held({"at": 1, "n": 1}, 5)}, {"c/1": Held({"at": 2, "n": 2}, 5)}, rule)
    (found,) = await stores.compare(("c/1",))
    assert found.fields == ("n (value)",)


async def test_a_rule_of_kinds_means_the_mirror_in_both_directions():
    rule = Rule("new", (("new",),), kinds=frozenset({Kind.MISSING}))
    for authority, verdict in ((F, Verdict.MATCH), (P, Verdict.WRONG)):
        stores = pair({"c/1": Held({"new": 1}, 5)}, {"c/1": Held({}, 5, peer=5)}, rule)
        assert worst(await stores.compare(("c/1",), authority=authority)) is verdict


# --- many, and how long ------------------------------------------------------------------------


async def test_many_gets_are_judged_by_one_call_of_the_other_store():
    both = {f"c/{n}": Held({"n": n}, 5) for n in range(20)}
    stores = pair(both, both | {"c/7": Held({"n": -1}, 5), "c/9": Held(None, 9)})
    answered = (await stores.firestore.get(tuple(both), timeout=1)).documents
    offers = [
        Offer("c", "get", F, F, 1, "shadow", (each.path,), (each,), None) for each in answered
    ]
    stores.firestore.calls = 0
    found = await stores.comparer().agreeing([*offers, offers[0]])
    assert [offers[n % 20].documents[0].path for n, agrees in enumerate(found) if not agrees] == [
        "c/7",
        "c/9",
    ]
    assert (stores.firestore.calls, stores.postgres.calls) == (0, 1)
    # It took as long as twenty do, and says nothing of how long one takes.
    assert stores.telemetry.paired.comparisons() == []
    assert {each.role for each in stores.telemetry.latencies()} == {"batch"}


@pytest.mark.parametrize("authority", [F, P])
async def test_both_stores_are_timed_for_the_same_read(authority, monkeypatch):
    both = {"c/1": Held({"n": 1}, 5)}
    stores = pair(both, both)
    other = stores.postgres if authority is F else stores.firestore
    real = other.get

    async def slow(paths, *, timeout):
        await asyncio.sleep(0.02)
        return await real(paths, timeout=timeout)

    monkeypatch.setattr(other, "get", slow)
    await stores.compare(("c/1",), authority, seconds=0.001)
    (found,) = stores.telemetry.paired.comparisons()
    assert (found.collection, found.operation, found.count) == ("c", "get", 1)
    assert found.slower == (1 if authority is F else 0)
    assert abs(found.difference.p50) >= 0.018


async def test_gets_of_several_groups_are_read_from_the_stores_of_each():
    ones, twos = {"c/1": Held({"n": 1}, 5)}, {"d/1": Held({"n": 1}, 5)}
    first, second = pair(ones, ones), pair(twos, {"d/1": Held({"n": 2}, 5)})
    both = Comparers(lambda collection: (first if collection == "c" else second).comparer())
    (one,) = (await first.firestore.get(("c/1",), timeout=1)).documents
    (two,) = (await second.firestore.get(("d/1",), timeout=1)).documents
    offers = [
        Offer(stored.path[0], "get", F, F, 1, "shadow", (stored.path,), (stored,), None)
        for stored in (two, one, two)
    ]
    assert await both.agreeing(offers) == [False, True, False]
