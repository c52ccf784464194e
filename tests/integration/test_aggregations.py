"""Aggregations over the API: the same numbers by either store, and by which of them."""

from typing import Any

import grpc
import pytest

from crossfade.errors import Unavailable
from crossfade.plan import Stage
from crossfade.stores.firestore import FirestoreStore
from crossfade.telemetry import FALLBACK_READS, READS, RETURNED_READS
from crossfade.wire import decode_value
from crossfade_api.v1 import crossfade_pb2, crossfade_pb2_grpc
from tests.sidecar import Running, running

COLLECTIONS = ("tasks", "notes")
EXPECTED = {"n": 3, "few": 2, "sum": 6, "avg": 2.0}


def request(collection: str) -> crossfade_pb2.AggregateRequest:
    asked = crossfade_pb2.AggregateRequest()
    getattr(asked.query.structured_query, "from").add(collection_id=collection)
    for alias in ("n", "few"):
        asked.query.aggregations.add(alias=alias).count.SetInParent()
    asked.query.aggregations[1].count.up_to.value = 2
    asked.query.aggregations.add(alias="sum").sum.field.field_path = "size"
    asked.query.aggregations.add(alias="avg").avg.field.field_path = "size"
    return asked


async def aggregate(stack: Running, asked: crossfade_pb2.AggregateRequest) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(stack.sidecar.address) as channel:
        reply = await crossfade_pb2_grpc.CrossfadeStub(channel).Aggregate(asked, timeout=10)
    assert reply.read_time.seconds > 1_600_000_000
    return {alias: decode_value(v) for alias, v in reply.result.aggregate_fields.items()}


async def fill(stack: Running, collection: str) -> None:
    for number in (1, 2, 3):
        await stack.client.set(f"{collection}/{number}", {"size": number})


def answers(stack: Running) -> tuple[int, int]:
    return stack.count(READS, "firestore"), stack.count(READS, "postgresql")


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_in_every_stage_by_the_store_that_answers_queries(postgres_database, collection):
    async with running(await postgres_database(), Stage.OFF, read_percent=100) as stack:
        await fill(stack, collection)
        assert await aggregate(stack, request(collection)) == EXPECTED
        assert answers(stack) == (1, 0)
        await stack.stage("shadow")
        assert await aggregate(stack, request(collection)) == EXPECTED
        assert answers(stack) == (2, 0)  # nothing was copied yet
        assert stack.count(RETURNED_READS, "pending") == 1
        await stack.copy()
        await stack.settled()
        assert await aggregate(stack, request(collection)) == EXPECTED
        assert answers(stack) == (2, 1)
        for number, stage in enumerate(("live", "ramp_down", "complete"), start=2):
            await stack.stage(stage)
            assert await aggregate(stack, request(collection)) == EXPECTED
            assert answers(stack) == (2, number)


async def test_while_the_authority_is_away_the_mirror_answers(postgres_database, monkeypatch):
    async with running(await postgres_database(), Stage.SHADOW, read_percent=0) as stack:
        await stack.copy()
        await fill(stack, "tasks")
        await stack.settled()

        async def away(*_args: Any, **_kwargs: Any) -> None:
            raise Unavailable("Firestore is away")

        monkeypatch.setattr(FirestoreStore, "aggregate", away)
        assert await aggregate(stack, request("tasks")) == EXPECTED
        assert stack.count(FALLBACK_READS, "postgresql") == 1
        await stack.sql.execute(
            """insert into crossfade.pending
                (intent, path, collection_path, collection_id, epoch, lease_until, reason)
            values ('elsewhere', 'tasks/9', 'tasks', 'tasks', 1, now() + interval '1 hour', '')"""
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await aggregate(stack, request("tasks"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("collection", ["", "_crossfade_intents"])
async def test_what_cannot_be_aggregated(postgres_database, collection):
    async with running(await postgres_database(), Stage.OFF) as stack:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await aggregate(stack, request(collection))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
