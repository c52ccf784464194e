"""What others write to Firestore directly, found in its change stream."""

import asyncio
from functools import partial
from itertools import count
from typing import Any

import pytest
from google.cloud.firestore_v1 import types

from crossfade.document import Fields
from crossfade.errors import Unavailable
from crossfade.plan import Stage, StoreName
from crossfade.settings import FollowerSettings, Settings
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.mirror import Mirror
from crossfade.telemetry import FOLLOWED, FOLLOWER_LAG
from crossfade.wire import parse_document
from crossfade.write import Write
from tests import sidecar
from tests.sidecar import DATABASE, Running, eventually, running

SETTLE = 0.5


@pytest.fixture
def compared(monkeypatch) -> list[str]:
    """The paths that the follower was told of and compared."""
    real = Mirror.behind
    paths: list[str] = []

    async def behind(self: Mirror, changes: Any, **options: Any) -> list[str]:
        found = await real(self, changes, **options)
        paths.extend(change.path for change in changes)
        return found

    monkeypatch.setattr(Mirror, "behind", behind)
    return paths


@pytest.fixture
async def stack(postgres_database, monkeypatch, compared):
    follower = FollowerSettings(enabled=True, settle=SETTLE)
    monkeypatch.setattr(sidecar, "Settings", partial(Settings, follower=follower))
    async with running(await postgres_database(), Stage.SHADOW) as made:
        await made.copy()
        await follows(made, "tasks/first", compared)
        yield made


async def follows(stack: Running, path: str, compared: list[str]) -> None:
    """Waits until the stream is there: until something of it was compared."""

    numbers = count()

    async def heard() -> bool:
        await stack.client.set(path, {"n": next(numbers)})
        return path in compared

    await eventually(heard)
    await stack.settled()


async def in_postgres(stack: Running, path: str):
    reading = await stack.sidecar.stores[StoreName.POSTGRESQL].get([path], timeout=5)
    data = reading.documents[0].data
    return None if data is None else parse_document(data, DATABASE).fields


async def becomes(stack: Running, path: str, fields) -> None:
    async def is_there() -> bool:
        return await in_postgres(stack, path) == fields

    await eventually(is_there)
    await stack.settled()


def lag(stack: Running) -> float | None:
    value = stack.telemetry._gauges[FOLLOWER_LAG]()
    return value if isinstance(value, float) else None


@pytest.mark.parametrize("path", ["tasks/1", "notes/1/tasks/2"])
async def test_what_others_write_and_delete_is_recopied(stack, path):
    steps: list[Fields | None] = [{"n": 1}, {"n": 2}, None, {"n": 3}]
    for fields in steps:
        await stack.direct.commit([Write(path, fields)], timeout=5)
        await becomes(stack, path, fields)
    assert stack.count(FOLLOWED, "tasks") == 4


async def test_what_sidecars_write_is_not_recopied(stack, monkeypatch, compared):
    real = Mirror.put

    async def put(self, images, **options):
        await asyncio.sleep(0.1)
        return await real(self, images, **options)

    monkeypatch.setattr(Mirror, "put", put)
    for number in range(20):
        await stack.client.set(f"tasks/{number % 5}", {"n": number})
    await stack.client.delete("tasks/0")

    async def heard() -> bool:
        return set(compared) >= {f"tasks/{number}" for number in range(5)}

    await eventually(heard)
    await stack.direct.commit([Write("tasks/foreign", {"n": 1})], timeout=5)
    await becomes(stack, "tasks/foreign", {"n": 1})
    assert stack.count(FOLLOWED) == 1
    assert not [path for path in compared if path.startswith("_crossfade")]


async def test_a_stream_that_breaks_is_resumed_where_it_was(stack, monkeypatch, compared):
    await stack.direct.commit([Write("tasks/1", {"n": 1})], timeout=5)
    await becomes(stack, "tasks/1", {"n": 1})
    real, broken = FirestoreStore.listen, asyncio.Event()
    tokens = []

    async def noted(requests):
        async for data in requests:
            tokens.append(types.ListenRequest.pb().FromString(data).add_target.resume_token)
            yield data

    async def listen(self, requests):
        async for frame in real(self, noted(requests)):
            if broken.is_set():
                raise Unavailable("connection reset")
            yield frame

    monkeypatch.setattr(FirestoreStore, "listen", listen)
    # The running stream is the real one; it ends with the stage, and another begins.
    await stack.stage("live")
    await eventually(partial(_is, lambda: lag(stack), None))
    await stack.stage("shadow")
    await follows(stack, "tasks/second", compared)
    begun = len(tokens)
    assert not any(tokens)
    broken.set()
    await stack.direct.commit([Write("tasks/1", None), Write("tasks/2", {"n": 2})], timeout=5)
    await eventually(partial(_is, lambda: len(tokens) > begun, expected=True))
    assert all(tokens[begun:])
    broken.clear()
    await becomes(stack, "tasks/2", {"n": 2})
    await becomes(stack, "tasks/1", None)


async def test_a_change_that_could_not_be_compared_is_not_lost(stack, monkeypatch):
    async def away(*_args, **_options):
        raise Unavailable("PostgreSQL is away")

    await eventually(partial(_is, lambda: lag(stack), 0))
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "behind", away)
        await stack.direct.commit([Write("tasks/1", {"n": 1})], timeout=5)

        async def late() -> bool:
            return (lag(stack) or 0) > 0.5

        await eventually(late)
    await becomes(stack, "tasks/1", {"n": 1})
    await eventually(partial(_is, lambda: lag(stack), 0))


async def test_it_follows_only_while_firestore_is_the_authority(stack, compared):
    await stack.stage("live")
    await eventually(partial(_is, lambda: lag(stack), None))
    await stack.direct.commit([Write("tasks/foreign", {"n": 1})], timeout=5)
    await asyncio.sleep(3 * SETTLE)
    assert await in_postgres(stack, "tasks/foreign") is None
    await stack.stage("shadow")
    await follows(stack, "tasks/second", compared)
    await stack.direct.commit([Write("tasks/1", {"n": 1})], timeout=5)
    await becomes(stack, "tasks/1", {"n": 1})
    # It began again with the present.
    assert "tasks/foreign" not in compared


async def _is(read, expected) -> bool:
    return read() == expected
