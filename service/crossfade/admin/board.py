"""Everything that the dashboard shows, made once for all who look, and sent as server-sent events.

Two kinds of events: `state`, the whole of what is so now, every two seconds and after each
change that was made over HTTP; and `points`, what is new for the plots. Nobody looks: nothing is
asked.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
import structlog

from crossfade.admin.history import History
from crossfade.errors import CrossfadeError, ResourceExhausted

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 2.0
SECTION_SECONDS = 8.0
"""Over what the methods allow PostgreSQL themselves: they know better what to say."""
MAX_VIEWERS = 32

Section = Callable[[], Awaitable[Any]]


class Board:
    """`sections` by name: what asks for one part of the state, and returns what becomes JSON.

    A part that cannot be asked for is None, and `unknown` says why: the rest is still shown.
    """

    def __init__(self, sections: Mapping[str, Section], history: History) -> None:
        self._sections = sections
        self._history = history
        self._state = b""
        self._serial = 0
        self._viewers = 0
        self._closed = False
        self._changed = asyncio.Condition()
        self._woken = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Something was changed: whoever looks sees it now, not with the next look."""
        self._woken.set()

    async def state(self) -> dict[str, Any]:
        """All sections, side by side: while a store hangs, each would wait for it anew."""
        found: dict[str, Any] = {"at": time.time()}
        unknown: dict[str, str] = {}

        async def ask(name: str, section: Section) -> None:
            found[name] = None
            try:
                async with asyncio.timeout(SECTION_SECONDS):
                    found[name] = await section()
            except CrossfadeError as error:
                unknown[name] = str(error)
            except TimeoutError:
                unknown[name] = f"no answer within {SECTION_SECONDS:g} s"

        await asyncio.gather(*(ask(*each) for each in self._sections.items()))
        return found | {"unknown": unknown}

    async def stream(self, admitted: Callable[[], Any]) -> AsyncIterator[bytes]:
        """Events for one who looks. `admitted` raises when he may not look any more, and the
        stream ends. Raises ResourceExhausted where too many look already."""
        if self._viewers >= MAX_VIEWERS:
            raise ResourceExhausted(f"{MAX_VIEWERS} dashboards are open already")
        return self._events(admitted)

    async def _events(self, admitted: Callable[[], Any]) -> AsyncIterator[bytes]:
        sent, serial = 0, 0
        self._viewers += 1
        try:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            while not self._closed:
                try:
                    admitted()
                except CrossfadeError as error:
                    yield _event("refused", {"code": error.code, "message": str(error)})
                    return
                points = self._history.since(serial)
                if points:
                    serial = points[-1].serial
                    yield _event("points", [point.plain() for point in points])
                if sent != self._serial:
                    sent = self._serial
                    yield b"event: state\ndata: " + self._state + b"\n\n"
                else:
                    yield b": still here\n\n"
                await self._other_than(sent)
        finally:
            self._viewers -= 1

    async def _other_than(self, serial: int) -> None:
        """Waits for another state, but not for long: points and admission are looked at, too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PERIOD_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._closed or serial != self._serial)

    async def _ask(self) -> None:
        """As long as anybody looks."""
        while self._viewers and not self._closed:
            self._woken.clear()
            try:
                state = orjson.dumps(await self.state())
            except Exception as error:  # noqa: BLE001 - the next look may go well
                # Without its message, which may hold a value.
                name = type(error).__name__
                log.error("the dashboard's state failed by a defect", error=name)  # noqa: TRY400
            else:
                async with self._changed:
                    self._state = state
                    self._serial += 1
                    self._changed.notify_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._woken.wait()

    async def close(self) -> None:
        """Ends every stream."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._woken.set()
        if self._asking is not None:
            await self._asking


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"
