"""The genuine Node client: its smoke suite in tests/node, file by file, over both servers and
over a sidecar in every stage.
"""

from pathlib import Path

import pytest

from crossfade.plan import Stage
from tests import node_suite
from tests.postgres_fixture import MakeDatabase
from tests.sidecar import DATABASE, running

SUITE = Path(__file__).resolve().parent.parent / "node"
FILES = sorted(path.name for path in SUITE.glob("*.test.js"))
SECONDS = node_suite.INSTALL_SECONDS + node_suite.RUN_SECONDS


@pytest.fixture(scope="session")
def node() -> str:
    return node_suite.installed(SUITE)


@pytest.fixture(
    params=["embedded_firestore", pytest.param("official_emulator", marks=pytest.mark.official)]
)
def address(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("file", FILES)
async def test_node_client(node: str, address: str, file: str) -> None:
    await node_suite.run(node, "--test", file, folder=SUITE, FIRESTORE_EMULATOR_HOST=address)


@pytest.mark.timeout(SECONDS)
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
        await node_suite.run(node, "--test", file, folder=SUITE, **environment)


def test_every_file_of_the_suite_is_run():
    assert FILES == [
        "documents.test.js",
        "listeners.test.js",
        "queries.test.js",
        "transactions.test.js",
    ]


def test_the_lock_has_hashes_and_no_addresses():
    node_suite.assert_lock_has_hashes_and_no_addresses(SUITE)
