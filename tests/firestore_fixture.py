"""Firestores for tests: the embedded one, and the official emulator where it is there.

`CROSSFADE_TEST_FIRESTORE=host:port` names an official emulator that runs already.
`CROSSFADE_REQUIRE_OFFICIAL=1` turns its absence from a skip into an error.
"""

import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from crossfade.document import Database
from crossfade.rpc import firestore_v1
from crossfade.stores.memory import MemoryStores

_PACKAGE = "google-cloud-cli-firestore-emulator"
_MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
_numbers = itertools.count(1)


def fresh_database() -> Database:
    """A database that no test has used; both Firestores make it when it is first named."""
    return Database(f"crossfade-{os.getpid()}-{next(_numbers)}")


@pytest_asyncio.fixture(scope="session")
async def embedded_firestore() -> AsyncIterator[str]:
    """host:port of an embedded Firestore."""
    server = await firestore_v1.serve(MemoryStores(), "127.0.0.1", 0)
    yield server.address
    await server.stop(0)


@pytest.fixture(scope="session")
def official_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of the official emulator; skips without it."""
    if given := os.environ.get("CROSSFADE_TEST_FIRESTORE"):
        yield given
        return
    jar = _find_jar()
    if jar is None or shutil.which("java") is None:
        reason = f"no official Firestore emulator: Debian package {_PACKAGE} and java are needed"
        if os.environ.get("CROSSFADE_REQUIRE_OFFICIAL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    port = _free_port()
    log = tmp_path_factory.mktemp("emulator") / "log"
    command = ["java", "-Xmx512m", "-Duser.language=en", "-cp", str(jar), _MAIN]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "start", "--host=127.0.0.1", f"--port={port}"], stdout=out, stderr=out
        )
    try:
        _wait(process, port, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _find_jar() -> Path | None:
    if shutil.which("dpkg") is None:
        return None
    listed = subprocess.run(["dpkg", "-L", _PACKAGE], capture_output=True, text=True, check=False)
    jars = [line for line in listed.stdout.splitlines() if line.endswith(".jar")]
    return Path(jars[0]) if jars else None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"the official emulator did not start: {log.read_text()[-500:]}")
