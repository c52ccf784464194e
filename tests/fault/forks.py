"""Processes that are forked from one which has imported everything: what a sidecar imports costs
a second of a core, and a test that kills sidecars pays it at every start.

The engine is Python's own fork server. What is forked runs the same command from its beginning,
with an environment, a session and a log of its own, and SIGKILL ends it as any other process.
"""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path

from tests.fault import child

PRELOAD = [
    "tests.fault.child",
    "crossfade.app",
    "crossfade.logs",
    "uvloop",
    "violet.mapping",
    "violet.service",
    "pytest",
]
"""pytest, because every process that Python forks so looks into the main module again."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(PRELOAD)


def end_with_the_parent() -> None:
    """In a child: SIGKILL when its parent is gone, however that ended (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Forked:
    """`crossfade` with these arguments, as subprocess.Popen as far as that is needed here."""

    def __init__(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path, cwd: Path
    ) -> None:
        log.touch()
        self._lock = threading.Lock()
        self._process = _CONTEXT.Process(
            target=_run, args=(list(arguments), dict(environment), log, cwd), daemon=True
        )
        _serve(environment["PYTHONPATH"])
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        with self._lock:  # the code can be read once
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        code = self.poll()
        if code is None and not connection.wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired("a forked sidecar", timeout or 0)
        code = self.poll()
        assert code is not None
        return code


def _serve(path: str) -> None:
    """The fork server, if it does not run: with the path that it imports by."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(arguments: list[str], environment: dict[str, str], log: Path, cwd: Path) -> None:
    """In the child."""
    end_with_the_parent()
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it is /dev/null
    # With them goes its end of a pipe by which the fork server lives: it shall end with the test.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["crossfade", *arguments]
    sys.exit(child.main())
