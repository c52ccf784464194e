"""What clients/*/examples print when they are run against a real sidecar."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crossfade.plan import Stage
from tests import node_suite
from tests.sidecar import Running, running

CLIENTS = Path(__file__).resolve().parent.parent.parent / "clients"
RUN_SECONDS = 60

PRINTED = {
    "python/examples/drop_in.py": "pending high\n",
    "python/examples/tasks.py": (
        "nobody else can create it\nprocessing 1\nfound True\ncounted 1\nleft None\n"
    ),
    "python/examples/unknown_outcome.py": "first: nobody knows\nsettled: True\npaid: 5\n",
    "python/examples/waiting.py": "pages 2 visits 8\nleft 0\n",
    "python/examples/watch.py": "there: ['hello']\nnew: ['anybody?']\ngone: 1\n",
    "typescript/examples/numbers.ts": (
        "plain: 1 9007199254740993n 1.5\nexact: 1n 9007199254740993n 1.5\nas it was: true\n"
    ),
    "typescript/examples/tasks.ts": (
        "nobody else can create it\nprocessing 1\npage 1: 2\npage 2: 1\ncounted 3\nleft undefined\n"
    ),
    "typescript/examples/watch.ts": "[ 'hello' ] 0\n[ 'anybody?' ] 0\n[] 1\n",
}


@pytest.fixture(scope="module")
async def stack(postgres_database) -> AsyncIterator[Running]:
    async with running(await postgres_database(), Stage.SHADOW, read_percent=100) as stack:
        await stack.copy()
        yield stack


@pytest.fixture(scope="module")
async def node() -> str:
    return await node_suite.compiled(CLIENTS / "typescript")


def of(suffix: str) -> list[str]:
    return [name for name in PRINTED if name.endswith(suffix)]


@pytest.mark.parametrize("name", of(".py"))
async def test_python_example(stack: Running, name: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CLIENTS / name),
        env=os.environ | {"CROSSFADE_TARGET": stack.sidecar.address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), RUN_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert output.decode() == PRINTED[name]
    assert process.returncode == 0


@pytest.mark.timeout(node_suite.INSTALL_SECONDS + node_suite.RUN_SECONDS)
@pytest.mark.parametrize("name", of(".ts"))
async def test_typescript_example(node: str, stack: Running, name: str):
    script = f"build/{name.removeprefix('typescript/').removesuffix('.ts')}.js"
    target = stack.sidecar.address
    folder = CLIENTS / "typescript"
    output = await node_suite.run(node, script, folder=folder, CROSSFADE_TARGET=target)
    assert output == PRINTED[name]


def test_every_example_is_run():
    found = {
        str(path.relative_to(CLIENTS))
        for client in ("python", "typescript")
        for path in (CLIENTS / client / "examples").iterdir()
        if path.suffix in {".py", ".ts"}
    }
    assert found == set(PRINTED)
