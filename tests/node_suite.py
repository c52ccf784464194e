"""Runs JavaScript with Node: for the tests of what speaks to this project's servers from there.

Node and npm have to be installed, and the first run fetches packages from the npm registry.
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

OLDEST = 18
INSTALL_SECONDS = 240
RUN_SECONDS = 100


def installed(folder: Path) -> str:
    """The path of a Node that can run what lies in the folder, whose packages are installed.
    Skips without it."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        _missing("node and npm are needed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.strip().removeprefix("v").partition(".")[0]) < OLDEST:
        _missing(f"node {OLDEST} or newer is needed; this is {version.stdout.strip()}")
    # What was installed, beside it: another lock is installed anew.
    stamp = folder / "node_modules" / ".installed"
    lock = (folder / "package-lock.json").read_text()
    if not stamp.exists() or stamp.read_text() != lock:
        npm = subprocess.run(
            # No package of the locks needs a script of its own to run.
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if npm.returncode != 0:
            _missing(f"npm ci failed: {npm.stderr.strip()[-500:]}")
        stamp.write_text(lock)
    return found


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CROSSFADE_REQUIRE_NODE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


async def compiled(folder: Path) -> str:
    """As `installed`; what the folder has in TypeScript is compiled."""
    node = installed(folder)
    await run(node, "node_modules/typescript/bin/tsc", folder=folder)
    return node


async def run(node: str, *arguments: str, folder: Path, **environment: str) -> str:
    """What Node prints; fails where it does not end well. The servers may run on this loop:
    nothing here blocks it."""
    process = await asyncio.create_subprocess_exec(
        node,
        *arguments,
        cwd=folder,
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
    return output.decode()


def assert_lock_has_hashes_and_no_addresses(folder: Path) -> None:
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    fetched = {name: package for name, package in packages.items() if name}
    assert fetched
    assert all(package.get("integrity") for package in fetched.values())
    assert not any("resolved" in package for package in packages.values())
