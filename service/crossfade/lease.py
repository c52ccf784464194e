"""The stage lease: how long a sidecar may rely on what it read in the control document.

PostgreSQL's statements check the epoch themselves. Firestore's calls carry no check at
all, so a sidecar asks it, or a copy that vouches for it, only while its lease runs: SECONDS
by its own monotonic clock, counted from *before* the control document was asked for. A
change of authority closes the document, and then waits until every lease of before is over.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from crossfade.errors import CrossfadeError, DeadlineExceeded, InfrastructureError, Unavailable
from crossfade.snapshot import Snapshot
from crossfade.stores.fences import ControlDocument, Fences

log = structlog.get_logger(__name__)

DRIFT = 0.05
"""By how much faster than another's a sidecar's monotonic clock may run."""
IDLE_SECONDS = 2.0
"""How often the document is read while PostgreSQL is the authority and no lease is needed: for so
long a sidecar may not hear that Firestore was put in charge by force, and go on with PostgreSQL."""


class Lease:
    """One per sidecar and group. `seconds`: how long it runs."""

    def __init__(self, fences: Fences, seconds: float, timeout: float = 5.0) -> None:
        self.fences = fences
        self.seconds = seconds
        self._timeout = timeout
        self._until = 0.0
        self._reading = asyncio.Lock()
        self._readings = 0
        self._failed: CrossfadeError | None = None
        self.document = ControlDocument()

    @property
    def valid(self) -> bool:
        return time.monotonic() < self._until

    @property
    def over_after(self) -> float:
        """Seconds after which every lease that runs anywhere now is over, if the document has
        been changed. The caller adds a round trip."""
        return self.seconds * (1 + DRIFT)

    def covers(self, snapshot: Snapshot) -> bool:
        """Whether Firestore may be asked now as the authority of this snapshot."""
        document = self.document
        return (
            time.monotonic() < self._until
            and document.open
            and document.epoch == snapshot.epoch
            and document.mirrored == snapshot.rules.mirrored
        )

    async def renew(self, timeout: float | None = None) -> ControlDocument:
        """Reads the document. One reading at a time; whoever waits shares the next one.

        Raises InfrastructureError when Firestore does not say what it is.
        """
        wanted = self._readings + 1
        try:
            async with asyncio.timeout(timeout), self._reading:
                if self._readings < wanted:
                    await self._read()
                elif self._failed is not None:
                    raise Unavailable(str(self._failed)) from self._failed
        except TimeoutError as error:
            raise DeadlineExceeded(
                "no time was left to read the control document in Firestore"
            ) from error
        return self.document

    async def _read(self) -> None:
        began = time.monotonic()
        self._readings += 1
        self._failed = None
        try:
            self.learn(await self.fences.read(timeout=self._timeout), began)
        except CrossfadeError as error:
            self._failed = error
            if isinstance(error, InfrastructureError):
                raise
            raise Unavailable(f"the control document in Firestore: {error}") from error
        except BaseException:
            self._readings -= 1  # cancelled: the next one reads
            raise

    def learn(self, document: ControlDocument, began: float) -> None:
        """Takes note of what the document was at some time after `began` (monotonic)."""
        if not document.update_time:
            # None begins a lease: whoever opens Firestore writes it first, so that its absence
            # shows that nobody ever did.
            self.document, self._until = document, 0.0
        elif document.update_time >= self.document.update_time:
            self.document = document
            self._until = max(self._until, began + self.seconds)

    async def run(self, needed: Callable[[], bool]) -> None:
        """Runs for ever: renews well before the end, so that no request waits for it."""
        while True:
            try:
                await self.renew()
            except CrossfadeError as error:
                log.info("the stage lease cannot be renewed", error=error.code)
            await asyncio.sleep(self.seconds / 3 if needed() else IDLE_SECONDS)
