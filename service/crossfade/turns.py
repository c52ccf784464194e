"""Turns of the event loop, for work that nobody waits for: answers are made on the same loop.

A call is some ten turns of the loop, and before each of them it waits for whoever holds the
loop. So it is not enough that such work is cut: what is left of it rests between two pieces, in
which calls get through all of their turns.
"""

import asyncio
from time import perf_counter

TURN_SECONDS = 0.0003
"""As long as a turn of an answer takes. A piece of work is not cut: one large document holds the
loop for longer."""
REST_SECONDS = 0.001
BUSY_SECONDS = 0.003
"""A rest that became this long was not slept but waited: the loop, or the machine, is busy."""
MOST_RESTS = 4
"""In a row, as long as it is busy: the work is slow then, but ends."""


class Turns:
    """Counts from when it is made or has rested: to be made where something was just waited for."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def over(self) -> None:
        """Between two pieces of work: rests if they have held the loop for a turn."""
        if perf_counter() - self._began >= TURN_SECONDS:
            await self.rest()

    async def rest(self) -> None:
        for _ in range(MOST_RESTS):
            before = perf_counter()
            await asyncio.sleep(REST_SECONDS)
            self._began = perf_counter()
            if self._began - before < BUSY_SECONDS:
                return
