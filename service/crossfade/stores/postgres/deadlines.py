"""Deadlines of many calls on one timer.

`asyncio.timeout` and the driver's own `timeout=` set a timer and take it back for every
call: a tenth of what a read by key costs, for something that hardly ever happens. Here
a call leaves a note and takes it back, and the one timer looks at the notes when the
first of them may be due. It ends a call as `asyncio.timeout` does: by cancelling its task.
"""

import asyncio
from math import inf
from time import monotonic


class Deadlines:
    """At most one call per task at a time. Belongs to the event loop it is first used in."""

    def __init__(self) -> None:
        self._ends: dict[asyncio.Task[object], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = inf

    def start(self, task: "asyncio.Task[object]", seconds: float) -> None:
        """From now on the task has so many seconds. `stop` must follow."""
        ends = self._ends[task] = monotonic() + seconds
        if ends < self._next:
            self._set(ends)

    def stop(self, task: "asyncio.Task[object]") -> bool:
        """Whether the task was cancelled for its deadline: then the caller takes that
        cancellation back (`Task.uncancel`)."""
        return self._ends.pop(task, None) is None

    def _set(self, ends: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = ends
        self._timer = asyncio.get_running_loop().call_later(ends - monotonic(), self._due)

    def _due(self) -> None:
        self._timer, self._next = None, inf
        now = monotonic()
        for task, ends in list(self._ends.items()):
            if ends <= now:
                del self._ends[task]
                task.cancel()
        if self._ends:
            self._set(min(self._ends.values()))
