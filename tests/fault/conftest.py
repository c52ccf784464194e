"""The stores of the fault tests: processes of their own, which a test may kill."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fault.world import Server, servers

collect_ignore = [] if os.environ.get("FAULT_ALL") else ["test_long_faults.py"]


@pytest.fixture(scope="session")
def fault_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="crossfade-fault-"))
    yield directory
    # Nobody waits for a thousand files of each database.
    subprocess.Popen([shutil.which("rm") or "rm", "-rf", str(directory)], start_new_session=True)


@pytest_asyncio.fixture(scope="session")
async def fault_server(fault_directory: Path) -> AsyncIterator[Server]:
    async with servers(fault_directory) as server:
        yield server
