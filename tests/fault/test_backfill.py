"""20,000 documents, hostile ones among them, copied and validated by commands that are killed at
every step, beside writers and deleters."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from crossfade.document import collection_id, identical
from crossfade.plan import Stage, StoreName
from crossfade.query import Query
from crossfade.store import DocumentStore
from crossfade.wire import decode_document
from crossfade.write import Write
from crossfade_api.v1.crossfade_pb2 import QueryReply
from crossfade_client import CrossfadeError
from tests.sidecar import DATABASE, Running, running
from tests.strategies import SCALARS, VECTORS
from violet import sample, tables

ROOT = Path(__file__).resolve().parents[2]
TASKS = 8_550
"""Which makes 20,000 documents."""
VALIDATION = "validate.counted:kill:5"
KILLS = ("backfill.read:kill:4", "backfill.put:kill:9", "backfill.read:kill:25")
SHARED = 60
"""Documents that everybody writes and deletes all the time."""


def _environment(made: Running, fail_point: str) -> dict[str, str]:
    return os.environ | {
        "FIRESTORE_EMULATOR_HOST": made.firestore_server.address,
        "GOOGLE_CLOUD_PROJECT": DATABASE.project,
        "DATABASE_URL": made.url,
        "FAULT_CLAIM": "1",
        "CROSSFADE_FAIL_POINT": fail_point,
    }


async def _crossfade(made: Running, *words: str, fail_point: str = "") -> Process:
    command = (sys.executable, "-m", "tests.fault.child", *words, "--json", "--workers", "3")
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=_environment(made, fail_point), stdout=PIPE, stderr=DEVNULL
    )


def _hostile() -> dict[str, Any]:
    """In every column of some tables each kind of value, whatever the column is for, and the same
    where no column is; under names that need care."""
    found: dict[str, Any] = {}
    for number, value in enumerate([*SCALARS, *VECTORS]):
        beside = {"odd\0key": value, "$m": value, "deep": {"`a.b": [1, {"ä": value}]}}
        for table in (tables.tasks, tables.users, tables.files):
            fields = dict.fromkeys(table.columns.keys(), value)
            found[f"{table.name}/hostile\0-{number}"] = fields | beside
        found[f"odd/__id{number}__"] = beside
    return found


async def _everything(store: DocumentStore, groups: set[str]) -> dict[str, Any]:
    """All documents of these collection ids, by path."""
    found: dict[str, Any] = {}
    for name in sorted(groups):
        query = Query(collection=name, all_descendants=True)
        async for page in store.query(query, timeout=60):
            for message in QueryReply.FromString(page.frames).documents:
                document = decode_document(message, DATABASE)
                found[document.path] = document.fields
    return found


async def _writes(made: Running, ended: asyncio.Event, seed: int) -> int:
    """Sets, changes and deletes documents of a mapped and of an unmapped collection."""
    random, count = Random(seed), 0
    while not ended.is_set():
        path = f"{random.choice(('tasks', 'notes'))}/shared-{random.randrange(SHARED)}"
        with suppress(CrossfadeError):
            if random.random() < 0.4:
                await made.client.delete(path)
            else:
                await made.client.set(path, {"n": count, "status": random.choice(("pending", "?"))})
            count += 1
        await asyncio.sleep(0.02)
    return count


@pytest.mark.timeout(400)
async def test_20_000_documents_are_copied_through_kills_beside_writers(
    postgres_database: Any, tmp_path: Path
):
    """Every document is counted once, none is missed, none that was deleted comes back, and no
    newer write is lost. Whoever is killed, wherever, is just started again."""
    async with running(await postgres_database(), Stage.DUAL_WRITE) as made:
        documents = dict(sample.documents(7, TASKS)) | _hostile()
        shared = {
            f"{name}/shared-{n}": {"old": n} for name in ("tasks", "notes") for n in range(SHARED)
        }
        writes = [Write(path, fields) for path, fields in (documents | shared).items()]
        for start in range(0, len(writes), 500):
            await made.memory.commit(writes[start : start + 500], timeout=60)
        assert len(documents) >= 20_000
        ended = asyncio.Event()
        writers = [asyncio.create_task(_writes(made, ended, seed)) for seed in range(2)]
        for point in KILLS:
            process = await _crossfade(made, "backfill", fail_point=point)
            await asyncio.wait_for(process.communicate(), 120)
            assert process.returncode == -signal.SIGKILL, point
        # Two processes share what is left.
        last = [await _crossfade(made, "backfill") for _ in range(2)]
        ends = [await asyncio.wait_for(process.communicate(), 200) for process in last]
        assert [process.returncode for process in last] == [0, 0]
        validation = ("validate", "--report", str(tmp_path))
        killed = await _crossfade(made, *validation, fail_point=VALIDATION)
        await asyncio.wait_for(killed.communicate(), 120)
        assert killed.returncode == -signal.SIGKILL
        ended.set()
        written = await asyncio.gather(*writers)
        assert min(written) > 10
        await made.settled(60)
        validated = await _crossfade(made, *validation)
        lines, _ = await asyncio.wait_for(validated.communicate(), 200)
        report = json.loads(lines.splitlines()[-1])["report"]
        assert (validated.returncode, report["samples"]) == (0, [])
        assert report["totals"]["match"] >= len(documents)
        assert await made.sql.fetchval("select count(*) from crossfade.certificates") == 1

        jobs = await made.sql.fetch("select id from crossfade.jobs where kind = 'backfill'")
        assert len(jobs) == 1
        told = json.loads(ends[0][0].splitlines()[-1])
        owned = made.sidecar.admin.copying["default"]
        assert owned is not None
        expected = Counter(collection_id(path) for path in documents)
        for row in jobs:
            job = await owned.jobs.get(row[0])
            assert job.state == "done"
            copied = {name: counts["copied"] for name, counts in job.counts.items()}
            for name in expected.keys() - {"tasks"}:
                assert copied[name] == expected[name], name
            assert expected["tasks"] <= copied["tasks"] <= expected["tasks"] + 2 * SHARED
        assert told["state"] == "done"

        groups = {*expected, "notes"}
        theirs = await _everything(made.memory, groups)
        ours = await _everything(made.sidecar.stores[StoreName.POSTGRESQL], groups)
        assert ours.keys() == theirs.keys()
        assert [path for path, found in theirs.items() if not identical(found, ours[path])] == []
        assert documents.keys() <= ours.keys()
        assert (await made.sidecar.status()).copied
