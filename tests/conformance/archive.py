"""The source archive of the installed client library, fetched once."""

import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.conformance.judge import ConformanceError

PACKAGE = "google-cloud-firestore"
DOWNLOAD_SECONDS = 300


def system_tests(build: Path, lock: Path) -> Path:
    """The directory with the client's system tests, for the version installed here.

    Fetched by pip when build/ does not have it yet, and only if its hash is in the lock:
    the tests are code that runs on this machine. Raises ConformanceError.
    """
    installed = version(PACKAGE)
    unpacked = build / f"{PACKAGE}-{installed}"
    if not unpacked.exists():
        build.mkdir(parents=True, exist_ok=True)
        pin = pinned(lock.read_text(), installed)
        with tempfile.TemporaryDirectory(dir=build) as directory:
            unpack(_download(pin, Path(directory)), Path(directory) / "unpacked")
            # Last, so that what is there is whole.
            (Path(directory) / "unpacked").rename(unpacked)
    return unpacked / "tests" / "system"


def pinned(lock: str, installed: str) -> str:
    """The client's lines in the lock, hashes included."""
    entry = re.search(rf"^{PACKAGE}==(\S+)(?: \\\n +--hash=\S+)+$", lock, re.MULTILINE)
    if entry is None or entry[1] != installed:
        raise ConformanceError(f"{PACKAGE} {installed} is installed and not in the lock")
    return entry[0]


def _download(pin: str, directory: Path) -> Path:
    requirements = directory / "requirements.txt"
    requirements.write_text(pin + "\n")
    pip = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", PACKAGE, "--require-hashes"),
            *("--dest", str(directory), "--requirement", str(requirements)),
        ],
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_SECONDS,
        check=False,
    )
    archives = list(directory.glob("*.tar.gz"))
    if pip.returncode != 0 or len(archives) != 1:
        raise ConformanceError(f"pip could not fetch the archive: {pip.stderr.strip()[-500:]}")
    return archives[0]


def unpack(archive: Path, to: Path) -> None:
    """What lies below tests/system in the archive, without the archive's own top directory."""
    with tarfile.open(archive) as tar:
        members = []
        for member in tar.getmembers():
            top, _, inner = member.name.partition("/")
            if top and inner.startswith("tests/system/"):
                members.append(member.replace(name=inner))
        if not members:
            raise ConformanceError("the archive has no tests/system")
        tar.extractall(to, members, filter="data")
