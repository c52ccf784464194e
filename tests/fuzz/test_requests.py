"""Hostile requests to every RPC: each is answered with a status that says why, in time, by a
server that lives on, says nothing on stderr and grows no further than its bound.

`CROSSFADE_FUZZ_REQUESTS` is how many at least, `CROSSFADE_FUZZ_SEED` which ones: the same
two figures hold the same conversations again. What fails is shrunk and printed with the
bytes that were sent.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.methods import methods
from tests.fuzz.mutations import Case, cases
from tests.fuzz.server import MEBIBYTE, Watched, watched
from tests.fuzz.talking import Ending, Outcome, Tokens, ask

REQUESTS = int(os.environ.get("CROSSFADE_FUZZ_REQUESTS", "3000"))
SEED = int(os.environ.get("CROSSFADE_FUZZ_SEED", "1"))
AT_ONCE = 12
"""Conversations side by side."""
PROGRESS_SECONDS = 5.0
WARM_UP = 0.25
"""The part of the requests after which the memory is taken as the start."""
GROWTH = 192 * MEBIBYTE
"""Documents that the requests leave behind, and their versions: some are a megabyte."""

DEFECTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,  # the connection broke: the server is gone
    grpc.StatusCode.DEADLINE_EXCEEDED,  # it hangs
}


def defect(outcome: Outcome, ending: Ending) -> str | None:
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
    sent = [data.hex() if len(data) < 600 else f"{data[:600].hex()}..." for data in outcome.sent]
    return f"{outcome.method.name}: {wrong}; sent {sent}"


class Fuzzing:
    """A server, the conversations held with it, and what has been counted. A server that is
    lost is started anew, so that hypothesis can look for the smallest case that kills it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._resources = ExitStack()
        self._runner = self._resources.enter_context(asyncio.Runner())
        self._servers = self._resources.enter_context(ExitStack())
        self._server: Watched | None = None
        self._channel: grpc.aio.Channel | None = None
        self._begun = self._said = time.monotonic()
        self.requests = 0
        self.statuses: dict[str, int] = {}
        self.warm: int | None = None
        self.resident = 0

    def close(self) -> None:
        self._lose()
        self._resources.close()

    def hold(self, held: list[Case]) -> None:
        """Holds the conversations side by side. Fails when one brings a defect to light."""
        try:
            self._runner.run(self._hold(held))
        except BaseException:
            self._lose()
            raise
        self._note()

    async def _hold(self, held: list[Case]) -> None:
        server, channel = await self._running()
        wrong = await asyncio.gather(*(self._converse(channel, case) for case in held))
        defects = [text for text in wrong if text is not None]
        try:
            await server.check(channel)
        except grpc.aio.AioRpcError as error:
            defects.append(f"afterwards a get ends with {error.code()}: {error.details()}")
        except AssertionError as error:
            defects.append(f"afterwards: {error}")
        assert not defects, "\n".join(defects)
        self.resident = server.resident()

    async def _converse(self, channel: grpc.aio.Channel, case: Case) -> str | None:
        tokens = Tokens()
        for name, messages in case.calls():
            outcome = await ask(channel, methods()[name], messages, tokens, case.ending)
            self.requests += len(outcome.sent)
            status = "hung up" if outcome.code is None else outcome.code.name
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if wrong := defect(outcome, case.ending):
                return wrong
        return None

    async def _running(self) -> tuple[Watched, grpc.aio.Channel]:
        if self._server is None or self._channel is None:
            self._server = self._servers.enter_context(watched(self._directory))
            self._channel = self._server.channel()
            await self._server.prepare()
        return self._server, self._channel

    def _lose(self) -> None:
        if self._channel is not None:
            self._runner.run(self._channel.close())
        self._server = self._channel = None
        self._servers.close()

    def _note(self) -> None:
        if self.warm is None and self.requests >= REQUESTS * WARM_UP:
            self.warm = self.resident
        if (now := time.monotonic()) - self._said > PROGRESS_SECONDS:
            self._said = now
            rate = self.requests / (now - self._begun)
            size = self.resident / MEBIBYTE
            print(f"{self.requests} requests, {rate:.0f}/s, {size:.0f} MiB", flush=True)


@pytest.fixture(scope="module")
def fuzzing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzing]:
    made = Fuzzing(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@pytest.mark.timeout(120 + REQUESTS // 20)
def test_hostile_requests_are_answered_and_the_server_goes_on(fuzzing: Any) -> None:
    print(f"\nCROSSFADE_FUZZ_SEED={SEED} CROSSFADE_FUZZ_REQUESTS={REQUESTS}", flush=True)

    @seed(SEED)
    @settings(
        max_examples=max(1, REQUESTS // AT_ONCE),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(cases(), min_size=AT_ONCE, max_size=AT_ONCE))
    def hold(held: list[Case]) -> None:
        fuzzing.hold(held)

    hold()
    print(f"{fuzzing.requests} requests answered: {dict(sorted(fuzzing.statuses.items()))}")
    assert fuzzing.requests >= REQUESTS
    growth = fuzzing.resident - fuzzing.warm
    print(f"{fuzzing.warm / MEBIBYTE:.0f} MiB when warm, {growth / MEBIBYTE:+.0f} MiB since")
    assert growth < GROWTH
