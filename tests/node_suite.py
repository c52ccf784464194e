"""Runs JavaScript with Node: for the tests of what speaks to this project's servers from there.

Node and npm have to be installed, and the first run fetches packages from the npm registry.
`CROSSFADE_REQUIRE_NODE=1` turns what is missing from a skip into a failure.
"""

import asyncio
import fcntl
import hashlib
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
    with (folder / "package-lock.json").open() as locked:
        # Tests run in several processes; one installs, the others wait for it.
        fcntl.flock(locked, fcntl.LOCK_EX)
        _install(folder, locked.read())
    return found


def _install(folder: Path, lock: str) -> None:
    # What was installed, beside it: another lock is installed anew.
    stamp = folder / "node_modules" / ".installed"
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


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CROSSFADE_REQUIRE_NODE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


async def compiled(folder: Path) -> str:
    """As `installed`; what the folder has in TypeScript is compiled."""
    node = installed(folder)
    with (folder / "package-lock.json").open() as locked:
        await asyncio.to_thread(fcntl.flock, locked, fcntl.LOCK_EX)
        stamp, sources = folder / "node_modules" / ".compiled", _digest(folder)
        if not stamp.exists() or stamp.read_text() != sources:
            await run(node, "node_modules/typescript/bin/tsc", folder=folder)
            stamp.write_text(sources)
    return node


def _digest(folder: Path) -> str:
    """Of everything that TypeScript would compile."""
    found = hashlib.sha256((folder / "tsconfig.json").read_bytes())
    for source in sorted(folder.rglob("*.ts")):
        if "node_modules" not in source.parts and not source.name.endswith(".d.ts"):
            found.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return found.hexdigest()


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
