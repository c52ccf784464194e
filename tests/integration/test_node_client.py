"""The genuine Node client: its smoke suite in tests/node, file by file, over both servers and
over a sidecar in every stage.

Node and npm have to be installed, and the first run fetches the client from the npm registry.
`CROSSFADE_REQUIRE_NODE=1` turns what is missing from a skip into a failure.
"""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from crossfade.plan import Stage
from tests.postgres_fixture import MakeDatabase
from tests.sidecar import DATABASE, running

SUITE = Path(__file__).resolve().parent.parent / "node"
LOCK = SUITE / "package-lock.json"
FILES = sorted(path.name for path in SUITE.glob("*.test.js"))
OLDEST = 18
INSTALL_SECONDS = 240
RUN_SECONDS = 100


@pytest.fixture(scope="session")
def node() -> str:
    """The path of a Node that can run the suite, which is installed. Skips without it."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        _missing("node and npm are needed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.strip().removeprefix("v").partition(".")[0]) < OLDEST:
        _missing(f"node {OLDEST} or newer is needed; this is {version.stdout.strip()}")
    # What was installed, beside it: another lock is installed anew.
    installed = SUITE / "node_modules" / ".installed"
    if not installed.exists() or installed.read_text() != LOCK.read_text():
        npm = subprocess.run(
            # No package of the lock needs a script of its own to run.
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=SUITE,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if npm.returncode != 0:
            _missing(f"npm ci failed: {npm.stderr.strip()[-500:]}")
        installed.write_text(LOCK.read_text())
    return found


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CROSSFADE_REQUIRE_NODE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(
    params=["embedded_firestore", pytest.param("official_emulator", marks=pytest.mark.official)]
)
def address(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS)
@pytest.mark.parametrize("file", FILES)
async def test_node_client(node: str, address: str, file: str) -> None:
    await run(node, file, {"FIRESTORE_EMULATOR_HOST": address})


@pytest.mark.timeout(INSTALL_SECONDS + RUN_SECONDS)
@pytest.mark.parametrize("stage", ["off", "shadow", "live", "complete"])
@pytest.mark.parametrize("file", FILES)
async def test_node_client_over_a_sidecar(
    node: str, postgres_database: MakeDatabase, file: str, stage: str
) -> None:
    first = Stage.OFF if stage == "off" else Stage.SHADOW
    # Nothing is waited for that long: a busy machine's pauses are no lost commits.
    async with running(await postgres_database(), first, read_percent=100, horizon=5.0) as stack:
        if stage != "off":
            await stack.copy()
        if stage in {"live", "complete"}:
            await stack.stage("live")
        if stage == "complete":
            await stack.stage("complete")
        environment = {
            "FIRESTORE_EMULATOR_HOST": stack.sidecar.address,
            "CROSSFADE_NODE_PROJECT": DATABASE.project,
        }
        if stage in {"live", "complete"}:  # PostgreSQL keeps no earlier versions
            environment["CROSSFADE_NODE_NO_PAST"] = "1"
        await run(node, file, environment)


async def run(node: str, file: str, environment: dict[str, str]) -> None:
    # The embedded server runs on this loop: nothing here may block it.
    process = await asyncio.create_subprocess_exec(
        node,
        *("--test", str(SUITE / file)),
        cwd=SUITE,
        env=os.environ | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), RUN_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()


def test_every_file_of_the_suite_is_run():
    assert FILES == [
        "documents.test.js",
        "listeners.test.js",
        "queries.test.js",
        "transactions.test.js",
    ]


def test_the_lock_has_hashes_and_no_addresses():
    packages = json.loads(LOCK.read_text())["packages"]
    fetched = {name: package for name, package in packages.items() if name}
    assert fetched
    assert all(package.get("integrity") for package in fetched.values())
    assert not any("resolved" in package for package in packages.values())
