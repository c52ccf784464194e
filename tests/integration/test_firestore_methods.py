"""Methods that REST-style callers use, transactions and read times: raw requests, to the
embedded Firestore and, where it can do them, to the official emulator."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.cloud.firestore_v1 import types

from crossfade.document import Database
from tests.firestore_fixture import fresh_database

BOTH = ["embedded_firestore", pytest.param("official_emulator", marks=pytest.mark.official)]
STREAMED = {"BatchGetDocuments", "RunQuery", "RunAggregationQuery"}
# Methods whose replies are not called METHODResponse.
REPLIES: dict[str, Any] = {
    "GetDocument": types.Document,
    "CreateDocument": types.Document,
    "UpdateDocument": types.Document,
}


class Caller:
    """Calls methods by name; requests are written as nested dicts."""

    def __init__(self, channel: grpc.aio.Channel, database: Database) -> None:
        self._channel = channel
        self.database = database
        self.root = database.root

    def name(self, path: str) -> str:
        return self.database.full(path)

    async def __call__(self, rpc: str, **fields: Any) -> Any:
        """The reply, or the list of them; None for a method that answers nothing."""
        request = getattr(types, f"{rpc}Request")(**fields)
        data = type(request).serialize(request)
        path = f"/google.firestore.v1.Firestore/{rpc}"
        options: Any = {"timeout": 10, "metadata": (("authorization", "Bearer owner"),)}
        if rpc in STREAMED:
            kind = getattr(types, f"{rpc}Response")
            frames: Any = self._channel.unary_stream(path)(data, **options)
            return [kind.deserialize(frame) async for frame in frames]
        reply: Any = await self._channel.unary_unary(path)(data, **options)
        if rpc in {"DeleteDocument", "Rollback"}:
            return None
        return REPLIES.get(rpc, getattr(types, f"{rpc}Response", None)).deserialize(reply)

    async def refused(self, rpc: str, **fields: Any) -> str:
        """The status that a call is refused with."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self(rpc, **fields)
        return error.value.code().name

    async def put(self, path: str, **values: int) -> Any:
        reply = await self(
            "Commit",
            database=self.database.name,
            writes=[{"update": {"name": self.name(path), "fields": integers(**values)}}],
        )
        return reply.commit_time

    async def get(self, *paths: str, **selector: Any) -> list[Any]:
        return await self(
            "BatchGetDocuments",
            database=self.database.name,
            documents=[self.name(path) for path in paths],
            **selector,
        )

    async def ids(self, **selector: Any) -> list[str]:
        frames = await self.query(**selector)
        return [f.document.name.rpartition("/")[2] for f in frames if f.document.name]

    async def query(self, **selector: Any) -> list[Any]:
        query = {"from_": [{"collection_id": "c"}]}
        return await self("RunQuery", parent=self.root, structured_query=query, **selector)


def integers(**values: int) -> dict[str, Any]:
    return {name: {"integer_value": value} for name, value in values.items()}


@pytest.fixture(params=BOTH)
def address(request: pytest.FixtureRequest) -> str:
    """host:port of either Firestore. Not async: a running loop could not start the other one."""
    return str(request.getfixturevalue(request.param))


@pytest_asyncio.fixture
async def call(address: str) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Caller(channel, fresh_database())


@pytest_asyncio.fixture
async def ours(embedded_firestore: str) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(embedded_firestore) as channel:
        yield Caller(channel, fresh_database())


# --- documents ---------------------------------------------------------------------------------


async def test_create_update_delete(call: Caller) -> None:
    made = await call(
        "CreateDocument",
        parent=call.root,
        collection_id="c",
        document_id="a",
        document={"fields": integers(n=1, m=2)},
        mask={"field_paths": ["n"]},
    )
    assert made.name == call.name("c/a")
    assert list(made.fields) == ["n"]
    assert made.create_time == made.update_time
    again = {"parent": call.root, "collection_id": "c", "document_id": "a"}
    assert await call.refused("CreateDocument", **again) == "ALREADY_EXISTS"
    changed = await call(
        "UpdateDocument",
        document={"name": made.name, "fields": integers(n=5, m=6)},
        update_mask={"field_paths": ["n", "gone"]},
    )
    assert {name: value.integer_value for name, value in changed.fields.items()} == {"n": 5, "m": 2}
    assert changed.create_time == made.create_time < changed.update_time
    stale = {"update_time": made.update_time}
    document = {"name": made.name}
    assert (
        await call.refused("UpdateDocument", document=document, current_document=stale)
        == "FAILED_PRECONDITION"
    )
    await call("DeleteDocument", name=made.name, current_document={"exists": True})
    assert (
        await call.refused("DeleteDocument", name=made.name, current_document={"exists": True})
        == "NOT_FOUND"
    )
    assert await call.refused("GetDocument", name=made.name) == "NOT_FOUND"
    await call("DeleteDocument", name=made.name)


async def test_a_document_below_another_and_an_id_that_the_server_draws(call: Caller) -> None:
    made = await call("CreateDocument", parent=call.name("c/a"), collection_id="sub")
    parent, _, identity = made.name.rpartition("/")
    assert parent == call.name("c/a/sub")
    assert len(identity) == 20
    assert (await call("GetDocument", name=made.name)).name == made.name
    listed = await call("ListDocuments", parent=call.root, collection_id="c", show_missing=True)
    assert [document.name for document in listed.documents] == [call.name("c/a")]
    assert not listed.documents[0].create_time


async def test_lists_in_an_order_of_fields_have_pages(ours: Caller) -> None:
    """The official emulator begins anew after each page of an order."""
    for number in range(7):
        await ours.put(f"c/{number}", n=number // 2)
    seen: list[str] = []
    token, pages = "", 0
    while not pages or token:
        reply = await ours(
            "ListDocuments",
            parent=ours.root,
            collection_id="c",
            order_by="n desc",
            page_size=2,
            page_token=token,
        )
        seen += [document.name.rpartition("/")[2] for document in reply.documents]
        token, pages = reply.next_page_token, pages + 1
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]
    assert pages == 4


@pytest.mark.parametrize("token", ["?", "bm8gcGF0aA==", "YS8v", "w7_Dvw=="])
@pytest.mark.parametrize("order", ["", "n"])
async def test_page_tokens_of_others_are_refused(ours: Caller, token: str, order: str) -> None:
    request = {"parent": ours.root, "collection_id": "c", "order_by": order, "page_token": token}
    assert await ours.refused("ListDocuments", **request) == "INVALID_ARGUMENT"


async def test_partitions(ours: Caller) -> None:
    """The official emulator has no PartitionQuery."""
    for number in range(10):
        await ours.put(f"p{number % 2}/x/c/{number}", n=number)
    query: dict[str, Any] = {"from_": [{"collection_id": "c", "all_descendants": True}]}
    request = {"parent": ours.root, "structured_query": query, "partition_count": 3}
    whole = await ours("PartitionQuery", **request)
    cuts = [partition.values[0].reference_value for partition in whole.partitions]
    assert cuts == sorted(cuts)
    assert len(cuts) == 3
    first = await ours("PartitionQuery", **request, page_size=2)
    rest = await ours("PartitionQuery", **request, page_size=2, page_token=first.next_page_token)
    paged = [*first.partitions, *rest.partitions]
    assert [partition.values[0].reference_value for partition in paged] == cuts
    assert not rest.next_page_token
    request["partition_count"] = 0
    assert await ours.refused("PartitionQuery", **request) == "INVALID_ARGUMENT"
    request["partition_count"] = 2
    query["limit"] = 3
    assert await ours.refused("PartitionQuery", **request) == "INVALID_ARGUMENT"


async def test_collection_ids_have_pages(call: Caller) -> None:
    for name in ("a", "b", "c", "d", "e"):
        await call.put(f"{name}/x/deep/y", n=1)
    first = await call("ListCollectionIds", parent=call.root, page_size=2)
    assert list(first.collection_ids) == ["a", "b"]
    rest = await call(
        "ListCollectionIds", parent=call.root, page_size=10, page_token=first.next_page_token
    )
    assert list(rest.collection_ids) == ["c", "d", "e"]
    assert not rest.next_page_token


# --- transactions and times --------------------------------------------------------------------


async def begin(call: Caller, **options: Any) -> bytes:
    reply = await call("BeginTransaction", database=call.database.name, options=options)
    return reply.transaction


async def commit(call: Caller, transaction: bytes, path: str, **values: int) -> Any:
    return await call(
        "Commit",
        database=call.database.name,
        transaction=transaction,
        writes=[{"update": {"name": call.name(path), "fields": integers(**values)}}],
    )


READ_WRITE: dict[str, Any] = {"read_write": {}}


async def test_a_read_that_begins_a_transaction(call: Caller) -> None:
    await call.put("c/a", n=1)
    first, found = await call.get("c/a", new_transaction=READ_WRITE)
    assert first.transaction
    assert not first.found.name
    assert found.found.name == call.name("c/a")
    assert not found.transaction
    await commit(call, first.transaction, "c/b", n=1)
    first, *rest = await call.query(new_transaction=READ_WRITE)
    assert first.transaction
    assert not first.document.name
    assert [frame.document.name[-1] for frame in rest] == ["a", "b"]
    await call("Rollback", database=call.database.name, transaction=first.transaction)


async def test_a_transaction_that_is_over(call: Caller) -> None:
    transaction = await begin(call, **READ_WRITE)
    await commit(call, transaction, "c/a", n=1)
    again = {"database": call.database.name, "transaction": transaction}
    assert await call.refused("Commit", **again) == "INVALID_ARGUMENT"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.get("c/a", transaction=transaction)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await call("Rollback", database=call.database.name, transaction=transaction)


async def test_a_read_only_transaction_cannot_write(call: Caller) -> None:
    transaction = await begin(call, read_only={})
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await commit(call, transaction, "c/a", n=1)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_conflict_is_aborted_at_the_commit(ours: Caller) -> None:
    """The official emulator has the other write wait, and then gives up one of them."""
    await ours.put("c/a", n=1)
    transaction = await begin(ours, **READ_WRITE)
    await ours.get("c/a", transaction=transaction)
    await ours.put("c/a", n=2)
    (found,) = await ours.get("c/a", transaction=transaction)
    assert found.found.fields["n"].integer_value == 1
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await commit(ours, transaction, "c/a", n=3)
    assert error.value.code() is grpc.StatusCode.ABORTED
    retried = await begin(ours, read_write={"retry_transaction": transaction})
    await ours.get("c/a", transaction=retried)
    await commit(ours, retried, "c/a", n=3)


async def test_two_transactions_of_one_counter(call: Caller) -> None:
    """None is lost: what is done adds up. (The official emulator may give up both.)"""
    await call.put("c/a", n=0)

    async def add() -> bool:
        transaction = await begin(call, **READ_WRITE)
        (found,) = await call.get("c/a", transaction=transaction)
        await asyncio.sleep(0.05)
        try:
            await commit(call, transaction, "c/a", n=found.found.fields["n"].integer_value + 1)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.ABORTED  # noqa: PT017
            return False
        return True

    done = sum(await asyncio.gather(add(), add()))
    (found,) = await call.get("c/a")
    assert found.found.fields["n"].integer_value == done


async def test_reads_of_earlier(call: Caller) -> None:
    first = await call.put("c/a", n=1)
    await call.put("c/a", n=2)
    second = await call.put("c/b", n=1)
    (found,) = await call.get("c/a", read_time=first)
    assert found.found.fields["n"].integer_value == 1
    assert found.read_time == first
    assert await call.ids(read_time=first) == ["a"]
    assert await call.ids(read_time=second) == ["a", "b"]
    transaction = await begin(call, read_only={"read_time": first})
    assert await call.ids(transaction=transaction) == ["a"]
    later = {"seconds": int(second.timestamp()) + 3600}
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.get("c/a", read_time=later)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_counting_in_a_transaction(call: Caller) -> None:
    await call.put("c/a", n=1)
    query = {
        "structured_query": {"from_": [{"collection_id": "c"}]},
        "aggregations": [{"alias": "all", "count": {}}],
    }
    request = {"parent": call.root, "structured_aggregation_query": query}
    frames = await call("RunAggregationQuery", **request, new_transaction=READ_WRITE)
    transaction = next(frame.transaction for frame in frames if frame.transaction)
    (result,) = [f.result for f in frames if f.result.aggregate_fields]
    assert result.aggregate_fields["all"].integer_value == 1
    await commit(call, transaction, "c/b", n=1)


async def test_batch_write_answers_for_each(call: Caller) -> None:
    await call.put("c/a", n=1)
    reply = await call(
        "BatchWrite",
        database=call.database.name,
        writes=[
            {"update": {"name": call.name("c/b")}},
            {"update": {"name": call.name("c/a")}, "current_document": {"exists": False}},
            {"delete": call.name("c/nobody")},
        ],
    )
    assert [status.code for status in reply.status] == [0, 6, 0]
    assert len(reply.write_results) == 3
    assert reply.write_results[0].update_time
    assert await call.ids() == ["a", "b"]


async def test_batch_write_of_what_is_illegal_by_itself(call: Caller) -> None:
    """Fails as a whole, as it does in the official emulator; but a document that is too
    large fails alone."""
    good = {"update": {"name": call.name("c/a")}}
    odd = {"update": {"name": call.name("c/b"), "fields": {"__x__": {"null_value": 0}}}}
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call("BatchWrite", database=call.database.name, writes=[good, odd])
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await call.ids() == []
    half = {"string_value": "x" * 600_000}
    large = {"update": {"name": call.name("c/b"), "fields": {"v": half, "w": half}}}
    reply = await call("BatchWrite", database=call.database.name, writes=[large, good])
    assert [status.code for status in reply.status] == [3, 0]
    assert await call.ids() == ["a"]
