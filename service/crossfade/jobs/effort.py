"""What a process spends on a job beside its documents: pages, what it had to read again, and the
seconds in which it waited. No I/O.

By words, which the table of jobs adds up over all processes: `pages`; `retries.CODE`, by the
error of a store; `waited.REASON`, in seconds, from when nothing could be done to the next page.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping

OF_BUDGET = "the day's budget of Firestore reads"
RESUMED = "being resumed"
STORE = "store"
REASONS = {OF_BUDGET: "budget", RESUMED: "pause"}
"""What is waited for, as metrics and the table of jobs call it; anything else is a store."""

PAGES, RETRIES, WAITED = "pages", "retries", "waited"


class Effort:
    """Of one process. `take` gives what came up since the last time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._words: dict[str, float] = defaultdict(float)
        self._waits_for = ""
        self._since = clock()

    @property
    def waits_for(self) -> str:
        """What the work waits for; empty: for nothing."""
        return self._waits_for

    @waits_for.setter
    def waits_for(self, what: str) -> None:
        now = self._clock()
        if self._waits_for:
            self._words[f"{WAITED}.{self.reason}"] += now - self._since
        self._waits_for, self._since = what, now

    @property
    def reason(self) -> str:
        """The same in a word."""
        return REASONS.get(self._waits_for, STORE) if self._waits_for else ""

    def page(self) -> None:
        """One is done."""
        self._words[PAGES] += 1
        self.waits_for = ""

    def retry(self, code: str) -> None:
        """A page is to be read again, because of a store's error."""
        self._words[f"{RETRIES}.{code}"] += 1
        self.waits_for = f"a store ({code})"

    def take(self) -> dict[str, float]:
        self.waits_for = self._waits_for
        words, self._words = self._words, defaultdict(float)
        return dict(words)

    def back(self, words: Mapping[str, float]) -> None:
        """What was taken, and could not be told anybody."""
        for word, count in words.items():
            self._words[word] += count
