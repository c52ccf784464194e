"""The embedded Firestore as a process, watched: alive, quiet, and no larger than it may be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import psutil
from google.cloud.firestore_v1 import types

from loadtests.bench import servers
from tests.fuzz.methods import methods
from tests.fuzz.talking import METADATA, OPTIONS

MEBIBYTE = 1 << 20
_HEALTH = "projects/health/databases/(default)"
_DOCUMENT = f"{_HEALTH}/documents/c/a"
_HEALTH_SECONDS = 10.0


class Watched:
    """A running server. Its stderr has to stay empty: every line there is a complaint."""

    def __init__(self, pid: int, address: str, errors: Path) -> None:
        self.address = address
        self._process = psutil.Process(pid)
        self._errors = errors

    def channel(self) -> grpc.aio.Channel:
        """One with a connection of its own."""
        return grpc.aio.insecure_channel(
            self.address, options=(*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        )

    def resident(self) -> int:
        """Bytes of memory."""
        size: int = self._process.memory_info().rss
        return size

    def open_files(self) -> int:
        count: int = self._process.num_fds()
        return count

    def complaints(self) -> str:
        return self._errors.read_text(errors="replace")

    def is_alive(self) -> bool:
        return bool(self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)

    async def prepare(self) -> None:
        """Writes the document that `check` reads; nothing else touches its database."""
        write = {"update": {"name": _DOCUMENT, "fields": {"n": {"integer_value": 1}}}}
        request = types.CommitRequest.pb()(database=_HEALTH, writes=[write])
        async with self.channel() as channel:
            await channel.unary_unary(methods()["Commit"].path)(
                request.SerializeToString(), timeout=_HEALTH_SECONDS, metadata=METADATA
            )

    async def check(self, channel: grpc.aio.Channel) -> None:
        """Fails unless the server lives, answers a get and has said nothing on stderr."""
        assert self.is_alive(), f"the server is gone: {self.complaints()[-2_000:]}"
        request = types.GetDocumentRequest.pb()(name=_DOCUMENT)
        answer = await channel.unary_unary(methods()["GetDocument"].path)(
            request.SerializeToString(), timeout=_HEALTH_SECONDS, metadata=METADATA
        )
        found = types.Document.pb().FromString(answer)
        assert found.fields["n"].integer_value == 1
        assert not self.complaints(), self.complaints()[-2_000:]


@contextmanager
def watched(directory: Path) -> Iterator[Watched]:
    """Starts one; stopped at the end."""
    with servers.firestore(directory, embedded=True) as (_, pid, address):
        yield Watched(pid, address, directory / "firestore.txt")
