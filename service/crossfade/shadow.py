"""Shadow reads: the other store is read after the answer, compared, and judged.

Offering never blocks, never raises and never waits: what does not fit into the bounds
is dropped and counted by its cause [law]. Comparing is the first thing that stops when
the process is busy.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from crossfade.comparing import Comparing
from crossfade.errors import CrossfadeError, FailedPrecondition
from crossfade.repairs import Repairs
from crossfade.samples import Samples
from crossfade.telemetry import SHADOW_DROPPED, VERDICTS, Telemetry
from crossfade.tracing import current
from crossfade.turns import Turns
from crossfade.verdict import BAD, Finding, Offer, Verdict, worst

log = structlog.get_logger(__name__)

COMPARE_SECONDS = 20.0
"""One comparison with everything that is read again for it."""
LAG_PERIOD = 0.05
ALONE_PER_SECOND = 20.0
"""Gets of a collection that are read from the other store each by a call of its own. Only such
calls are like those of an answer, so only they are timed for the comparison of latencies; a
hundredth of what a store is asked for by many callers shows its quantiles just as well."""
BATCH = 32
BATCH_SECONDS = 0.1
"""The others are read by one call, so many at most, for which the first waits so long at most.
A call of Firestore for one costs ten times its share of a call for thirty."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`queue` offers and `memory` bytes that may wait, `age` seconds for which one may;
    `rate` comparisons in a second; `lag`: seconds that the event loop may be late."""

    queue: int = 1000
    memory: int = 64 * 1_048_576
    age: float = 10.0
    rate: float = 1000.0
    lag: float = 0.1


class Shadow:
    """A bounded queue and a few workers.

    `raises`: the caller waits for the comparison and gets a mismatch as its error.
    `afford`: takes a comparison from the budget; False: there is nothing left.
    `complete`: whether PostgreSQL knows of every commit so far. While the outbox has some it
    does not, and comparing would show nothing.
    """

    def __init__(
        self,
        comparer: Comparing,
        telemetry: Telemetry,
        samples: Samples,
        repairs: Repairs,
        *,
        bounds: Bounds | None = None,
        workers: int = 2,
        raises: bool = False,
        afford: Callable[[Offer], bool] = lambda _: True,
        complete: Callable[[Offer], bool] = lambda _: True,
    ) -> None:
        self._comparer = comparer
        self._telemetry = telemetry
        self._samples = samples
        self._repairs = repairs
        self._bounds = bounds or Bounds()
        self._workers = workers
        self._afford = afford
        self._complete = complete
        self.raises = raises
        self._queue: deque[tuple[Offer, float]] = deque()
        self._arrived = asyncio.Event()
        self._gathering = asyncio.Lock()
        """Held by the worker that waits for company: two would wait for each other's."""
        self._company = 0
        self._in_company = asyncio.Event()
        self._alone: dict[str, _Allowance] = {}
        self._held = 0
        self._running = 0
        self._allowance = self._bounds.rate
        self._counted_at = time.monotonic()
        self.lag = 0.0
        """How late the event loop was last, in seconds."""

    # --- offering -----------------------------------------------------------------------------

    def offer(self, offer: Offer) -> None:
        cause = self._refusal(offer)
        if cause is not None:
            self._telemetry.count(SHADOW_DROPPED, offer.collection, cause)
            return
        self._queue.append((offer, time.monotonic()))
        self._held += offer.size
        self._arrived.set()
        if len(self._queue) >= self._company:
            self._in_company.set()

    def _refusal(self, offer: Offer) -> str | None:
        """Why the offer cannot be taken."""
        bounds = self._bounds
        if not self._complete(offer):
            return "gate"
        if self.lag > bounds.lag:
            return "load"
        if len(self._queue) >= bounds.queue:
            return "queue"
        if self._held + offer.size > bounds.memory:
            return "memory"
        now = time.monotonic()
        # As much as a second's worth may come at once.
        self._allowance = min(bounds.rate, self._allowance + (now - self._counted_at) * bounds.rate)
        self._counted_at = now
        if self._allowance < 1:
            return "rate"
        if not self._afford(offer):
            return "budget"
        self._allowance -= 1
        return None

    @property
    def waiting(self) -> int:
        """Comparisons in the queue."""
        return len(self._queue)

    @property
    def held(self) -> int:
        """Bytes that the queue holds, about."""
        return self._held

    @property
    def idle(self) -> bool:
        return not self._queue and not self._running

    # --- working ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._measure())
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _measure(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PERIOD)
            self.lag = time.monotonic() - before - LAG_PERIOD

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            offer = self._take()
            if offer is None:
                continue
            self._running += 1
            try:
                if self._goes_alone(offer):
                    await self._guarded([offer], self.compare(offer))
                else:
                    await self._many(offer)
            finally:
                self._running -= 1

    def _take(self) -> Offer | None:
        """The next in the queue; None for one that is too old: it tells of a past that nobody
        waits to hear of."""
        offer, since = self._queue.popleft()
        self._held -= offer.size
        if time.monotonic() - since <= self._bounds.age:
            return offer
        self._telemetry.count(SHADOW_DROPPED, offer.collection, "age")
        return None

    def _goes_alone(self, offer: Offer) -> bool:
        if not isinstance(offer.asked, tuple) or len(offer.asked) > 1:
            return True
        allowance = self._alone.get(offer.collection)
        if allowance is None:
            allowance = self._alone[offer.collection] = _Allowance()
        return allowance.take()

    async def _many(self, first: Offer) -> None:
        """It and what else comes in a moment, by one call of the other store; what does not
        agree then, each by itself."""
        offers = [first]
        async with self._gathering:
            await self._wait_for(BATCH - 1)
            while self._queue and len(offers) < BATCH and _alike(first, self._queue[0][0]):
                offer = self._take()
                if offer is not None:
                    offers.append(offer)
        apart: list[Offer] = []
        await self._guarded(offers, self._compare_many(offers, apart))
        for offer in apart:
            await self._guarded([offer], self.compare(offer))

    async def _wait_for(self, company: int) -> None:
        """Until so many are in the queue: as soon as they are, so that comparisons come one batch
        after the other and not all at once; and no longer than BATCH_SECONDS."""
        self._company = company
        self._in_company.clear()
        if len(self._queue) < company:
            with suppress(TimeoutError):
                async with asyncio.timeout(BATCH_SECONDS):
                    await self._in_company.wait()

    async def _compare_many(self, offers: Sequence[Offer], apart: list[Offer]) -> None:
        started = time.time_ns()
        async with asyncio.timeout(COMPARE_SECONDS):
            agreeing = await self._comparer.agreeing(offers)
        turns = Turns()
        for offer, agrees in zip(offers, agreeing, strict=True):
            await turns.over()
            if agrees:
                self._found(offer, Verdict.MATCH, started, len(offers))
                self._repairs.healthy(stored.path for stored in offer.documents)
            else:
                apart.append(offer)

    async def _guarded(self, offers: Sequence[Offer], work: Coroutine[Any, Any, object]) -> None:
        """Nothing that becomes of a comparison ends the comparing of everything else."""
        token = current.set(offers[0].link)
        try:
            await work
        except CrossfadeError as error:
            self._failed(offers, error.code)
        except TimeoutError:
            self._failed(offers, "TIMEOUT")
        except Exception:
            collection = offers[0].collection
            self._failed(offers, "INTERNAL")
            log.exception("a comparison failed by a defect", collection=collection)
        finally:
            current.reset(token)

    def _failed(self, offers: Sequence[Offer], error: str) -> None:
        for offer in offers:
            self._found(offer, Verdict.ERROR, time.time_ns(), error=error)
        log.info("shadow read failed", collection=offers[0].collection, error=error)

    async def compare(self, offer: Offer) -> list[Finding]:
        """Compares, counts, keeps samples, and queues a recopy of what is bad. Raises
        CrossfadeError, TimeoutError when a store cannot be read."""
        started = time.time_ns()
        async with asyncio.timeout(COMPARE_SECONDS):
            findings = await self._comparer.compare(offer)
        verdict = worst(findings)
        self._found(offer, verdict, started)
        if verdict is Verdict.MATCH:
            self._repairs.healthy(stored.path for stored in offer.documents)
        elif verdict in BAD:
            await self._report(offer, verdict, [each for each in findings if each.verdict in BAD])
        return findings

    async def check(self, offer: Offer) -> None:
        """For callers that asked for it: raises FailedPrecondition when the stores differ, with
        the places and without the values. A store that cannot be read raises nothing."""
        try:
            findings = await self.compare(offer)
        except (CrossfadeError, TimeoutError) as error:
            code = error.code if isinstance(error, CrossfadeError) else "TIMEOUT"
            self._found(offer, Verdict.ERROR, time.time_ns(), error=code)
            return
        bad = [each for each in findings if each.verdict in BAD]
        if bad:
            first = bad[0]
            where = ", ".join(first.fields[:10]) or "the whole document"
            more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise FailedPrecondition(
                f"the stores differ (on_mismatch = raise): {first.path} is {first.verdict}: "
                f"{where}{more}"
            )

    async def _report(self, offer: Offer, verdict: Verdict, bad: Sequence[Finding]) -> None:
        for finding in bad:
            self._samples.add(offer, finding, given_up=self._repairs.given_up(finding.path))
        log.warning(
            "the stores differ",
            verdict=verdict.value,
            collection=offer.collection,
            paths=[each.path for each in bad[:5]],
            fields=bad[0].fields[:10],
        )
        try:
            await self._repairs.repair(offer, bad)
        except CrossfadeError as error:
            # The verdict stands; whoever reads the document next finds it again.
            log.warning("a repair could not be queued", error=error.code)

    def _found(
        self,
        offer: Offer,
        verdict: Verdict,
        started_ns: int,
        documents: int = 1,
        error: str | None = None,
    ) -> None:
        """Counts it, and sends its span. `documents`: how many were read by the same call."""
        self._telemetry.count(VERDICTS, offer.collection, verdict.value)
        tracing = self._telemetry.tracing
        if offer.link is not None and tracing is not None:
            tracing.shadow(
                offer.link,
                operation=offer.operation,
                store=offer.answered.other.value,
                collection=offer.collection,
                stage=offer.stage,
                verdict=verdict.value,
                start_ns=started_ns,
                end_ns=time.time_ns(),
                bad=verdict in BAD or error is not None,
                documents=documents,
                error=error,
            )


class _Allowance:
    """Says yes ALONE_PER_SECOND times a second, and as often at once."""

    def __init__(self) -> None:
        self._left = ALONE_PER_SECOND
        self._at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        gained = (now - self._at) * ALONE_PER_SECOND
        self._left, self._at = min(ALONE_PER_SECOND, self._left + gained), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _alike(one: Offer, other: Offer) -> bool:
    """Whether both are gets of one document that the same store answered."""
    return (
        isinstance(other.asked, tuple) and len(other.asked) == 1 and one.answered is other.answered
    )
