"""The embedded Firestore as a process, watched: alive, quiet, and no larger than it may be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import psutil

from loadtests.bench import servers
from tests.fuzz import legal
from tests.fuzz.methods import methods
from tests.fuzz.talking import METADATA, OPTIONS

MEBIBYTE = 1 << 20
_HEALTH = "projects/health/databases/(default)"
_DOCUMENT = f"{_HEALTH}/documents/c/a"
_HEALTH_SECONDS = 10.0
_HEALTHY = [{"update": {"name": _DOCUMENT, "fields": {"n": {"integer_value": 1}}}}]
_SHOWN = 2_000


class Watched:
    """A running server."""

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

    def stderr(self) -> str:
        return self._errors.read_text(errors="replace")

    def is_alive(self) -> bool:
        return bool(self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)

    async def prepare(self) -> None:
        """Fills the database that is fuzzed, so that queries find something and use indexes,
        and another one, which nothing else touches, for `complaint`."""
        async with self.channel() as channel:
            for database, writes in ((_HEALTH, _HEALTHY), (legal.DATABASE, legal.documents())):
                request = methods()["Commit"].request(database=database, writes=writes)
                await channel.unary_unary(methods()["Commit"].path)(
                    request.SerializeToString(), timeout=_HEALTH_SECONDS, metadata=METADATA
                )

    async def complaint(self, channel: grpc.aio.Channel) -> str | None:
        """What is wrong with the server: it is gone, answers no get, or has said something
        on stderr, where a server that is well says nothing."""
        if not self.is_alive():
            return f"the server is gone: {self.stderr()[-_SHOWN:]}"
        get = methods()["GetDocument"]
        request = get.request(name=_DOCUMENT).SerializeToString()
        try:
            answer = await channel.unary_unary(get.path)(
                request, timeout=_HEALTH_SECONDS, metadata=METADATA
            )
        except grpc.aio.AioRpcError as error:
            return f"a get ends with {error.code().name}: {error.details()}"
        if get.response.FromString(answer).fields["n"].integer_value != 1:
            return "a get finds another document than was written"
        if said := self.stderr():
            return f"the server said: {said[-_SHOWN:]}"
        return None


@contextmanager
def watched(directory: Path) -> Iterator[Watched]:
    """Starts one; stopped at the end."""
    with servers.firestore(directory, embedded=True) as (_, pid, address):
        yield Watched(pid, address, directory / "firestore.txt")
