"""The Write stream over gRPC, on the embedded Firestore and on the official emulator."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.cloud.firestore_v1 import types

from crossfade.document import Database
from crossfade.rpc import firestore_v1
from crossfade.stores.memory import MemoryStore
from tests.firestore_fixture import fresh_database

METHOD = "/google.firestore.v1.Firestore/Write"
SECONDS = 20.0


class Stream:
    """One Write stream. `token` is of the last response."""

    def __init__(self, channel: grpc.aio.Channel, database: Database) -> None:
        self.database = database
        self.token = b""
        metadata = (("google-cloud-resource-prefix", database.name),)
        self.call: Any = channel.stream_stream(METHOD)(metadata=metadata, timeout=SECONDS)

    async def send(self, *writes: Any, **fields: Any) -> None:
        fields = {"database": self.database.name, "stream_token": self.token} | fields
        message = types.WriteRequest(writes=list(writes), **fields)
        await self.call.write(types.WriteRequest.pb(message).SerializeToString())

    async def receive(self) -> Any:
        response = types.WriteResponse.pb().FromString(await self.call.read())
        self.token = response.stream_token
        return response

    async def opened(self) -> "Stream":
        await self.send()
        self.first = await self.receive()
        return self

    async def written(self, *writes: Any, **fields: Any) -> Any:
        await self.send(*writes, **fields)
        return await self.receive()

    async def refused(self) -> tuple[grpc.StatusCode, str]:
        """The status that ended the stream."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call.read()
        return raised.value.code(), raised.value.details() or ""

    async def over(self) -> bool:
        return await self.call.read() is grpc.aio.EOF

    def set(self, name: str, n: int, **condition: Any) -> dict[str, Any]:
        """A write that sets the field n of a document of c."""
        fields = {"n": {"integer_value": n}}
        write = {"update": {"name": self.database.full(f"c/{name}"), "fields": fields}}
        return write | ({"current_document": condition} if condition else {})

    def add(self, name: str, n: int) -> dict[str, Any]:
        """A write that increments the field n."""
        increment = {"field_path": "n", "increment": {"integer_value": n}}
        write = self.set(name, 0) | {"update_mask": {}, "update_transforms": [increment]}
        write["update"] = {"name": write["update"]["name"]}
        return write


@pytest.fixture(
    params=["embedded_firestore", pytest.param("official_emulator", marks=pytest.mark.official)]
)
def address(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as made:
        yield made


@pytest_asyncio.fixture
async def ours(embedded_firestore: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the embedded Firestore, for what the emulator does not check."""
    options = [("grpc.max_send_message_length", 30_000_000)]
    async with grpc.aio.insecure_channel(embedded_firestore, options=options) as made:
        yield made


async def stored(channel: Any, database: Database, name: str) -> int | None:
    """The field n of a document of c."""
    request = types.GetDocumentRequest.pb()(name=database.full(f"c/{name}"))
    metadata = (("google-cloud-resource-prefix", database.name),)
    get = channel.unary_unary("/google.firestore.v1.Firestore/GetDocument")
    try:
        data = await get(request.SerializeToString(), timeout=SECONDS, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
    return types.Document.pb().FromString(data).fields["n"].integer_value


# --- on both servers ---------------------------------------------------------------------------


async def test_opened_written_and_closed(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel, fresh_database()).opened()
    assert stream.first.stream_id
    assert stream.first.stream_token
    assert not stream.first.write_results
    assert not stream.first.HasField("commit_time")
    answer = await stream.written(stream.set("a", 1), stream.add("b", 5), stream.add("b", 2))
    assert not answer.stream_id
    assert answer.stream_token != stream.first.stream_token
    assert [len(result.transform_results) for result in answer.write_results] == [0, 1, 1]
    assert answer.write_results[2].transform_results[0].integer_value == 7
    assert answer.write_results[0].update_time == answer.commit_time
    later = await stream.written({"delete": stream.database.full("c/a")}, database="")
    assert not later.write_results[0].HasField("update_time")
    assert later.commit_time.ToMicroseconds() > answer.commit_time.ToMicroseconds()
    await stream.call.done_writing()
    assert await stream.over()
    assert await stored(channel, stream.database, "a") is None
    assert await stored(channel, stream.database, "b") == 7


async def test_writes_that_do_not_wait_for_answers(channel: grpc.aio.Channel) -> None:
    """All with the token of the first response, as clients send that have many."""
    stream = await Stream(channel, fresh_database()).opened()
    for _ in range(10):
        await stream.send(stream.add("a", 1), stream_token=stream.first.stream_token)
    answers = [await stream.receive() for _ in range(10)]
    counted = [answer.write_results[0].transform_results[0].integer_value for answer in answers]
    assert counted == list(range(1, 11))
    times = [answer.commit_time.ToMicroseconds() for answer in answers]
    assert times == sorted(set(times))
    assert len({answer.stream_token for answer in answers}) == 10


async def test_a_write_that_fails_ends_the_stream(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel, fresh_database()).opened()
    await stream.written(stream.set("a", 1))
    await stream.send(stream.set("b", 1), stream.set("a", 2, exists=False))
    assert (await stream.refused())[0] is grpc.StatusCode.ALREADY_EXISTS
    assert await stored(channel, stream.database, "a") == 1
    assert await stored(channel, stream.database, "b") is None


async def test_a_request_without_writes_is_the_last(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel, fresh_database()).opened()
    await stream.written(stream.set("a", 1))
    answer = await stream.written()
    assert answer.stream_token
    assert not answer.write_results
    assert await stream.over()


async def test_streams_are_not_resumed(channel: grpc.aio.Channel) -> None:
    old = await Stream(channel, fresh_database()).opened()
    resume = {"stream_id": old.first.stream_id, "stream_token": old.token}
    for fields in (resume, {"stream_id": old.first.stream_id}, {"stream_token": old.token}):
        stream = Stream(channel, old.database)
        await stream.send(**fields)
        assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
    await old.send(stream_id=old.first.stream_id)
    assert (await old.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_writes_before_the_stream_is_open(channel: grpc.aio.Channel) -> None:
    stream = Stream(channel, fresh_database())
    await stream.send(stream.set("a", 1))
    assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert await stored(channel, stream.database, "a") is None


async def test_another_database(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel, fresh_database()).opened()
    await stream.send(stream.set("a", 1), database=fresh_database().name)
    assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT


# --- what only we check ------------------------------------------------------------------------


async def test_no_database_and_no_message(ours: grpc.aio.Channel) -> None:
    for data in (b"", b"\xff", b"\x0a\x03abc"):
        stream = Stream(ours, fresh_database())
        await stream.call.write(data)
        assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
    stream = await Stream(ours, fresh_database()).opened()
    await stream.call.write(b"\xff")
    assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokens(ours: grpc.aio.Channel) -> None:
    """One is needed, of this stream, that was sent, and none that was left behind."""
    other = await Stream(ours, fresh_database()).opened()
    for token, reason in (
        (b"", "missing stream token"),
        (b"junk", "not of this stream"),
        (other.token, "not of this stream"),
    ):
        stream = await Stream(ours, fresh_database()).opened()
        await stream.send(stream.set("a", 1), stream_token=token)
        code, message = await stream.refused()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert reason in message
        assert await stored(ours, stream.database, "a") is None
    stream = await Stream(ours, fresh_database()).opened()
    unsent = stream.token[:-1] + bytes([stream.token[-1] + 1])
    await stream.written(stream.set("a", 1))
    assert stream.token == unsent
    await stream.written(stream.set("a", 2))
    await stream.send(stream.set("a", 3), stream_token=stream.first.stream_token)
    assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert await stored(ours, stream.database, "a") == 2


async def test_a_document_of_another_database(ours: grpc.aio.Channel) -> None:
    stream = await Stream(ours, fresh_database()).opened()
    await stream.send({"delete": fresh_database().full("c/a")})
    assert (await stream.refused())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_over_the_limit_of_a_commit(ours: grpc.aio.Channel) -> None:
    stream = await Stream(ours, fresh_database()).opened()
    writes = []
    for number in range(11):
        write = stream.set(f"d{number}", number)
        write["update"]["fields"] = {"x": {"string_value": "x" * 970_000}}
        writes.append(write)
    await stream.send(*writes)
    code, message = await stream.refused()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(10 * 1_048_576) in message


async def test_many_streams_at_once(ours: grpc.aio.Channel) -> None:
    database = fresh_database()

    async def write(times: int) -> None:
        stream = await Stream(ours, database).opened()
        for _ in range(times):
            await stream.written(stream.add("a", 1))
        stream.call.cancel()

    await asyncio.gather(*(write(20) for _ in range(50)))
    assert await stored(ours, database, "a") == 1_000


async def test_a_defect_ends_one_stream() -> None:
    database = fresh_database()
    store = MemoryStore(database)
    server = await firestore_v1.serve(lambda _: store, "127.0.0.1", 0)
    async with grpc.aio.insecure_channel(server.address) as channel:
        streams = [await Stream(channel, database).opened() for _ in range(2)]

        async def broken(*_: Any, **__: Any) -> Any:
            raise ValueError("a document's value")

        working, store.commit = store.commit, broken  # type: ignore[method-assign]
        await streams[0].send(streams[0].set("a", 1))
        code, message = await streams[0].refused()
        assert code is grpc.StatusCode.INTERNAL
        assert "value" not in message.replace("ValueError", "")
        store.commit = working  # type: ignore[method-assign]
        await streams[1].written(streams[1].set("a", 1))
        streams[1].call.cancel()
    await server.stop(0)
