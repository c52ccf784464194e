"""violet's tasks through SQLAlchemy: the table filled by hand, and as an ORM class.

What an application without a sidecar would do: the bench's in-process cases.
"""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import registry
from sqlalchemy.schema import CreateSchema

from loadtests.bench import data
from violet.mapping import MAPPINGS, metadata, tasks

_MICROS = 1_765_269_015_123_456
_TIMES = {"create_time": _MICROS, "update_time": _MICROS, "epoch": 1}


def _the_mapping() -> Any:
    found = MAPPINGS.get(data.COLLECTION)
    if found is None:
        raise LookupError(data.COLLECTION)
    return found


MAPPING = _the_mapping()


class Task:
    """The ORM's class; its attributes are the table's columns."""

    task_id: str

    def __init__(self, **columns: Any) -> None:
        for name, value in columns.items():
            setattr(self, name, value)


registry().map_imperatively(Task, tasks)


def engine(dsn: str, size: int) -> AsyncEngine:
    url = dsn.replace("postgresql://", "postgresql+asyncpg://", 1)
    return create_async_engine(url, pool_size=size, max_overflow=0)


def row(number: int) -> dict[str, Any]:
    """The document as column values."""
    made = MAPPING.to_row(data.fields(number))
    columns = [entry.column for entry in MAPPING.columns]
    values = dict(zip(columns, made.values, strict=True))
    return {**values, **_TIMES, "id": data.task_id(number), "remainder": made.remainder}


async def fill(dsn: str) -> None:
    """Creates the table and writes every document."""
    target = engine(dsn, 1)
    async with target.begin() as connection:
        await connection.execute(CreateSchema("violet", if_not_exists=True))
        await connection.run_sync(metadata.create_all)
        for path in data.PARENTS:
            collection, _, key = path.partition("/")
            parent = metadata.tables[f"violet.{collection}"]
            await connection.execute(parent.insert(), {"id": key, **_TIMES})
        await connection.execute(tasks.insert(), [row(number) for number in range(data.COUNT)])
    async with target.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql("vacuum analyze")
    await target.dispose()
