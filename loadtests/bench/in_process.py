"""Calls without a server in between: the PostgreSQL store, and the bare driver beside it."""

import asyncio
import itertools
import os
from typing import Any

from crossfade.document import Value
from crossfade.query import CompositeFilter, FieldFilter, Op, Query
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.stores.postgres.rows import DocumentTables
from crossfade.stores.postgres.store import PostgresStore
from crossfade.wire import parse_document
from crossfade_api.v1 import crossfade_pb2, document_pb2
from loadtests.bench import data, many
from loadtests.bench.bare import Rows
from loadtests.bench.caller import Call, expect
from loadtests.bench.sql import MAPPING
from violet.mapping import MAPPINGS

LANES = 8
TIMEOUT = 30.0
PAGE = 1_000
"""Documents in a put and in a COPY."""
LIMIT = 50


# --- one document --------------------------------------------------------------------------------


async def store_get(options: dict[str, Any]) -> Call:
    """What the sidecar asks for a read: the document's bytes, its version, how fresh it is."""
    store = await _store(options)

    async def call(number: int) -> None:
        path = f"tasks/{data.task_id(number)}"
        reading = await store.get([path], timeout=TIMEOUT)
        expect(reading.documents[0].data is not None)

    await _same(options, store)
    return call


async def bare_get(options: dict[str, Any]) -> Call:
    """The same row by a prepared SELECT, made into the same bytes by the same decoder."""
    get = await _bare(options)

    async def call(number: int) -> None:
        expect(bool(await get(number)))

    return call


async def _bare(options: dict[str, Any]) -> Any:
    rows = Rows()
    await rows.open(options["dsn"])
    prefix = f"{many.DATABASE.root}/tasks/"

    async def get(number: int) -> bytes:
        key = data.task_id(number)
        row = await rows.fetch(key)
        document = document_pb2.Document(name=prefix + key)
        rows.decode(row, document)
        return document.SerializeToString()

    return get


async def _same(options: dict[str, Any], store: PostgresStore) -> None:
    get = await _bare(options)
    for number in range(data.COUNT):
        reading = await store.get([f"tasks/{data.task_id(number)}"], timeout=TIMEOUT)
        theirs, ours = await get(number), reading.documents[0].data or b""
        expect(_parsed(theirs) == _parsed(ours))


def _parsed(data: bytes) -> Any:
    return parse_document(data, many.DATABASE)


# --- queries -------------------------------------------------------------------------------------


async def store_poll(options: dict[str, Any]) -> Call:
    """A miner asks for its open tasks."""
    statuses: list[Value] = list(many.OPEN)
    seed = [many.task(number) for number in range(many.SEED)]
    wanted = [
        sum(uid in task["assigned_miners"] and task["status"] in statuses for task in seed)
        for uid in range(many.UIDS)
    ]

    def query(number: int) -> tuple[Query, int]:
        uid = number % many.UIDS
        where = CompositeFilter(
            False,
            (
                FieldFilter(("assigned_miners",), Op.ARRAY_CONTAINS, uid),
                FieldFilter(("status",), Op.IN, statuses),
            ),
        )
        return Query(collection="tasks", where=where), wanted[uid]

    return await _query(options, query)


async def store_user(options: dict[str, Any]) -> Call:
    """Who an api key belongs to."""

    def query(number: int) -> tuple[Query, int]:
        key = many.api_key(number * 7 % options["users"])
        where = FieldFilter(("api_key",), Op.EQUAL, key)
        return Query(collection="users", where=where, limit=1), 1

    return await _query(options, query)


async def store_status(options: dict[str, Any]) -> Call:
    """The first tasks of a status, of one that few have and of one that a third has."""
    statuses = (many.OPEN[0], "completed")
    few = sum(many.task(number)["status"] == statuses[0] for number in range(many.SEED))

    def query(number: int) -> tuple[Query, int]:
        where = FieldFilter(("status",), Op.EQUAL, statuses[number % 2])
        count = LIMIT if number % 2 else min(LIMIT, few)
        return Query(collection="tasks", where=where, limit=LIMIT), count

    return await _query(options, query)


async def _query(options: dict[str, Any], query: Any) -> Call:
    store = await _store(options)

    async def call(number: int) -> None:
        asked, count = query(number)
        found = 0
        async for page in store.query(asked, timeout=TIMEOUT):
            found += len(crossfade_pb2.QueryReply.FromString(page.frames).documents)
        expect(found == count)

    return call


# --- a thousand documents ------------------------------------------------------------------------


async def store_put(options: dict[str, Any]) -> Call:
    """A page of the first copy: from documents to rows, versions and all."""
    lanes = await Lanes.open(options["dsn"], size=1)
    mirror = Mirror(lanes, MAPPINGS, many.DATABASE)
    documents = [data.fields(number) for number in range(PAGE)]
    pages = keys()
    await mirror.begin_copy(1, timeout=TIMEOUT)

    async def call(_: int) -> None:
        page = next(pages)
        images = [
            Image(f"tasks/{key}", fields, many.TIME, many.TIME)
            for key, fields in zip(page, documents, strict=True)
        ]
        put = await mirror.put_page(images, epoch=1, generation=1, token=1, timeout=TIMEOUT)
        expect(len(put) == PAGE)

    return call


async def copy_rows(options: dict[str, Any]) -> Call:
    """A COPY of the rows, which are there already, into the table alone."""
    lanes = await Lanes.open(options["dsn"], size=1)
    table = DocumentTables(MAPPINGS, many.DATABASE).of("tasks/1")
    columns = ["id", *(entry.column for entry in MAPPING.columns), "remainder", "misfits"]
    columns += ["create_time", "update_time", "epoch"]
    rows = [
        (*table.values("tasks/1", data.fields(number))[1:], many.TIME, many.TIME, 1)
        for number in range(PAGE)
    ]
    pages = keys()

    async def call(_: int) -> None:
        records = [(key, *row) for key, row in zip(next(pages), rows, strict=True)]
        async with lanes.acquire(TIMEOUT) as connection:
            copied = await connection.copy_records_to_table(
                "tasks", schema_name="violet", columns=columns, records=records
            )
        expect(copied == f"COPY {PAGE}")

    return call


def keys() -> Any:
    """Pages of ids that no other process uses, in no order, as Firestore's are."""
    for page in itertools.count():
        yield [
            f"{number * 2_654_435_761 % 2**32:08x}-{os.getpid()}-{page}" for number in range(PAGE)
        ]


async def _store(options: dict[str, Any]) -> PostgresStore:
    lanes = await Lanes.open(options["dsn"], size=LANES)
    await asyncio.gather(*(lanes.fetchval("select 1", timeout=5) for _ in range(LANES)))
    return PostgresStore(lanes, MAPPINGS, many.DATABASE)
