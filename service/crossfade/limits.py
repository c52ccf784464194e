"""What callers may use: calls at a time and in a second, size of messages, results, time.

`Allowance` says how much; `Meter` counts what one caller, or all together, use of it.
Nothing here waits: a call beyond its allowance is refused at once, with the name of the
limit and the seconds after which it may succeed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from crossfade.errors import ResourceExhausted

BUSY_SECONDS = 0.05
"""The hint of a limit that is free again when any call ends, which nobody can foresee."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """None: without a limit. `concurrency` calls at a time; `rate` calls in a second, after
    `burst` at once (None: a second's worth); `message_kb` of a request; `documents` and
    `result_kb` of the answer to one call; `seconds` that a call may take."""

    concurrency: int | None = None
    rate: float | None = None
    burst: int | None = None
    message_kb: int | None = None
    documents: int | None = None
    result_kb: int | None = None
    seconds: float | None = None


UNLIMITED = Allowance()


class Meter:
    """What one caller uses of its allowance. `whose` is part of the refusals: "token app";
    `refused` hears the limit's name of each."""

    def __init__(
        self,
        allowance: Allowance,
        whose: str,
        *,
        refused: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.allowance = allowance
        self.whose = whose
        self._refused = refused
        self.under_way = 0
        self._clock = clock
        self._burst = 0.0
        self._held = 0.0
        self._filled = clock()
        self.change(allowance)
        self._held = self._burst

    def change(self, allowance: Allowance) -> None:
        """Another allowance, from now on; what is under way goes on."""
        self.allowance = allowance
        rate = allowance.rate
        self._burst = float(allowance.burst or max(1.0, rate or 0.0))
        self._held = min(self._held, self._burst)

    def begin(self) -> None:
        """Counts a call in; `end` counts it out. Raises ResourceExhausted."""
        most = self.allowance.concurrency
        if most is not None and self.under_way >= most:
            raise self._refusal("concurrency", f"{most} calls are under way", BUSY_SECONDS)
        self.count()
        self.under_way += 1

    def end(self) -> None:
        self.under_way -= 1

    def count(self) -> None:
        """One more of the calls in a second. Raises ResourceExhausted."""
        rate = self.allowance.rate
        if rate is not None:
            now = self._clock()
            self._held = min(self._burst, self._held + (now - self._filled) * rate)
            self._filled = now
            if self._held < 1.0:
                raise self._refusal(
                    "rate", f"{rate:g} calls in a second", (1.0 - self._held) / rate
                )
            self._held -= 1.0

    def check_message(self, size: int) -> None:
        """`size`: bytes of a request. Raises ResourceExhausted, which no retry mends."""
        most = self.allowance.message_kb
        if most is not None and size > most * 1_024:
            raise self._refusal("message_kb", f"the request has {size} bytes of {most} KiB")

    def check_result(self, documents: int, size: int) -> None:
        """`documents` and bytes that one call has been answered with so far. Raises
        ResourceExhausted, which no retry mends."""
        allowed = self.allowance
        if allowed.documents is not None and documents > allowed.documents:
            raise self._refusal(
                "documents", f"the result has more than {allowed.documents} documents"
            )
        if allowed.result_kb is not None and size > allowed.result_kb * 1_024:
            raise self._refusal("result_kb", f"the result has more than {allowed.result_kb} KiB")

    def timed_out(self) -> ResourceExhausted:
        """What a caller hears whose call took longer than it may."""
        return self._refusal("seconds", f"the call took {self.allowance.seconds:g} s")

    def _refusal(
        self, limit: str, reason: str, retry_after: float | None = None
    ) -> ResourceExhausted:
        self._refused(limit)
        return ResourceExhausted(
            f"limit {limit} of {self.whose}: {reason}", limit=limit, retry_after=retry_after
        )
