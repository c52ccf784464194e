"""The schema is made once, by any number of sidecars."""

import asyncio

import asyncpg

from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.schema import create_schema, statements
from tests.postgres_fixture import MakeDatabase, with_database
from violet.mapping import MAPPINGS


async def test_concurrent_creation_of_everything(
    postgres_url: str, postgres_database: MakeDatabase
):
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("create database fresh_schema")
    url = with_database(postgres_url, "fresh_schema")
    several = [await Lanes.open(url, size=1) for _ in range(4)]
    try:
        await asyncio.gather(*(create_schema(lanes, MAPPINGS) for lanes in several))
        found = await several[0].fetch(
            """select table_schema || '.' || table_name as name from information_schema.tables
            where table_schema in ('crossfade', 'violet') order by 1""",
            timeout=5,
        )
        assert [row["name"] for row in found] == [
            "crossfade.applied",
            "crossfade.attempts",
            "crossfade.audit",
            "crossfade.budget",
            "crossfade.certificates",
            "crossfade.control",
            "crossfade.documents",
            "crossfade.figures",
            "crossfade.findings",
            "crossfade.job_letters",
            "crossfade.job_partitions",
            "crossfade.jobs",
            "crossfade.mismatches",
            "crossfade.pages",
            "crossfade.pending",
            "crossfade.ramps",
            "crossfade.requests",
            "crossfade.versions",
            *sorted(f"violet.{mapping.table.name}" for mapping in MAPPINGS),
        ]
        rows = await several[0].fetchval("select count(*) from crossfade.control", timeout=5)
        assert rows == 0
    finally:
        for lanes in several:
            await lanes.close()
        await admin.execute("drop database fresh_schema with (force)")
        await admin.close()


def test_every_statement_may_be_repeated():
    assert all("IF NOT EXISTS" in statement for statement in statements(MAPPINGS))
