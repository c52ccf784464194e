"""A distant and unreliable Firestore on purpose: latency and failures of the embedded one.

`Faults` wraps the methods of a front. Where none are asked for there is no wrapper, and
no cost. With a seed, the n-th call to arrive meets the same fate in every run.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from crossfade.errors import CrossfadeError

Unary: TypeAlias = Callable[..., Awaitable[bytes]]
Streaming: TypeAlias = Callable[..., AsyncIterator[bytes]]

_CODES = {code.name for code in grpc.StatusCode} - {"OK"}


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of a call's way there and back: normally distributed with this mean and
    standard deviation, never below zero."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Failure:
    """The share of all calls, 0 to 1, that end with this status."""

    rate: float
    code: str


def parse(latency: str | None, failures: Sequence[str], seed: int | None) -> "Faults | None":
    """What the command's options say; None if they ask for nothing. Raises ValueError with a
    sentence that names option and form."""
    if latency is None and not failures:
        return None
    return Faults(
        None if latency is None else _latency(latency), [_failure(f) for f in failures], seed
    )


def _latency(text: str) -> Latency:
    mean, _, deviation = text.partition(",")
    try:
        parsed = Latency(float(mean), float(deviation))
    except ValueError:
        parsed = Latency(-1, -1)
    if not all(0 <= number < math.inf for number in (parsed.mean, parsed.deviation)):
        raise ValueError(f'--latency: "{text[:60]}" is not MEAN,JITTER in milliseconds, as in 20,5')
    return parsed


def _failure(text: str) -> Failure:
    rate, _, code = text.partition(":")
    try:
        share = float(rate)
    except ValueError:
        share = -1
    if not 0 <= share <= 1 or not code:
        raise ValueError(
            f'--fail: "{text[:60]}" is not RATE:CODE with a rate of 0 to 1, as in 0.01:UNAVAILABLE'
        )
    if code not in _CODES:
        raise ValueError(
            f'--fail: "{code[:60]}" is not the name of a gRPC status other than OK, '
            f"as in {rate[:20]}:UNAVAILABLE"
        )
    return Failure(share, code)


class Faults:
    """Raises ValueError when the failures' rates come to more than 1."""

    def __init__(
        self, latency: Latency | None, failures: Sequence[Failure], seed: int | None = None
    ) -> None:
        if sum(failure.rate for failure in failures) > 1 + 1e-9:
            raise ValueError("--fail: the rates of all failures together are more than 1")
        self._latency = latency
        self._failures = [(failure.rate, _error(failure)) for failure in failures]
        # Two sources: the same calls fail, whatever the latency.
        source = random.Random(seed)  # noqa: S311 - nobody's secret
        self._waits = random.Random(source.random())  # noqa: S311
        self._chances = random.Random(source.random())  # noqa: S311

    def unary(self, method: Unary) -> Unary:
        """The method, from further away. Errors of its own travel as answers do."""

        async def faulty(*arguments: object) -> bytes:
            trip = self._trip()
            await trip.there()
            try:
                answer = await method(*arguments)
            except Exception:
                await trip.back()
                raise
            await trip.back()
            return answer

        return faulty

    def streaming(self, method: Streaming) -> Callable[..., AsyncGenerator[bytes, None]]:
        """The same for a method that answers in frames: the first one has the way back."""

        async def faulty(*arguments: object) -> AsyncGenerator[bytes, None]:
            trip = self._trip()
            await trip.there()
            frames = method(*arguments)
            try:
                try:
                    first = await anext(frames, None)
                except Exception:
                    await trip.back()
                    raise
                await trip.back()
                if first is not None:
                    yield first
                    async for frame in frames:
                        yield frame
            finally:
                if isinstance(frames, AsyncGenerator):
                    await frames.aclose()

        return faulty

    def _trip(self) -> "_Trip":
        milliseconds = 0.0
        if self._latency is not None:
            milliseconds = self._waits.normalvariate(self._latency.mean, self._latency.deviation)
        early = late = None
        if self._failures:
            chance = self._chances.random()
            for rate, error in self._failures:
                if chance < rate:
                    early, late = (error, None) if chance < rate / 2 else (None, error)
                    break
                chance -= rate
        return _Trip(max(0.0, milliseconds) / 1_000, early, late)


class _Trip:
    """One call's way. `early` and `late` are the errors it meets before and after it took
    effect."""

    def __init__(
        self,
        seconds: float,
        early: type[CrossfadeError] | None,
        late: type[CrossfadeError] | None,
    ) -> None:
        self._seconds = seconds
        self._early = early
        self._late = late

    async def there(self) -> None:
        """Half of the latency; the rest, to the clock's precision, is left for the way back."""
        if self._seconds:
            started = time.monotonic()
            await asyncio.sleep(self._seconds / 2)
            self._seconds -= time.monotonic() - started
        if self._early is not None:
            raise self._early("asked for with --fail: lost on the way there, nothing was done")

    async def back(self) -> None:
        if self._seconds > 0:
            await asyncio.sleep(self._seconds)
        if self._late is not None:
            raise self._late("asked for with --fail: lost on the way back, the call was done")


def _error(failure: Failure) -> type[CrossfadeError]:
    return type("Injected", (CrossfadeError,), {"code": failure.code})
