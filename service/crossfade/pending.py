"""Pending rows: what the mirror may not hold yet, and how it comes to hold it.

One row per (intent, path). Whoever puts a document into the mirror first deletes
the rows that make the put theirs, in the same transaction; who has none left puts
nothing. Partial writes are never merged into the mirror: their paths are
recopied, so that concurrent writers cannot leave a mixed document.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from crossfade.document import Database
from crossfade.errors import CrossfadeError, InfrastructureError, Unavailable
from crossfade.failpoints import reach
from crossfade.plan import StoreName
from crossfade.store import CommitOutcome, Stored
from crossfade.stores.firestore import INTENTS, FirestoreStore
from crossfade.stores.postgres.mirror import Image, Mirror
from crossfade.stores.postgres.way_back import Request
from crossfade.wire import parse_document
from crossfade.write import Folded

LEASE_SECONDS = 15.0
"""How long a writer's own rows are left to it before the recopy worker takes them over."""
ANSWER_SHARE = 0.1
"""Of the time that a caller has left, what is kept for the answer itself."""
POLL_SECONDS = 0.25
"""How often a waiting commit looks whether another sidecar has put what it wrote."""
BELIEVED_SECONDS = 0.5
PROBE_SECONDS = 1.0
PROBED = f"{INTENTS}/probe"

COMMIT, UNFENCED = "commit", "unfenced"
"""Reasons of the rows of a commit: its intent can be revoked, or has no document."""


def new_intent() -> str:
    return uuid.uuid4().hex


def intent_of(request_id: str, attempt: int) -> str:
    """The same at every sidecar and on every retry; `attempt` rises when one was revoked."""
    return hashlib.blake2b(f"{attempt}:{request_id}".encode(), digest_size=16).hexdigest()


ATTEMPTS = 5
"""How many intents of one request may be found revoked before it is given up."""


def intents_of(request_id: str) -> tuple[str, ...]:
    """All intents under which the request may have been done."""
    return tuple(intent_of(request_id, attempt) for attempt in range(ATTEMPTS))


class Pending:
    """Opens, settles and recopies the pending rows of the forward direction."""

    def __init__(
        self, mirror: Mirror, firestore: FirestoreStore, database: Database, timeout: float
    ) -> None:
        self.mirror = mirror
        self._firestore = firestore
        self._database = database
        self._timeout = timeout
        self.woken = asyncio.Event()
        """Set when there is work for the recopy worker that should not wait for its interval."""
        self._awaited: dict[str, asyncio.Event] = {}
        self._away: float | None = None

    async def open(
        self,
        intent: str,
        paths: Sequence[str],
        epoch: int,
        left: Callable[[], float],
        request_id: str | None = None,
        horizon: float | None = None,
    ) -> Request | None:
        """The rows of a commit, durable before the commit is sent. Raises EpochChanged.

        Returns the request, and opens nothing, where PostgreSQL knows it as done. `horizon`:
        the commit has no intent document that could be revoked, so the rows are left alone
        until Firestore cannot apply it any more.
        """
        return await self.mirror.open_intent(
            intent,
            paths,
            epoch=epoch,
            lease=LEASE_SECONDS if horizon is None else 2 * horizon,
            reason=COMMIT if horizon is None else UNFENCED,
            timeout=left(),
            done=() if request_id is None else intents_of(request_id),
        )

    async def drop(self, intent: str) -> None:
        """After a definite refusal: nothing was written, so nothing is pending."""
        await self.mirror.drop_intent(intent, timeout=self._timeout)

    async def hand_over(self, intent: str) -> None:
        """Ends the writer's lease: the recopy worker revokes the intent and settles the rows."""
        await self.mirror.expire_intent(intent, timeout=self._timeout)
        self.woken.set()

    async def settle(
        self,
        intent: str,
        folded: Sequence[Folded],
        outcome: CommitOutcome,
        epoch: int,
        *,
        shared: bool = False,
    ) -> None:
        """Puts a commit's full images, or recopies all its paths if any write was partial.

        All in one transaction, so the mirror shows the commit as a whole. `shared`: a
        request_id names the intent, so that PostgreSQL has to know that it was done.
        """
        times = tuple(write.update_time for write in outcome.writes)
        requests = [Request(intent, outcome.commit_time, times)] if shared else []
        if outcome.replayed or any(entry.partial for entry in folded):
            await self.recopy(
                [entry.path for entry in folded], epoch, intent=intent, requests=requests
            )
            return
        images = []
        for entry in folded:
            update_time = outcome.writes[entry.last].update_time
            time = outcome.commit_time if update_time is None else update_time
            images.append(Image(entry.path, entry.fields, time, None))
        await self.mirror.put(
            images,
            epoch=epoch,
            intent=intent,
            allow_equal=False,
            timeout=self._timeout,
            requests=requests,
        )

    # --- the way back ---------------------------------------------------------------------------

    def announce(self, intents: Iterable[str]) -> None:
        """Rows of these commits were settled here: whoever waits for one looks."""
        for intent in self._awaited.keys() & set(intents):
            self._awaited[intent].set()

    async def until_put(self, intent: str, left: float, *, patient: bool) -> bool:
        """Waits until Firestore has what a commit of PostgreSQL wrote; False where that takes
        too long, or, unless `patient`, as soon as Firestore is known to be away. Never raises
        a store's error: the commit was done."""
        deadline = time.monotonic() + left * (1 - ANSWER_SHARE)
        settled = self._awaited.setdefault(intent, asyncio.Event())
        try:
            while (remaining := deadline - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(remaining, POLL_SECONDS)):
                        await settled.wait()
                settled.clear()
                if not await self.mirror.is_pending(intent, timeout=self._timeout):
                    return True
                if self._away is not None and not patient:
                    return False
        except CrossfadeError:
            return False
        finally:
            self._awaited.pop(intent, None)
        return False

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around a call of Firestore: notes whether it can be reached."""
        try:
            yield
        except InfrastructureError:
            self._away = time.monotonic()
            raise
        except CrossfadeError:
            self._away = None  # a refusal is an answer
            raise
        self._away = None

    async def check_reachable(self, left: float) -> None:
        """Raises Unavailable if Firestore is known to be away. What is known of the last call
        may be over, so it is asked again where that was a while ago."""
        if self._away is None:
            return
        if time.monotonic() - self._away > BELIEVED_SECONDS:
            with suppress(InfrastructureError), self.asking():
                await self._firestore.get([PROBED], timeout=min(left / 2, PROBE_SECONDS))
        if self._away is not None:
            raise Unavailable(
                "the mirror's copy is required, and Firestore cannot be reached; "
                "the commit was not begun"
            )

    # --- recopies ---------------------------------------------------------------------------

    async def recopy(
        self,
        paths: Sequence[str],
        epoch: int,
        *,
        intent: str | None = None,
        claim: str | None = None,
        requests: Sequence[Request] = (),
    ) -> set[str]:
        """Reads the paths from the authority, all at once, and puts them under the guard
        that admits equal versions (or a wrong document could never be healed)."""
        # Firestore's own read_time: the version of a tombstone is compared with its commits'.
        reading = await self._firestore.get(paths, timeout=self._timeout, exact_times=True)
        reach("recopy.read")
        images = [self._image(stored, reading.read_time) for stored in reading.documents]
        put = await self.mirror.put(
            images,
            epoch=epoch,
            intent=intent,
            claim=claim,
            allow_equal=True,
            timeout=self._timeout,
            requests=requests,
        )
        reach("recopy.put")
        return put

    def _image(self, stored: Stored, read_time: int) -> Image:
        if stored.data is None:
            return Image(stored.path, None, read_time, None)
        document = parse_document(stored.data, self._database)
        return Image(document.path, document.fields, document.update_time, document.create_time)

    async def mark(
        self, paths: Sequence[str], epoch: int, reason: str, authority: StoreName
    ) -> None:
        """Queues a recopy of the paths."""
        await self.mirror.mark(
            new_intent(),
            paths,
            epoch=epoch,
            reason=reason,
            authority=authority,
            timeout=self._timeout,
        )
        self.woken.set()
