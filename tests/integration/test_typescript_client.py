"""The TypeScript client: its own tests and examples, the real sidecar behind them."""

import math
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from crossfade.plan import Stage
from crossfade_client import GeoPoint
from tests import node_suite
from tests.sidecar import Running, running

CLIENT = Path(__file__).resolve().parent.parent.parent / "clients" / "typescript"
TESTS = sorted(path.stem for path in (CLIENT / "test").glob("*.test.ts"))

pytestmark = pytest.mark.timeout(node_suite.INSTALL_SECONDS + node_suite.RUN_SECONDS)


@pytest.fixture(scope="module")
async def node() -> str:
    return await node_suite.compiled(CLIENT)


@pytest.fixture(scope="module")
async def stack(postgres_database) -> AsyncIterator[Running]:
    """PostgreSQL answers what it can show to be fresh, Firestore the rest."""
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        yield stack


@pytest.mark.parametrize("name", TESTS)
async def test_typescript_client(node: str, stack: Running, name: str):
    target = stack.sidecar.address
    script = f"build/test/{name}.js"
    await node_suite.run(node, "--test", script, folder=CLIENT, CROSSFADE_TARGET=target)


def test_every_file_of_the_suite_is_run():
    names = ["calls", "codec", "query", "sidecar", "violet", "watching", "writes"]
    assert [f"{name}.test" for name in names] == TESTS


async def test_what_python_wrote_is_the_same_after_typescript(node: str, stack: Running):
    await stack.client.set("typescript/from", {})
    fields = {
        "none": None,
        "flags": [True, False],
        "integers": [1, -(2**63), 2**63 - 1],
        "doubles": [1.0, -0.0, 0.1, math.inf, 5e-324],
        "text": "naïve \U0001f600 \0",
        "bytes": b"\x00\xff",
        "times": [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 1, 2, 3, 456_789, UTC)],
        "reference": (await stack.client.get("typescript/from")).reference,
        "place": GeoPoint(-90.0, 180.0),
        "vector": {"__type__": "__vector__", "value": [1.0, -0.5]},
        "map": {"a.b": [{"c": []}], "constructor": {}, "`": 1},
    }
    await stack.client.set("typescript/from", fields)
    await node_suite.run(
        node,
        *("build/test/echo.js", "typescript/from", "typescript/to"),
        folder=CLIENT,
        CROSSFADE_TARGET=stack.sidecar.address,
    )
    found = (await stack.client.get("typescript/to")).fields
    assert spelled(found) == spelled(fields)


def spelled(value: Any) -> Any:
    """So that 1 and 1.0, 0.0 and -0.0 differ."""
    if isinstance(value, dict):
        return {name: spelled(item) for name, item in value.items()}
    return [spelled(item) for item in value] if isinstance(value, list) else repr(value)


def test_the_generated_code_is_current(node: str):
    check = subprocess.run(
        [sys.executable, str(CLIENT / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_lock_has_hashes_and_no_addresses():
    node_suite.assert_lock_has_hashes_and_no_addresses(CLIENT)
