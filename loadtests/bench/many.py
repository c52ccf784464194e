"""A proxy server that has run for a while: tasks by the hundred thousand, most of them done.

What grows is history. The tasks that somebody still works on are as many in a table of
ten thousand as in one of a million, and so is what the application's queries find.
"""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from crossfade.document import Database, Document, identical
from crossfade.mapping import Mappings
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.stores.postgres.schema import create_schema
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from violet.mapping import MAPPINGS

DATABASE = Database("bench")
SEED = 1_000
"""Tasks that the store's own copy writes; all others are multiplied from them in SQL."""
UIDS = 256
TASKS_PER_USER = 100
TIME = 1_765_269_015_123_456
OPEN = ("pending", "assigned", "processing")
_CLOSED = ("completed", "approved", "failed")
_START = datetime(2025, 12, 9, 8, 30, 15, 123456, tzinfo=UTC)
CONTROL = """insert into crossfade.control (grp, stage, authority, epoch, generation)
values ('default', 'dual_write', 'firestore', 1, 1) on conflict do nothing"""
_MULTIPLY = """insert into violet.{table} ({columns})
select {values} from generate_series($1::int8, $2::int8 - 1) n
join violet.{table} s on s.id = {seed}"""
_VERSIONS = """insert into crossfade.versions
    (path, epoch, time, live, peer_time, peer_epoch, peer_version, seen)
select '{table}/' || id, epoch, update_time, true, update_time, epoch, update_time, 1
from violet.{table} on conflict do nothing"""


class DataError(Exception):
    """The tables do not hold what was meant."""


def task_id(number: int) -> str:
    return f"task_{number:09}"


def task(number: int) -> dict[str, Any]:
    """Like the task of its number in the seed, but done with: only the seed has open ones."""
    seed = number % SEED
    rng = Random(seed)
    is_open = seed % 10 == 0 and number < SEED
    fields: dict[str, Any] = {
        "task_id": task_id(number),
        "task_type": rng.choice(("transcription", "tts", "summarization")),
        "status": OPEN[seed // 10 % 3] if is_open else _CLOSED[seed % 3],
        "priority": "normal",
        "created_at": _START + timedelta(seconds=seed),
        "updated_at": _START + timedelta(seconds=seed + 60),
        "source_language": "en",
        "required_miner_count": 3,
        "assigned_miners": rng.sample(range(UIDS), 3),
        "user_metadata": {"project": "demo", "score": seed / 7},
        "tags": ["sample", seed],
    }
    if seed % 3 == 0:
        fields["callback_url"] = None
    if seed % 250 == 3 and number < SEED:  # a word that the enum does not have
        fields["status"] = "almost done"
    return fields


def user_id(number: int) -> str:
    return f"user_{number:07}"


def api_key(number: int) -> str:
    return f"key_{number:07}"


def user(number: int) -> dict[str, Any]:
    return {
        "user_id": user_id(number),
        "email": f"{user_id(number)}@example.org",
        "role": "client",
        "api_key": api_key(number),
        "is_active": True,
    }


async def fill(lanes: Lanes, tasks: int, mappings: Mappings = MAPPINGS) -> int:
    """Makes the tables and fills them: so many tasks, and a user to every hundred of them.
    Returns the number of users. Raises DataError."""
    users = max(tasks // TASKS_PER_USER, 10)
    await create_schema(lanes, mappings)
    await lanes.execute(CONTROL, timeout=10)
    mirror = Mirror(lanes, mappings, DATABASE)
    pages = [
        [(f"tasks/{task_id(n)}", task(n)) for n in range(min(SEED, tasks))],
        [(f"users/{user_id(n)}", user(n)) for n in range(10)],
    ]
    await mirror.begin_copy(1, timeout=10)
    for page in filter(None, pages):
        images = [Image(path, fields, TIME, TIME) for path, fields in page]
        await mirror.put_page(images, epoch=1, generation=1, token=1, timeout=120)
    await mirror.end_copy(1, timeout=10)
    # Nothing refers to the rows that follow, and they are written as the triggers leave them.
    async with lanes.transaction(1_800) as connection:
        await connection.execute("set local session_replication_role = replica")
        await connection.execute("set local synchronous_commit = off")
        for table, given, seed, first, last in (
            ("tasks", _TASK, f"'task_' || lpad((n % {SEED})::text, 9, '0')", SEED, tasks),
            ("users", _USER, "'user_0000000'", 10, users),
        ):
            columns = [column.name for column in MAPPINGS_BY_ID[table].table.columns]
            statement = _MULTIPLY.format(
                table=table,
                columns=", ".join(f'"{name}"' for name in columns),
                values=", ".join(given.get(name, f's."{name}"') for name in columns),
                seed=seed,
            )
            await connection.execute(statement, first, last)
            await connection.execute(_VERSIONS.format(table=table))
    async with lanes.acquire(1_800) as connection:
        await connection.execute("vacuum analyze")
    await _check(PostgresStore(lanes, mappings, DATABASE), tasks, users)
    return users


MAPPINGS_BY_ID = {mapping.collection_id: mapping for mapping in MAPPINGS}
_TASK_ID = "'task_' || lpad(n::text, 9, '0')"
_USER_ID = "'user_' || lpad(n::text, 7, '0')"
_OPEN = ", ".join(f"'{word}'" for word in OPEN)
_TASK = {
    "id": _TASK_ID,
    "task_id": _TASK_ID,
    # What is open in the seed, and the word without a column, is closed in its copies.
    "status": f"case when s.status is null or s.status in ({_OPEN}) then "
    f"('{{{','.join(_CLOSED)}}}'::text[])[n % {SEED} % 3 + 1] else s.status end",
    "remainder": "s.remainder - 'status'",
    "misfits": "nullif(array_remove(s.misfits, 'status'), '{}')",
}
_USER = {
    "id": _USER_ID,
    "user_id": _USER_ID,
    "email": f"{_USER_ID} || '@example.org'",
    "api_key": "'key_' || lpad(n::text, 7, '0')",
}


async def _check(store: PostgresStore, tasks: int, users: int) -> None:
    """Some of the rows, read through the store, are the documents that it was to hold."""
    rng = Random(tasks)
    numbers = [*range(0, min(SEED, tasks), 7), *(rng.randrange(tasks) for _ in range(200) if tasks)]
    wanted = [(f"tasks/{task_id(n)}", task(n)) for n in numbers]
    wanted += [(f"users/{user_id(n)}", user(n)) for n in (0, 9, users // 2, users - 1)]
    reading = await store.get([path for path, _ in wanted], timeout=60)
    for (path, fields), stored in zip(wanted, reading.documents, strict=True):
        document: Document | None = (
            None if stored.data is None else parse_document(stored.data, DATABASE)
        )
        if document is None or not identical(document.fields, fields):
            raise DataError(f"{path} is not what the store would have written")
        if stored.version != (1, TIME) or stored.peer_time != TIME:
            raise DataError(f"{path} has another version than the store would have written")
