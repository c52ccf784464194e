"""Conversations held with a server, side by side, and what they bring to light."""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import grpc
import grpc.aio

from tests.fuzz.methods import methods
from tests.fuzz.mutations import Case
from tests.fuzz.server import MEBIBYTE, Watched, watched
from tests.fuzz.talking import Ending, Message, Outcome, Tokens, ask

DEFECTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,  # the connection broke: the server is gone
    grpc.StatusCode.DEADLINE_EXCEEDED,  # it hangs
}
PROGRESS_SECONDS = 5.0
SHRINK_SECONDS = 60.0
MOST_FAILURES = 5
_SHOWN_BYTES = 600


def defect(outcome: Outcome, ending: Ending = Ending.PROPER) -> str | None:
    """What is wrong with an answer, and what was asked; None for a good one."""
    wrong = None
    if outcome.code in DEFECTS:
        wrong = f"{outcome.code.name}: {outcome.details}"
    elif outcome.code is grpc.StatusCode.CANCELLED and ending is Ending.PROPER:
        wrong = "cancelled by the server"
    elif outcome.unreadable is not None:
        wrong = f"an answer that is no {outcome.method.response.DESCRIPTOR.name}"
    if wrong is None:
        return None
    sent = [
        data[:_SHOWN_BYTES].hex() + ("..." if len(data) > _SHOWN_BYTES else "")
        for data in outcome.sent
    ]
    return f"{outcome.method.name}: {wrong}; sent {sent}"


class Holding:
    """A server and the conversations held with it. A server that showed a defect is replaced:
    its stderr is not empty any more, or it is gone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runner = asyncio.Runner()
        self._servers = ExitStack()
        self._server: Watched | None = None
        self._channel: grpc.aio.Channel | None = None
        self._begun = self._said = time.monotonic()
        self.requests = 0
        self.statuses: Counter[str] = Counter()
        self.failures: list[str] = []
        self.resident = 0
        """Bytes of the server's memory after the last conversations."""

    def close(self) -> None:
        self._lose()
        self._runner.close()

    def hold(self, held: list[Case]) -> None:
        """Holds the conversations side by side; a defect is added to the failures."""
        if len(self.failures) < MOST_FAILURES and (wrong := self._try(held)) is not None:
            self.failures.append(self._smallest(held, wrong))
            print(self.failures[-1], flush=True)
        now = time.monotonic()
        if now - self._said > PROGRESS_SECONDS:
            self._said = now
            rate, size = self.requests / (now - self._begun), self.resident / MEBIBYTE
            print(f"{self.requests} requests, {rate:.0f}/s, {size:.0f} MiB", flush=True)

    def _try(self, held: list[Case]) -> str | None:
        """What went wrong, if anything did."""
        wrong = self._runner.run(self._hold(held))
        if wrong is not None:
            self._lose()
        return wrong

    def _smallest(self, held: list[Case], wrong: str) -> str:
        """The failure as a single case with as few changes as show it, if one alone does."""
        ends = time.monotonic() + SHRINK_SECONDS
        for case in held:
            found = self._try([case])
            if found is None and time.monotonic() < ends:
                continue
            if found is None:
                break
            smaller = list(case.simpler())
            while smaller and time.monotonic() < ends:
                simple = smaller.pop()
                if (again := self._try([simple])) is not None:
                    case, found = simple, again
                    smaller = list(simple.simpler())
            return f"{case!r}\n{found}"
        return f"only together, or only once: {held!r}\n{wrong}"

    async def _hold(self, held: list[Case]) -> str | None:
        if self._server is None or self._channel is None:
            self._server = self._servers.enter_context(watched(self._directory))
            self._channel = self._server.channel()
            await self._server.prepare()
        channel = self._channel
        # Made before the first is sent: making one takes time, which is not the server's.
        made = [(case.calls(), case.ending) for case in held]
        found = await asyncio.gather(*(self._converse(channel, *one) for one in made))
        wrong = [text for text in found if text is not None]
        if (complaint := await self._server.complaint(channel)) is not None:
            wrong.append(f"afterwards {complaint}")
        else:
            self.resident = self._server.resident()
        return "\n".join(wrong) or None

    async def _converse(
        self, channel: grpc.aio.Channel, calls: list[tuple[str, list[Message]]], ending: Ending
    ) -> str | None:
        tokens = Tokens()
        for name, messages in calls:
            outcome = await ask(channel, methods()[name], messages, tokens, ending)
            self.requests += len(outcome.sent)
            self.statuses["hung up" if outcome.code is None else outcome.code.name] += 1
            if wrong := defect(outcome, ending):
                return wrong
        return None

    def _lose(self) -> None:
        if self._channel is not None:
            self._runner.run(self._channel.close())
        self._server = self._channel = None
        self._servers.close()
