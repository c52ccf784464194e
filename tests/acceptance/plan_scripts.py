"""The table of operations.md that says which command replaces which script of the migration
plan: every command of it is run, in its order, on one pair of databases."""

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from crossfade import backfill_commands, validate_commands
from crossfade.cli import main
from crossfade.plan import Stage, StoreName
from crossfade.rehearse import load
from crossfade.rpc import firestore_v1
from crossfade.stores.firestore import connect
from crossfade.stores.memory import MemoryStores
from tests.postgres_fixture import with_database
from tests.sidecar import DATABASE, Running, beside
from violet import sample

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
SECTION = re.compile(r"## Which command replaces which script\n(.*?)\n## ", re.DOTALL)
SCHEMA = ("crossfade schema create", "crossfade schema check")
FINDS = {"crossfade validate --strict"}
"""The sample's references dangle, on purpose: this ends with 1."""
CHECKED = {"crossfade stage set live", "crossfade stage set complete"}
"""What a minute of a test cannot show to the checks of these is passed over."""


def commands() -> list[str]:
    """Of the last column, from above."""
    found = SECTION.search(PAGE)
    assert found is not None
    rows = [line for line in found[1].splitlines() if line.startswith("| ")][1:]
    return [each for row in rows for each in re.findall(r"`(crossfade [^`]+)`", row.split("|")[3])]


@pytest.fixture
async def empty(postgres_url: str) -> Any:
    """A database with nothing in it."""
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("create database plan_scripts")
    yield with_database(postgres_url, "plan_scripts")
    await admin.execute("drop database plan_scripts with (force)")
    await admin.close()


async def test_every_command_that_replaces_a_script_does_so(
    empty: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", empty)
    monkeypatch.setenv("CROSSFADE_MIGRATION__MAPPINGS", "violet")
    for module in (backfill_commands, validate_commands):
        # In a thread of this process, which takes no signals.
        monkeypatch.setattr(module, "run_until_told", lambda run, **_: asyncio.run(run()))
    stores = MemoryStores()
    server = await firestore_v1.serve(stores, "127.0.0.1", 0)
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", server.address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", DATABASE.project)
    documents = dict(sample.documents(5, 20))
    direct = connect(DATABASE, server.address)
    await load(direct, documents.items())
    await direct.close()

    async def type_in(command: str) -> None:
        words = shlex.split(command)[1:] + (["--force"] if command in CHECKED else [])
        code = await asyncio.to_thread(main, words)
        assert code == (1 if command in FINDS else 0), (command, capsys.readouterr())

    typed = commands()
    assert typed[:2] == list(SCHEMA)
    for command in SCHEMA:
        await type_in(command)
    async with beside(stores, server, empty, Stage.OFF) as stack:
        monkeypatch.setenv("CROSSFADE_ADDRESS", stack.sidecar.address)
        seen = []
        for command in typed[2:]:
            await type_in(command)
            seen.append(stack.sidecar.control.snapshot.stage)
        assert {Stage.DUAL_WRITE, Stage.LIVE, Stage.COMPLETE} <= set(seen)
        assert seen.index(Stage.LIVE) < len(seen) - seen[::-1].index(Stage.SHADOW), "and back"
        assert await held(stack) == len(documents)
    await server.stop(0)
    assert (tmp_path / "DIRECTORY" / "manifest.json").exists()
    assert len(list((tmp_path / "validation").glob("*.html"))) >= 3


async def held(stack: Running) -> int:
    """How many documents PostgreSQL holds."""
    found = await stack.sql.fetchval("select count(*) from crossfade.versions where live")
    assert stack.sidecar.control.snapshot.authority is StoreName.POSTGRESQL
    return int(found)
