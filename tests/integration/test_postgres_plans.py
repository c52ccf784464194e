"""The plans of what the store really sends, over tables large enough that a scan would show.

Each statement is looked at twice: as PostgreSQL plans it for these values, and as it plans it
once for all values (what a lane keeps prepared may become either).
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from crossfade.document import Reference
from crossfade.errors import EpochChanged
from crossfade.query import CompositeFilter, FieldFilter, Filter, Op, Order, Query
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.stores.postgres.store import PostgresStore
from crossfade_api.v1 import crossfade_pb2
from loadtests.bench import many
from tests.postgres_fixture import MakeDatabase
from violet.mapping import MAPPINGS

TASKS = 20_000
USERS = TASKS // many.TASKS_PER_USER
OTHERS = 3_000
SMALL = frozenset({"control", "pending"})
"""One row, and rows of writes under way: in a database at rest they are read whole."""
MOST_ROWS = 150
"""What a statement may touch that finds at most fifty documents."""

Ask: TypeAlias = Callable[[PostgresStore], Awaitable[int]]


class Recorder(Lanes):
    """Lanes that keep what was sent through them."""

    sent: list[tuple[str, Sequence[Any]]]

    async def _call(self, method: Any, query: str, args: Sequence[Any], timeout: float) -> Any:
        self.sent.append((query, args))
        return await super()._call(method, query, args, timeout)


@pytest_asyncio.fixture(scope="module")
async def lanes(postgres_database: MakeDatabase) -> AsyncIterator[Recorder]:
    lanes = Recorder(await postgres_database(), 2)
    lanes.sent = []
    await many.fill(lanes, TASKS)
    mirror = Mirror(lanes, MAPPINGS, many.DATABASE)
    documents: dict[str, dict[str, Any]] = {}
    for n in range(OTHERS):
        documents[f"text_content/t{n}"] = {"content_id": f"t{n}", "text": "lorem " * 20}
        documents[f"tasks/{many.task_id(n)}/audio_chunks/0"] = {"index": 0, "data": b"x" * 90}
        documents[f"notes/n{n}"] = {"text": "lorem " * 20, "n": n}
        documents[f"users/v{n}"] = {
            "user_id": f"v{n}",
            "api_key": f"k{n}",
            "role": "client",
            # A misfit in most documents: their writer sets what it does not know to null.
            "hotkey": None,
        }
        documents[f"api_keys/k{n}"] = {"user_id": f"v{n}", "role": "client"}
        documents[f"tasks/r{n}"] = {"miner_responses": [{"miner_uid": 7, "task_id": f"r{n}"}]}
        documents[f"miner_responses/r{n}_7"] = {"miner_uid": 7, "task_id": f"r{n}"}
    # Values that are no column's: a second holder of a key, another type, a null.
    documents["users/twin"] = {"api_key": "k7"}
    documents["users/odd"] = {"api_key": 7, "hotkey": 7}
    documents["users/known"] = {"hotkey": "h7", "uid": 7}
    documents["api_keys/lost"] = {"user_id": "nobody"}
    documents["tasks/odd"] = {"assigned_miners": [5, "six"], "status": "pending"}
    documents["tasks/none"] = {"assigned_miners": [5], "status": None}
    images = [Image(path, fields, many.TIME, many.TIME) for path, fields in documents.items()]
    await mirror.begin_copy(1, timeout=5)
    for begin in range(0, len(images), 1_000):
        page = images[begin : begin + 1_000]
        await mirror.put_page(page, epoch=1, generation=1, token=1, timeout=120)
    await lanes.execute("vacuum analyze", timeout=120)
    yield lanes
    await lanes.close()


def where(*parts: tuple[str, Op, Any]) -> Filter:
    leaves = tuple(FieldFilter((name,), op, value) for name, op, value in parts)
    return leaves[0] if len(leaves) == 1 else CompositeFilter(False, leaves)


def get(*paths: str) -> Ask:
    async def ask(store: PostgresStore) -> int:
        reading = await store.get(paths, timeout=30)
        return sum(stored.data is not None for stored in reading.documents)

    return ask


def run(collection: str, *parts: tuple[str, Op, Any], **more: Any) -> Ask:
    query = Query(collection=collection, where=where(*parts), **more)

    async def ask(store: PostgresStore) -> int:
        frames = b"".join([page.frames async for page in store.query(query, timeout=30)])
        return len(crossfade_pb2.QueryReply.FromString(frames).documents)

    return ask


POLL = ("assigned_miners", Op.ARRAY_CONTAINS, 5), ("status", Op.IN, list(many.OPEN))
POLLED = sum(
    5 in task["assigned_miners"] and task["status"] in many.OPEN
    for task in map(many.task, range(many.SEED))
)
RARE = sum(many.task(number)["status"] == "pending" for number in range(many.SEED))
BY_KEY = ("api_key", Op.EQUAL, "k7")
LATEST = (Order(("created_at",), descending=True),)

# What is asked, how many documents it finds, the indexes it is found by.
CASES: dict[str, tuple[Ask, int, set[str]]] = {
    "a task": (get(f"tasks/{many.task_id(7)}"), 1, {"tasks_pkey", "versions_pkey"}),
    "no task": (get("tasks/nothing"), 0, {"tasks_pkey", "versions_pkey"}),
    "a text by id": (get("text_content/t7"), 1, {"text_content_pkey"}),
    "a document without a table of its own": (get("notes/n7"), 1, {"documents_pkey"}),
    "a chunk": (get(f"tasks/{many.task_id(7)}/audio_chunks/0"), 1, {"audio_chunks_pkey"}),
    "a key, held by its user": (get("api_keys/k7"), 1, {"api_keys_pkey", "users_pkey"}),
    "a key without a user": (get("api_keys/lost"), 1, {"api_keys_pkey", "users_pkey"}),
    "a response, held by its task": (
        get("miner_responses/r7_7"),
        1,
        {"miner_responses_pkey", "tasks_pkey"},
    ),
    "several responses": (
        get("miner_responses/r7_7", "miner_responses/r8_7", "miner_responses/none"),
        2,
        {"miner_responses_pkey", "tasks_pkey"},
    ),
    "several tasks": (get("tasks/r1", "tasks/r2", "tasks/x"), 2, {"tasks_pkey", "versions_pkey"}),
    "the miners' poll": (run("tasks", *POLL), POLLED + 1, {"tasks_misfits"}),
    "a user by api key": (
        run("users", BY_KEY, limit=1),
        1,
        {"users_api_key_key", "users_misfits"},
    ),
    "both holders of an api key": (
        run("users", BY_KEY),
        2,
        {"users_api_key_key", "users_misfits"},
    ),
    "a user by a key of another type": (
        run("users", ("api_key", Op.EQUAL, 7)),
        1,
        {"users_misfits"},
    ),
    "what is null in most documents": (
        run("users", ("hotkey", Op.EQUAL, "h7")),
        1,
        {"users_hotkey", "users_beside"},
    ),
    "another type of what is null in most documents": (
        run("users", ("hotkey", Op.EQUAL, 7)),
        1,
        {"users_beside"},
    ),
    "two fields, of which one is null in most documents": (
        run("users", ("hotkey", Op.EQUAL, "h7"), ("uid", Op.EQUAL, 7)),
        1,
        {"users_hotkey", "users_beside"},
    ),
    "a key by its name": (
        run("api_keys", ("__name__", Op.EQUAL, Reference("api_keys/k7"))),
        1,
        {"api_keys_pkey"},
    ),
    "few tasks of a status": (
        run("tasks", ("status", Op.EQUAL, "pending"), limit=50),
        RARE + 1,
        {"tasks_status_id", "tasks_misfits"},
    ),
    "the first of many tasks of a status": (
        run("tasks", ("status", Op.EQUAL, "completed"), limit=50),
        50,
        {"tasks_status_id", "tasks_misfits"},
    ),
    "the latest of many tasks of a status": (
        run("tasks", ("status", Op.EQUAL, "completed"), limit=50, order_by=LATEST),
        50,
        {"tasks_misfits"},
    ),
    "tasks by a word that the enum does not have": (
        run("tasks", ("status", Op.EQUAL, "almost done"), limit=50),
        many.SEED // 250,
        {"tasks_misfits"},
    ),
}


@pytest.mark.parametrize("name", list(CASES))
async def test_it_is_an_index_lookup(lanes: Recorder, name: str):
    ask, count, indexes = CASES[name]
    lanes.sent.clear()
    assert await ask(PostgresStore(lanes, MAPPINGS, many.DATABASE)) == count
    assert len(lanes.sent) == 1
    ((statement, arguments),) = lanes.sent
    for values in (arguments, None):
        nodes = list(_nodes(await _plan(lanes, statement, values, len(arguments))))
        scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
        used = {node["Index Name"] for node in nodes if "Index Name" in node}
        kind = "any values" if values is None else "these values"
        assert scanned <= SMALL, f"planned for {kind}: {scanned} read whole; indexes {used}"
        assert indexes <= used, f"planned for {kind}: {used}"
    touched = _touched(await _plan(lanes, statement, arguments, len(arguments)))
    assert touched <= MOST_ROWS, f"{touched} rows for {count}"


async def test_a_poll_does_not_read_what_the_miner_has_done(lanes: Recorder):
    lanes.sent.clear()
    await CASES["the miners' poll"][0](PostgresStore(lanes, MAPPINGS, many.DATABASE))
    ((statement, arguments),) = lanes.sent
    nodes = list(_nodes(await _plan(lanes, statement, arguments, len(arguments))))
    assert "tasks_open_miners" in {node.get("Index Name") for node in nodes}


async def test_no_plan_is_made_for_an_empty_table(postgres_database: MakeDatabase):
    """A lane keeps its plans. One that reads a table whole because it is empty would still do
    so when there are a million rows in it."""
    lanes = Recorder(await postgres_database(), 1)
    lanes.sent = []
    store, mirror = (
        PostgresStore(lanes, MAPPINGS, many.DATABASE),
        Mirror(lanes, MAPPINGS, many.DATABASE),
    )
    await lanes.execute(many.CONTROL, timeout=5)
    lanes.sent.clear()
    await store.get(["tasks/a"], timeout=5)
    await store.get(["tasks/a", "tasks/b"], timeout=5)
    await store.get(["notes/a"], timeout=5)
    await CASES["a user by api key"][0](store)
    await mirror.claim("c", limit=10, lease=1.0, timeout=5)
    await mirror.drop_intent("i", timeout=5)
    with pytest.raises(EpochChanged):
        await mirror.open_intent("i", ["tasks/a"], epoch=9, lease=1.0, reason="commit", timeout=5)
    with pytest.raises(EpochChanged):
        await mirror.put(
            [Image("tasks/a", {}, 1, 1)], epoch=9, intent="i", allow_equal=True, timeout=5
        )
    assert len(lanes.sent) == 8
    for statement, arguments in list(lanes.sent):
        nodes = list(_nodes(await _plan(lanes, statement, None, len(arguments), own=True)))
        assert not [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"]
    await lanes.close()


async def _plan(
    lanes: Lanes, statement: str, values: Sequence[Any] | None, width: int, *, own: bool = False
) -> Any:
    """The plan for these values, as it was carried out; without values the one for any. With
    the lane's `own` settings, or with an index only where the planner likes it best."""
    async with lanes.transaction(30) as connection:
        if not own:
            await connection.execute("set local enable_seqscan = on")
        if values is None:
            await connection.execute("set local plan_cache_mode = force_generic_plan")
            await connection.execute(f"prepare looked_at as {statement}")
            nulls = ", ".join(["null"] * width)
            text = f"explain (format json) execute looked_at({nulls})"
            plan = await connection.fetchval(text)
            await connection.execute("deallocate looked_at")
        else:
            plan = await connection.fetchval(
                f"explain (analyze, timing off, format json) {statement}", *values
            )
    return json.loads(plan)[0]["Plan"]


def _nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _touched(plan: Any) -> int:
    """The rows that its scans of tables looked at."""
    total = 0.0
    for node in _nodes(plan):
        if "Relation Name" in node:
            rows = node["Actual Rows"]
            rows += node.get("Rows Removed by Filter", 0)
            rows += node.get("Rows Removed by Index Recheck", 0)
            total += rows * node["Actual Loops"]
    return round(total)
