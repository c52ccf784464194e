"""Requests that nobody should send, to every RPC of violet.v1, over documents that nobody should
have written: each is answered, and none by a defect."""

import math
import os
import random
from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from crossfade.plan import Stage
from crossfade_api.v1 import violet_pb2
from tests.sidecar import running
from tests.strategies import SCALARS
from tests.violet_caller import Caller, values

SEED = int(os.environ.get("CROSSFADE_FUZZ_SEED", "8"))
ROUNDS = int(os.environ.get("CROSSFADE_FUZZ_ROUNDS", "12"))
TAME: dict[type, list[Any]] = {
    str: ["a", "7", "pending", "failed"],
    int: [0, 1, 7],
    float: [0.0, 0.5, 1.0],
}
"""Half of the requests say nothing but this, so that they get further."""
IDS = ["a", "b", "1", "7", "_init", "__x__", "__id7__", "", "a/b", "..", "ü" * 10, "x" * 1_501]
TEXTS = [*IDS, "pending", "completed", "failed", "a@b", "\0", "n.m", "`", "task_assignments"]
INTEGERS = [0, 1, 7, -1, 2**31 - 1, -(2**31), 5]
WIDE = [*INTEGERS, 2**63 - 1, -(2**63)]
DOUBLES = [0.0, 0.5, -1.0, 1e308, math.inf, -math.inf, math.nan]
DEFECTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
COLLECTIONS = ["tasks", "miner_status", "miners", "users", "miner_consensus", "files", "validators"]
FIELDS = [
    *("status", "assigned_miners", "task_assignments", "miner_responses", "validators_seen"),
    *("current_load", "max_capacity", "assigned_task_count", "is_serving", "last_seen"),
    *("latest_reports", "email", "api_key", "input_file", "created_at", "uploaded_at", "task_id"),
    *("validator_reports_count", "required_miner_count", "task_type_specialization"),
]


def fill(message: Any, chance: random.Random, *, tame: bool, depth: int = 0) -> None:
    """Some of the fields, with contents of their types."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.3:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for name, value in stored(chance).items():
                    getattr(message, field.name)[name].CopyFrom(value)
        elif field.message_type is not None and depth < 3:
            inner = getattr(message, field.name)
            for _ in range(chance.randrange(3) if field.is_repeated else 1):
                part = inner.add() if field.is_repeated else inner
                fill(part, chance, tame=tame, depth=depth + 1)
        elif field.message_type is None:
            pool = pool_of(field)
            if field.name == "page_token":
                pool = ["", "x"] if not tame else [""]
            elif tame and type(pool[0]) in TAME:
                pool = TAME[type(pool[0])]
            if field.is_repeated:
                getattr(message, field.name).extend(chance.choices(pool, k=chance.randrange(3)))
            else:
                setattr(message, field.name, chance.choice(pool))


def pool_of(field: Any) -> list[Any]:
    pools: dict[int, list[Any]] = {
        field.TYPE_STRING: TEXTS,
        field.TYPE_BOOL: [False, True],
        field.TYPE_DOUBLE: DOUBLES,
        field.TYPE_INT64: WIDE,
        field.TYPE_INT32: INTEGERS,
        field.TYPE_BYTES: [b"", b"\xff"],
        field.TYPE_ENUM: [0],
    }
    return pools[field.type]


def stored(chance: random.Random) -> dict[str, Any]:
    return values(**{name: odd(chance) for name in chance.sample(FIELDS, 4)})


def odd(chance: random.Random, depth: int = 0) -> Any:
    """A legal value of any kind, often one that fields of ours have."""
    kind = chance.randrange(6 if depth < 3 else 4)
    if kind == 5:
        return {
            name: odd(chance, depth + 1)
            for name in chance.sample(["miner_uid", "status", "7", "a b", "timestamp"], 2)
        }
    if kind == 4:
        # No array may hold one.
        return [odd(chance, 3) for _ in range(chance.randrange(3))]
    legal = [value for value in SCALARS if isinstance(value, str | int | float | None)]
    return chance.choice([7, "7", 7.0, "pending", True, *legal])


@pytest.mark.parametrize("stage", [Stage.SHADOW, Stage.LIVE], ids=str)
async def test_hostile_requests_are_refused_or_done(postgres_database, stage):
    chance = random.Random(SEED)
    statuses: Counter[str] = Counter()
    defects: list[str] = []
    async with running(await postgres_database(), Stage.SHADOW) as stack:
        await stack.copy()
        if stage is Stage.LIVE:
            await stack.settled()
            await stack.stage("live")
        violet = Caller(stack)
        for collection in COLLECTIONS:
            for identity in ("a", "7", "_init"):
                fields = {name: odd(chance) for name in chance.sample(FIELDS, 6)}
                await violet.set(f"{collection}/{identity}", **fields)
        for _ in range(ROUNDS):
            for service in violet_pb2.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    request = GetMessageClass(method.input_type)()
                    fill(request, chance, tame=chance.random() < 0.5)
                    path = f"/{service.full_name}/{method.name}"
                    call: Any = violet.channel.unary_unary(path)
                    try:
                        await call(request.SerializeToString(), timeout=20)
                        status = "OK"
                    except grpc.aio.AioRpcError as error:
                        status = error.code().name
                        if status in DEFECTS:
                            defects.append(f"{method.name}: {error.details()}\n{request}")
                    statuses[status] += 1
        await violet.channel.close()
    print(statuses)
    assert defects == []
    assert statuses["OK"] > ROUNDS * 10
    assert statuses["INVALID_ARGUMENT"] > ROUNDS * 10
