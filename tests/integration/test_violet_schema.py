"""The proxy server's own documents in its own tables."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from crossfade import query as queries
from crossfade.document import Document, identical
from crossfade.mapping import from_json
from crossfade.query import CompositeFilter, FieldFilter, Filter, Op, Query
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.stores.postgres.rows import DocumentTables
from crossfade.stores.postgres.statement import compile_query
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import decode_document
from crossfade.write import Write
from crossfade_api.v1 import crossfade_pb2
from tests.postgres_fixture import DATABASE, MakeDatabase, MakeLanes
from violet import sample
from violet.mapping import MAPPINGS

SAMPLE = dict(sample.documents(3, 400))
COLLECTIONS = {path.rpartition("/")[0].rpartition("/")[2] for path in SAMPLE}


@pytest_asyncio.fixture(scope="module")
async def copied(postgres_database: MakeDatabase) -> AsyncIterator[Lanes]:
    """The sample as the first copy brings it: in name order, so children before parents and
    derived documents before their owners."""
    lanes = await Lanes.open(await postgres_database(), size=4)
    await lanes.execute(
        """insert into crossfade.control (grp, stage, authority, epoch, generation)
        values ('default', 'shadow', 'firestore', 1, 1)""",
        timeout=5,
    )
    mirror = Mirror(lanes, MAPPINGS, DATABASE)
    await mirror.begin_copy(1, timeout=5)
    images = [Image(path, fields, 5, 5) for path, fields in sorted(SAMPLE.items())]
    for start in range(0, len(images), 300):
        page = images[start : start + 300]
        await mirror.put_page(page, epoch=1, generation=1, token=1, timeout=60)
    await lanes.execute("analyze", timeout=60)
    yield lanes
    await lanes.close()


async def run(lanes: Lanes, query: Query) -> list[Document]:
    store = PostgresStore(lanes, MAPPINGS, DATABASE)
    frames = b"".join([page.frames async for page in store.query(query, timeout=30)])
    reply = crossfade_pb2.QueryReply.FromString(frames)
    return [decode_document(message, DATABASE) for message in reply.documents]


async def test_every_document_comes_back(copied: Lanes):
    found = {d.path: d.fields for d in await run(copied, Query(all_descendants=True))}
    assert found.keys() == SAMPLE.keys()
    for path, fields in SAMPLE.items():
        assert identical(found[path], fields), path


async def test_every_document_has_a_table_of_its_own(copied: Lanes):
    rows = await copied.fetch(
        "select distinct collection_id from crossfade.documents order by 1", timeout=5
    )
    assert [row[0] for row in rows] == ["task_evaluations"]


async def test_no_value_is_left_in_a_remainder_that_fits(copied: Lanes):
    for mapping in MAPPINGS:
        rows = await copied.fetch(
            f"select id, remainder from {mapping.table.schema}.{mapping.table.name} "
            f"where misfits is not null",
            timeout=5,
        )
        for row in rows:
            remainder: Any = from_json(row["remainder"])
            for field, value in remainder.items():
                cause = mapping.cause(field, value)
                assert cause != "waiting", (mapping.collection_id, row["id"], field)


async def test_the_applications_indexes_are_held_by_their_users(copied: Lanes):
    for table, kept in (("user_emails", 1), ("api_keys", 2)):
        counts = await copied.fetchrow(
            f"select count(owner), count(*) filter (where owner is null) from violet.{table}",
            timeout=5,
        )
        assert counts is not None
        # A dangling one, and a second key of one user.
        assert tuple(counts) == (len([p for p in SAMPLE if p.startswith("users/")]) - 1, kept)


async def test_references_and_uniques_are_real(copied: Lanes):
    held = await copied.fetchval(
        """select count(*) from violet.evaluations e join violet.tasks t on t.id = e.task_id""",
        timeout=5,
    )
    assert held == len([path for path in SAMPLE if path.startswith("evaluations/")])
    kinds = await copied.fetch(
        """select contype::text as kind, count(*) as n from pg_constraint
        where connamespace = 'violet'::regnamespace and contype in ('f', 'u', 'c')
        group by 1 order by 1""",
        timeout=5,
    )
    assert {row["kind"]: row["n"] for row in kinds} == {"c": 6, "f": 11, "u": 2}


# --- the queries it lives by -------------------------------------------------------------------


def where(*parts: tuple[str, Op, Any]) -> Filter:
    leaves = tuple(FieldFilter((name,), op, value) for name, op, value in parts)
    return leaves[0] if len(leaves) == 1 else CompositeFilter(False, leaves)


POLL = where(
    ("assigned_miners", Op.ARRAY_CONTAINS, 48),
    ("status", Op.IN, ["pending", "assigned", "processing"]),
)
PLANS: dict[str, tuple[Query, str]] = {
    "the miners' poll": (Query(collection="tasks", where=POLL), "tasks_open_miners"),
    "tasks by status": (
        Query(collection="tasks", where=where(("status", Op.EQUAL, "approved")), limit=100),
        "tasks_status",
    ),
    "tasks in statuses": (
        Query(collection="tasks", where=where(("status", Op.IN, ["done", "approved"]))),
        "tasks_status",
    ),
    "a user by api key": (
        Query(collection="users", where=where(("api_key", Op.EQUAL, "k")), limit=1),
        "users_api_key_key",
    ),
    "a user by email": (
        Query(collection="users", where=where(("email", Op.EQUAL, "k")), limit=1),
        "users_email_key",
    ),
    "a user by credentials": (
        Query(
            collection="users",
            where=where(
                ("hotkey", Op.EQUAL, "h"),
                ("coldkey_address", Op.EQUAL, "c"),
                ("uid", Op.EQUAL, 7),
                ("network", Op.EQUAL, "finney"),
                ("netuid", Op.EQUAL, 49),
            ),
            limit=1,
        ),
        "users_hotkey",
    ),
    "responses of a task": (
        Query(collection="miner_responses", where=where(("task_id", Op.EQUAL, "t"))),
        "miner_responses_remainder",
    ),
    "evaluations of a task": (
        Query(collection="evaluations", where=where(("task_id", Op.EQUAL, "t"))),
        "evaluations_task_id",
    ),
    "reports of a miner": (
        Query(collection="validator_reports", where=where(("miner_uid", Op.EQUAL, 7))),
        "validator_reports_miner_uid",
    ),
    "a file by its name": (
        Query(collection="files", where=where(("original_filename", Op.EQUAL, "a")), limit=1),
        "files_original_filename",
    ),
}


@pytest.mark.parametrize("name", list(PLANS))
async def test_it_is_an_index_lookup(copied: Lanes, name: str):
    query, index = PLANS[name]
    tables = DocumentTables(MAPPINGS, DATABASE)
    table = tables.of_collection(query.collection or "")
    statement = compile_query(query, queries.check(query), table, "default")
    async with copied.acquire(10) as connection:
        # Small tables are read whole; what is asked is whether the index can be used.
        await connection.execute("begin; set local enable_seqscan = off")
        rows = await connection.fetch(f"explain {statement.sql}", *statement.values)
        await connection.execute("rollback")
    plan = "\n".join(row[0] for row in rows)
    assert index in plan, plan
    assert "Seq Scan on " + table.name.partition(".")[2] not in plan, plan


@pytest.mark.parametrize("path", ["api_keys/k", "miner_responses/t_1", "user_emails/e", "tasks/t"])
async def test_reading_by_path_is_an_index_lookup(copied: Lanes, path: str):
    table = DocumentTables(MAPPINGS, DATABASE).of(path)
    async with copied.acquire(10) as connection:
        await connection.execute("begin; set local enable_seqscan = off")
        rows = await connection.fetch(
            f"explain {table.get_one}", table.key_of(path), path, "c", "default"
        )
        await connection.execute("rollback")
    plan = "\n".join(row[0] for row in rows)
    assert "Seq Scan on " not in plan.replace("Seq Scan on control", ""), plan


# --- a user's life -----------------------------------------------------------------------------


async def test_creating_a_user_rotating_its_key_and_deleting_it(postgres_lanes: MakeLanes):
    """As the proxy server does it: one document after the other."""
    lanes = await postgres_lanes()
    store = PostgresStore(lanes, MAPPINGS, DATABASE)

    async def put(path: str, fields: Any) -> None:
        await store.commit([Write(path, fields)], timeout=10)

    async def owner(key: str) -> Any:
        return await lanes.fetchval(
            "select owner from violet.api_keys where id = $1", key, timeout=5
        )

    at, later = SAMPLE["tasks/_init"]["created_at"], SAMPLE["voices/english_1"]["created_at"]
    user: dict[str, Any] = {"user_id": "u", "email": "e@x", "role": "client", "api_key": "k1"}
    user |= {"api_key_created_at": at, "created_at": at, "last_login": None}
    await put("users/u", user)
    await put("user_emails/e@x", {"user_id": "u", "created_at": at})
    await put("api_keys/k1", {"user_id": "u", "role": "client", "created_at": at})
    assert await owner("k1") == "u"
    user |= {"api_key": "k2", "api_key_created_at": later}
    await put("users/u", user)
    await put("api_keys/k2", {"user_id": "u", "role": "client", "created_at": later})
    # Both keys are valid for a moment.
    assert await owner("k1") is None
    assert await owner("k2") == "u"
    await put("api_keys/k1", None)
    await put("users/u", None)
    found = {d.path: d.fields for d in await run(lanes, Query(all_descendants=True))}
    assert identical(
        found,
        {
            "api_keys/k2": {"user_id": "u", "role": "client", "created_at": later},
            "user_emails/e@x": {"user_id": "u", "created_at": at},
        },
    )
