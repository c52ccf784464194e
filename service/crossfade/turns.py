"""Turns of the event loop, for work that nobody waits for: answers are made on the same loop.

A call is some ten turns of the loop, and before each of them it waits for whoever holds the
loop. So it is not enough that such work is cut: it goes on only when nothing else wants the loop.
Calls wait for one short piece of it then, at most, however much there is to do: the work takes
what they leave over, and not its share.
"""

import asyncio
from time import perf_counter

TURN_SECONDS = 0.0003
"""As long as a turn of an answer takes. A piece of work is not cut: one large document holds the
loop for longer."""
REST_SECONDS = 0.001
IDLE_SECONDS = 0.0001
"""The loop turned twice in less than that: what had come was taken in the first round, and nothing
was left for the second."""
MOST_RESTS = 20
"""In a row, as long as the loop is busy: the work is slow then, but ends."""


class Turns:
    """Counts from when it is made or has rested: to be made where something was just waited for."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def over(self) -> None:
        """Between two pieces of work: rests if they have held the loop for a turn."""
        if perf_counter() - self._began >= TURN_SECONDS:
            await self.rest()

    async def rest(self) -> None:
        """Until the loop has nothing else to do."""
        for _ in range(MOST_RESTS):
            await asyncio.sleep(REST_SECONDS)
            before = perf_counter()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._began = perf_counter()
            if self._began - before < IDLE_SECONDS:
                return
