"""The proxy server's adapter interface, awaited and waited for, against a whole sidecar."""

import asyncio
import enum
import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest

from crossfade.plan import Stage
from crossfade_api.v1 import violet_pb2 as pb
from crossfade_client import (
    SERVER_TIMESTAMP,
    AlreadyExistsError,
    ArrayUnion,
    CrossfadeError,
    Increment,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    UnavailableError,
)
from crossfade_client.violet import AsyncViolet, Violet
from tests.sidecar import running

ADAPTER = {
    *("create_task", "get_task", "update_task", "get_tasks_by_status"),
    *("assign_task_to_miners", "get_available_miners", "update_miner_task_load"),
    "get_miner_task_count",
}


class Status(enum.Enum):
    PENDING = "pending"


class Word(str, enum.Enum):  # noqa: UP042 - the application's own way
    TTS = "tts"


class Waiting:
    """The waiting adapter, as if it were the awaiting one: each call in a thread."""

    def __init__(self, adapter: Violet) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._adapter, name)
        return lambda *args, **options: asyncio.to_thread(method, *args, **options)


@pytest.fixture(scope="module")
async def stack(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as world:
        await world.copy()
        yield world


@pytest.fixture(params=["awaiting", "waiting"])
async def adapter(request, stack):
    target = stack.sidecar.address
    if request.param == "awaiting":
        async with AsyncViolet(target, timeout=10) as client:
            yield client
    else:
        with Violet(target, timeout=10) as client:
            yield Waiting(client)


@pytest.fixture
def name():
    return uuid4().hex[:12]


def test_both_have_the_adapters_methods_with_the_same_arguments():
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(AsyncViolet) == methods(Violet)
    assert methods(Violet).keys() >= ADAPTER


async def test_a_task_there_and_back(adapter, name):
    naive = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as the application makes them
    task_id = await adapter.create_task(
        {
            "task_type": Word.TTS,
            "status": Status.PENDING,
            "created_at": SERVER_TIMESTAMP,
            "deadline": naive,
            "tags": ("a", 1.0),
            "model_id": None,
        }
    )
    task = await adapter.get_task(task_id)
    assert task["task_id"] == task_id
    assert (task["task_type"], task["status"]) == ("tts", "pending")
    assert task["deadline"] == naive.replace(tzinfo=UTC)
    assert task["created_at"].utcoffset() is not None
    assert (task["tags"], task["model_id"]) == (["a", 1.0], None)
    assert await adapter.create_task({"task_id": name}) == name
    with pytest.raises(AlreadyExistsError):
        await adapter.create_task({"task_id": name})


async def test_none_and_false_where_it_is_known_to_be_so(adapter, name):
    assert await adapter.get_task(name) is None
    assert await adapter.update_task(name, {"a": 1}) is False
    assert await adapter.update_task_status(name, "failed") is False
    assert await adapter.assign_task_to_miners(name, [1]) is False
    assert await adapter.add_miner_response(name, 1, {}) is False
    assert await adapter.delete_task(name) is False
    assert await adapter.get_user_by_email(f"{name}@x") is None
    assert await adapter.get_user_by_api_key(name) is None
    assert await adapter.update_last_login(name) is False
    assert await adapter.get_tasks_by_status(f"word {name}") == []
    with pytest.raises(NotFoundError):
        await adapter.rotate_api_key(name)


async def test_updates_by_path(adapter, name):
    await adapter.create_task({"task_id": name, "input_file": {"size": 1, "kind": "a"}, "n": 1})
    changes = {
        "input_file.size": 2,
        "n": Increment(2),
        "tags": ArrayUnion(["x"]),
        "seen_at": SERVER_TIMESTAMP,
    }
    assert await adapter.update_task(name, changes) is True
    task = await adapter.get_task(name)
    assert (task["input_file"], task["n"], task["tags"]) == ({"size": 2, "kind": "a"}, 3, ["x"])
    assert isinstance(task["seen_at"], datetime)
    assert await adapter.update_task_status(name, "completed", actual_completion_time=1.5)
    task = await adapter.get_task(name)
    assert (task["status"], task["actual_completion_time"]) == ("completed", 1.5)
    with pytest.raises(InvalidArgumentError):
        await adapter.update_task(name, {})


async def test_miners_and_their_tasks(adapter, stack, name):
    uid = int(name[:8], 16)
    now = datetime.now(UTC)
    status = {"is_serving": True, "last_seen": now, "task_type_specialization": name}
    await stack.client.set(f"miner_status/{uid}", status)
    await adapter.create_task({"task_id": name, "task_type": name})
    available = await adapter.get_available_miners(name)
    assert [miner["uid"] for miner in available] == [uid]
    assert await adapter.assign_task_to_miners(name, [uid], 1, 3) is True
    assert await adapter.assign_task_to_miners(name, [uid]) is True
    assert await adapter.assign_task_to_miners(name, [uid + 1], max_count=1) is False
    assert await adapter.get_miner_task_count(uid) == 1
    assert [task["task_id"] for task in await adapter.get_miner_tasks(uid)] == [name]
    assert await adapter.add_miner_response(name, uid, {"output": "x"}) is True
    assert await adapter.add_miner_response(name, uid, {"output": "y"}) is False
    assert await adapter.get_miner_task_count(uid) == 0
    assert await adapter.update_miner_task_load(uid, 2) is True
    assert (await stack.client.get(f"miner_status/{uid}")).fields["current_load"] == 2
    assert await adapter.register_miner(uid, hotkey="h") is True
    assert uid in [miner["uid"] for miner in await adapter.get_all_miners()]


async def test_lists_are_as_long_as_asked_for(adapter, stack, name):
    word = f"word {name}"
    for index in range(5):
        await stack.client.set(f"tasks/{name}-{index}", {"status": word, "index": index})
    found = await adapter.get_tasks_by_status(word, 3)
    assert [task["index"] for task in found] == [0, 1, 2]
    assert len(await adapter.get_tasks_by_status([word, "other"])) == 5


async def test_users(adapter, name):
    user = await adapter.create_user(f"{name}@x", "miner", uid=3)
    with pytest.raises(AlreadyExistsError):
        await adapter.create_user(f"{name}@x", "miner")
    assert await adapter.get_user_by_email(f"{name}@X ") == user
    assert await adapter.get_user_by_api_key(user["api_key"]) == user
    new = await adapter.rotate_api_key(user["user_id"])
    assert await adapter.get_user_by_api_key(user["api_key"]) is None
    assert (await adapter.get_user_by_api_key(new))["user_id"] == user["user_id"]
    assert await adapter.update_last_login(user["user_id"]) is True


async def test_any_other_call(adapter, name):
    await adapter.create_task({"task_id": name})
    request = pb.TaskRequest(task_id=name)
    assert (await adapter.call("Tasks", "ArchiveTask", request)).document.name.endswith(name)


# --- what goes wrong ---------------------------------------------------------------------------


class Failing:
    """A server whose GetTask and AssignTask fail with a status so many times first."""

    def __init__(self, code: grpc.StatusCode, times: int) -> None:
        self.code, self.times, self.requests = code, times, list[Any]()

    async def start(self) -> str:
        self.server = grpc.aio.server()
        kinds: dict[str, tuple[Any, Callable[[], Any]]] = {
            "GetTask": (pb.GetRequest, pb.Found),
            "AssignTask": (pb.AssignTaskRequest, lambda: pb.AssignTaskReply(assigned=[1])),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                self.handler(reply), kind.FromString, lambda message: message.SerializeToString()
            )
            for name, (kind, reply) in kinds.items()
        }
        handler = grpc.method_handlers_generic_handler("violet.v1.Tasks", handlers)
        self.server.add_generic_rpc_handlers((handler,))
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return f"127.0.0.1:{port}"

    def handler(self, reply: Callable[[], Any]) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            self.requests.append(request)
            if len(self.requests) <= self.times:
                await context.abort(self.code, "told to")
            return reply()

        return handle


@pytest.fixture(params=["awaiting", "waiting"])
async def failing(request):
    started = []

    async def start(code: grpc.StatusCode, times: int) -> tuple[Failing, Any]:
        server = Failing(code, times)
        target = await server.start()
        client: Any = AsyncViolet(target) if request.param == "awaiting" else Violet(target)
        started.append((server, client))
        return server, client if request.param == "awaiting" else Waiting(client)

    yield start
    for server, client in started:
        closed = client.close()
        if closed is not None:
            await closed
        await server.server.stop(0)


async def test_a_write_is_sent_again_as_the_same_request(failing):
    server, adapter = await failing(grpc.StatusCode.UNAVAILABLE, 2)
    assert await adapter.assign_task_to_miners("t", [1]) is True
    ids = {request.request_id for request in server.requests}
    assert len(server.requests) == 3
    assert len(ids) == 1
    assert ids != {""}


async def test_an_outage_is_an_error_and_never_an_answer(failing):
    _, adapter = await failing(grpc.StatusCode.UNAVAILABLE, 99)
    with pytest.raises(UnavailableError):
        await adapter.get_task("t")
    with pytest.raises(UnavailableError) as caught:
        await adapter.assign_task_to_miners("t", [1])
    assert caught.value.request_id


async def test_what_nobody_knows_is_said_so(failing):
    _, adapter = await failing(grpc.StatusCode.UNKNOWN, 1)
    with pytest.raises(OutcomeUnknownError):
        await adapter.assign_task_to_miners("t", [1])


async def test_a_reply_without_its_document_is_no_task(failing):
    _, adapter = await failing(grpc.StatusCode.UNAVAILABLE, 0)
    with pytest.raises(CrossfadeError) as caught:
        await adapter.get_task("t")
    assert caught.value.code is grpc.StatusCode.INTERNAL
