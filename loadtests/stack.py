"""A throwaway stack for the load test: `crossfade up` in a directory that goes away."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 30.0
READY = "sidecar "


class StackError(Exception):
    """The stack did not start; the message says what it said."""


@contextmanager
def start_stack(tasks: int) -> Iterator[str]:
    """The sidecar's HOST:PORT, filled with the sample of this many tasks, without traffic.
    Stopped and removed at the end. Raises StackError."""
    with tempfile.TemporaryDirectory(prefix="crossfade-load-") as directory:
        command = [
            str(Path(sys.executable).with_name("crossfade")),
            *("up", "--no-traffic", "--port", "0", "--tasks", str(tasks)),
            *("--data-dir", directory),
        ]
        with started(command, Path(directory) / "stderr.txt", READY) as (_, address):
            yield address


@contextmanager
def started(
    command: list[str], errors: Path, ready: str, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs a server: the process, and what it printed after `ready`. Raises StackError."""
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        try:
            yield process, _wait(process, command, errors, ready)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _wait(process: subprocess.Popen[str], command: list[str], errors: Path, ready: str) -> str:
    """Reads the pipe itself: a buffered readline would wait past the deadline."""
    if process.stdout is None:
        raise StackError("no pipe")
    name = " ".join([Path(command[0]).name, *command[1:3]])
    pipe, text = process.stdout.fileno(), b""
    ends = time.monotonic() + START_SECONDS
    while (left := ends - time.monotonic()) > 0:
        readable, _, _ = select.select([pipe], [], [], left)
        chunk = os.read(pipe, 65_536) if readable else b""
        if readable and not chunk:
            process.wait()
            lines = errors.read_text().strip().splitlines()
            said = [line for line in lines if line.startswith("crossfade: ")] or lines[-5:]
            raise StackError(f"{name} ended with {process.returncode}: {' / '.join(said)}")
        text += chunk
        for line in text.decode(errors="replace").splitlines(keepends=True):
            if line.startswith(ready) and line.endswith("\n"):
                return line.removeprefix(ready).strip()
    raise StackError(f'{name} did not print "{ready}..." within {START_SECONDS:.0f} s')
