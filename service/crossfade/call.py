"""One request: how long it may still take, who is to answer it, and where its store calls
are recorded."""

import time
from dataclasses import dataclass

from crossfade.errors import DeadlineExceeded, InvalidArgument
from crossfade.plan import StoreName
from crossfade.telemetry import Telemetry
from crossfade.tracing import Trace


@dataclass(slots=True)
class Call:
    """`deadline`: `time.monotonic()` seconds. `trace` is None where traces go nowhere.

    `pin`: the store that the caller wants its reads answered by, as it is. `served_by`: the
    stores that did answer, for callers that ask.
    """

    telemetry: Telemetry
    deadline: float
    trace: Trace | None = None
    asked: dict[str, str] | None = None
    """Metadata of Crossfade's own that came with the call."""
    pin: StoreName | None = None
    served_by: str = ""
    took: float | None = None
    """Seconds of the store call that was recorded last."""

    def left(self) -> float:
        """Seconds left. Raises DeadlineExceeded when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline is over")
        return left

    def served(self, by: str) -> None:
        """A store answered, and how, in the words for the caller; of a call that reads more
        than once each is told once. Nothing is kept for a caller that asked for nothing."""
        if self.asked is None:
            return
        if not self.served_by:
            self.served_by = by
        elif by not in self.served_by.split(", "):
            self.served_by += f", {by}"

    def check_unpinned(self) -> None:
        """Called where no store can be chosen. Raises InvalidArgument where one was."""
        if self.pin is not None:
            raise InvalidArgument(
                "x-crossfade-store: only reads have a choice of store: those of now, of named "
                "collections, and outside of transactions"
            )

    def record(
        self,
        operation: str,
        store: str,
        role: str,
        collection: str,
        stage: str,
        started_ns: int,
        error: str | None,
        seconds: float | None = None,
    ) -> None:
        """A store call that began at `started_ns` (`time.time_ns()`) and ended now. `seconds`:
        how long the store took of it, where that is not all of the time."""
        ended_ns = time.time_ns()
        self.took = seconds = (ended_ns - started_ns) / 1e9 if seconds is None else seconds
        self.telemetry.record_store(collection, operation, store, role, seconds, error)
        if self.trace is not None:
            self.trace.store_call(
                operation, store, role, collection, stage, started_ns, ended_ns, error
            )
