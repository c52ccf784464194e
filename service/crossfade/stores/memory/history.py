"""The version window: what documents were before they changed, for as long as it may be read."""

from collections import deque
from collections.abc import Iterator

from crossfade.document import Document
from crossfade.errors import FailedPrecondition

WINDOW = 3_600_000_000
"""Microseconds. The hour for which Firestore, too, keeps old versions."""
MOST_CHANGES = 100_000
MOST_BYTES = 64 * 1_048_576
"""Bounds of the memory that old versions take, which is several times their bytes as they are
written; the window is shorter while they are reached."""


class History:
    """Changes of documents, by name key, in the order of their times."""

    def __init__(self) -> None:
        self.oldest = 0
        """The earliest time that may be read."""
        self._changes: deque[tuple[int, bytes, Document | None, int]] = deque()
        self._by_key: dict[bytes, deque[tuple[int, Document | None]]] = {}
        self._bytes = 0

    def record(self, time: int, key: bytes, before: Document | None, size: int) -> None:
        """`before` was stored until `time`. `size`: the bytes that were written then, which
        are what a later change puts here."""
        self._changes.append((time, key, before, size))
        self._by_key.setdefault(key, deque()).append((time, before))
        self._bytes += size
        while (
            len(self._changes) > MOST_CHANGES
            or self._bytes > MOST_BYTES
            or self._changes[0][0] < time - WINDOW
        ):
            self._forget()

    def _forget(self) -> None:
        time, key, _, size = self._changes.popleft()
        changes = self._by_key[key]
        changes.popleft()
        if not changes:
            del self._by_key[key]
        self._bytes -= size
        self.oldest = time

    def check(self, time: int) -> None:
        """Raises FailedPrecondition for a time that lies before the window."""
        if time < self.oldest:
            raise FailedPrecondition(
                "read_time: the requested snapshot version is too old; versions are kept for "
                f"{WINDOW // 60_000_000} minutes, and for {MOST_CHANGES} changes at most"
            )

    def at(self, key: bytes, time: int, current: Document | None) -> Document | None:
        """The document of a key as it was at `time`; `current` is what is stored now."""
        return next((before for when, before in self._by_key.get(key, ()) if when > time), current)

    def changed_since(self, time: int) -> dict[bytes, Document | None]:
        """The keys that changed after `time`, with the documents that they had then."""
        # The earliest comes last, and stays.
        return {key: before for _, key, before in self._after(time)}

    def _after(self, time: int) -> Iterator[tuple[int, bytes, Document | None]]:
        """The changes after `time`, the latest first."""
        for when, key, before, _ in reversed(self._changes):
            if when <= time:
                return
            yield when, key, before

    def forget_all(self, now: int) -> None:
        """Nothing before `now` can be read any more."""
        self._changes.clear()
        self._by_key.clear()
        self._bytes = 0
        self.oldest = now
