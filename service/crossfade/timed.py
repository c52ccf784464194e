"""How long a store takes for a query's pages: not what the caller takes between them."""

import time
from collections.abc import AsyncGenerator, AsyncIterator

from crossfade.store import Page


class TimedPages:
    """Pages as they come. `seconds`: for which the store was waited for so far; `started_ns`:
    when it was asked (`time.time_ns()`).

    A caller that reads slowly would otherwise make the store look slow that answers it, and
    never the one that is only compared.
    """

    def __init__(self, pages: AsyncIterator[Page]) -> None:
        self._pages = pages
        self.seconds = 0.0
        self.started_ns = time.time_ns()

    def __aiter__(self) -> "TimedPages":
        return self

    async def __anext__(self) -> Page:
        began = time.perf_counter_ns()
        try:
            return await anext(self._pages)
        finally:
            self.seconds += (time.perf_counter_ns() - began) / 1e9

    async def aclose(self) -> None:
        """An abandoned page generator holds a connection until it is closed."""
        if isinstance(self._pages, AsyncGenerator):
            await self._pages.aclose()
