"""The installed command, as a user and an init system meet it: words, exit codes, signals."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest

from crossfade.document import Database
from crossfade.rpc import firestore_v1
from crossfade.stores.memory import MemoryStore, MemoryStores
from crossfade_api.v1 import admin_pb2, admin_pb2_grpc
from crossfade_client import AsyncCrossfade
from tests.postgres_fixture import MakeDatabase, with_database
from tests.sidecar import eventually

COMMAND = Path(sys.executable).with_name("crossfade")
DATABASE = Database("shop")
PASSWORD = "s3cret"
NOWHERE = f"postgresql://u:{PASSWORD}@127.0.0.1:1/violet"
SEEDS = ("DATABASE_", "MIGRATION_", "FIRESTORE_", "GOOGLE_", "CROSSFADE_")
SECONDS = 30


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what would be settings."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith(SEEDS)}
    return bare | {"COLUMNS": "200"} | variables


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


async def started(directory: Path, *arguments: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        cwd=directory,
        env=environment(**variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finished(process: asyncio.subprocess.Process) -> Ended:
    try:
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def run(directory: Path, *arguments: str, **variables: str) -> Ended:
    return await finished(await started(directory, *arguments, **variables))


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "about"),
    [
        ("up", "whole stack"),
        ("serve", "sidecar"),
        ("firestore", "Firestore's protocol"),
        ("rehearse", "every stage"),
        ("settings", "settings in force"),
    ],
)
async def test_help_says_what_a_command_does_and_shows_an_example(tmp_path, command, about):
    ended = await run(tmp_path, command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert about in ended.out
    assert f"Usage: crossfade {command}" in ended.out
    assert "Example:" in ended.out
    assert f"crossfade {command}" in ended.out.partition("Example:")[2]


async def test_help_of_all_names_every_command(tmp_path):
    ended = await run(tmp_path, "--help")
    assert ended.code == 0
    assert all(name in ended.out for name in ("up", "serve", "firestore", "rehearse", "settings"))
    assert "Exit codes" in ended.out


DUAL = {"DATABASE_TYPE": "dual", "DATABASE_URL": NOWHERE}
REFUSALS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "another kind of URL": (
        {"DATABASE_URL": f"mysql://u:{PASSWORD}@h/d"},
        ("DATABASE_URL", '"mysql://"', "postgresql://USER:PASSWORD@HOST"),
    ),
    "a URL that cannot be read": (
        {"DATABASE_URL": f"postgresql://u:{PASSWORD}/x@h/d"},
        ("DATABASE_URL", "percent-encoded"),
    ),
    "PostgreSQL is not there": (DUAL, ("127.0.0.1:1/violet", "cannot be reached")),
    "an unknown setting": (
        {"CROSSFADE_SERVER__PROT": "1"},
        ("CROSSFADE_SERVER__PROT", '"port"'),
    ),
    "one underscore too few": (
        {"CROSSFADE_SERVER_PORT": "1"},
        ("CROSSFADE_SERVER_PORT", "CROSSFADE_SERVER__PORT"),
    ),
    "an unknown type": (
        {"DATABASE_TYPE": PASSWORD},
        ("DATABASE_TYPE", "firestore, postgresql, dual"),
    ),
    "dual without PostgreSQL": ({"DATABASE_TYPE": "dual"}, ("DATABASE_TYPE=dual", "DATABASE_URL")),
    "dual without dual writing": (
        DUAL | {"MIGRATION_DUAL_WRITE": "false"},
        ("DATABASE_TYPE=dual", "MIGRATION_DUAL_WRITE=false", "true"),
    ),
    "one store alone, the other read first": (
        DUAL | {"DATABASE_TYPE": "firestore", "MIGRATION_READ_PRIMARY": "postgresql"},
        ("DATABASE_TYPE=firestore", "MIGRATION_READ_PRIMARY=postgresql"),
    ),
    "the end, and dual writing": (
        DUAL | {"DATABASE_TYPE": "postgresql", "MIGRATION_DUAL_WRITE": "true"},
        ("DATABASE_TYPE=postgresql", "MIGRATION_DUAL_WRITE=true"),
    ),
}


def expect_sentence(ended: Ended, *words: str) -> None:
    """Exit code 2, and on stderr one sentence that says what to change."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert ended.err.startswith("crossfade: ")
    assert len(ended.err.splitlines()) == 1, ended.err
    for word in words:
        assert word in ended.err
    assert PASSWORD not in ended.err


@pytest.mark.parametrize("what", REFUSALS)
async def test_what_makes_a_start_impossible_is_said_in_one_sentence(tmp_path, what):
    variables, words = REFUSALS[what]
    expect_sentence(await run(tmp_path, "serve", **variables), *words)


async def test_a_missing_database_is_named(tmp_path, postgres_url):
    ended = await run(
        tmp_path, "serve", DATABASE_TYPE="dual", DATABASE_URL=with_database(postgres_url, "nowhere")
    )
    expect_sentence(ended, "/nowhere", "no such database", "create it")


async def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ended = await run(tmp_path, "serve", "--port", port, FIRESTORE_EMULATOR_HOST="127.0.0.1:1")
        expect_sentence(ended, f"port {port}", "--port")
        expect_sentence(await run(tmp_path, "firestore", "--port", port), f"port {port}", "--port")


async def test_an_unknown_word_in_the_file_is_named_with_its_place(tmp_path):
    (tmp_path / "crossfade.toml").write_text("[shadow]\nworkrs = 3\n")
    expect_sentence(await run(tmp_path, "serve"), "[shadow]", "workrs", '"workers"')


# --- serving -------------------------------------------------------------------------------------

SHADOW = {
    "DATABASE_TYPE": "dual",
    "MIGRATION_READ_PRIMARY": "firestore",
    "MIGRATION_DUAL_WRITE": "true",
}
LIVE = {"MIGRATION_READ_PRIMARY": "postgresql"}
ROLLED_BACK = SHADOW | {"DATABASE_TYPE": "firestore"}


class Served:
    """A running `crossfade serve`."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.client = AsyncCrossfade(address, timeout=10.0)
        self._channel = grpc.aio.insecure_channel(address)
        self.admin: Any = admin_pb2_grpc.AdminStub(self._channel)

    async def stage(self) -> str:
        return str((await self.admin.GetStatus(admin_pb2.GetStatusRequest())).stage)

    async def set_stage(self, stage: str) -> None:
        await self.admin.SetStage(admin_pb2.SetStageRequest(stage=stage, force=True))

    async def copy(self) -> None:
        async for _ in self.admin.Copy(admin_pb2.CopyRequest()):
            pass

    async def reaches(self, stage: str) -> None:
        async def reached() -> bool:
            return await self.stage() == stage

        await eventually(reached)

    async def close(self) -> None:
        await self.client.close()
        await self._channel.close()


class Place:
    """Both stores, and a directory to serve from."""

    def __init__(self, directory: Path, url: str, emulator: str, firestore: MemoryStore) -> None:
        self.url = url
        self.firestore = firestore
        self._directory = directory
        self._emulator = emulator

    @asynccontextmanager
    async def serving(self, **variables: str) -> AsyncIterator[Served]:
        """From the line that says where it listens to the exit after SIGTERM, which is 0."""
        process = await started(
            self._directory,
            "serve",
            "--port",
            "0",
            DATABASE_URL=self.url,
            FIRESTORE_EMULATOR_HOST=self._emulator,
            GOOGLE_CLOUD_PROJECT=DATABASE.project,
            **variables,
        )
        assert process.stdout is not None
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), SECONDS)).decode()
            assert line.startswith("sidecar 127.0.0.1:"), await finished(process)
            served = Served(process, line.split()[1])
            try:
                yield served
            finally:
                await served.close()
            if process.returncode is None:  # a test may have killed it
                process.send_signal(signal.SIGTERM)
                ended = await finished(process)
                assert ended.code == 0, ended.err
                assert "Traceback" not in ended.err
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture
async def place(tmp_path: Path, postgres_database: MakeDatabase) -> AsyncIterator[Place]:
    stores = MemoryStores()
    server = await firestore_v1.serve(stores, "127.0.0.1", 0)
    yield Place(tmp_path, await postgres_database(), server.address, stores(DATABASE))
    await server.stop(0)


async def test_the_plan_there_and_its_immediate_rollback(place):
    connection = await asyncpg.connect(place.url)
    await connection.execute("drop schema crossfade cascade; drop schema violet cascade")
    await connection.close()
    async with place.serving(**SHADOW) as served:
        assert await served.stage() == "shadow"
        await served.client.set("tasks/1", {"n": 1})
        assert (await served.client.get("tasks/1")).fields == {"n": 1}
        await served.copy()
    assert place.firestore.read("tasks/1").fields == {"n": 1}

    async with place.serving(**SHADOW | LIVE) as served:
        await served.reaches("live")
        await served.client.set("tasks/1", {"n": 2})

    async with place.serving(**ROLLED_BACK) as served:
        await served.reaches("off")
        # What was acknowledged in live is not lost on the way back.
        assert (await served.client.get("tasks/1")).fields == {"n": 2}
        assert place.firestore.read("tasks/1").fields == {"n": 2}
        await served.client.set("tasks/1", {"n": 3})
    assert place.firestore.read("tasks/1").fields == {"n": 3}


async def test_the_rollback_of_a_sidecar_that_was_killed_loses_nothing(place):
    lease = {"CROSSFADE_RECOPY__LEASE": "1"}
    async with place.serving(**SHADOW) as served:
        await served.copy()
    async with place.serving(**SHADOW | LIVE | lease) as served:
        await served.reaches("live")
        await asyncio.gather(*(served.client.set(f"tasks/{n}", {"n": n}) for n in range(50)))
        served.process.kill()
        await served.process.wait()
    async with place.serving(**ROLLED_BACK, **lease) as served:
        await served.reaches("off")
        for n in range(50):
            assert place.firestore.read(f"tasks/{n}").fields == {"n": n}


async def test_a_restart_does_not_undo_what_an_operator_set(place):
    async with place.serving(**SHADOW) as served:
        await served.set_stage("off")
    async with place.serving(**SHADOW) as served:
        await served.client.set("tasks/1", {"n": 1})
        assert await served.stage() == "off"


async def test_a_request_that_was_refused_is_tried_again_at_the_next_start(place):
    live = SHADOW | LIVE
    async with place.serving(**SHADOW) as served:
        await served.client.set("tasks/1", {"n": 1})
    async with place.serving(**live) as served:
        # Nothing has been copied yet.
        await asyncio.sleep(0.3)
        assert await served.stage() == "shadow"
        await served.copy()
    async with place.serving(**live) as served:
        await served.reaches("live")
        assert (await served.client.get("tasks/1")).fields == {"n": 1}
