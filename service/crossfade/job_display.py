"""What the commands show of a job, or of an archive, while it runs: one line that keeps itself
current, plain lines off a terminal, or JSON lines on stdout."""

import json
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from crossfade.display import PLAIN_SECONDS, console
from crossfade.jobs.effort import REASONS, STORE
from crossfade.stores.postgres.jobs import Job

WINDOW_SECONDS = 15.0
"""The rate is that of so many seconds."""
REMAINDERS = ("beside", "misfits", "unmapped")
"""Words for documents that do not fit their columns as a whole."""

WAITS = {reason: what for what, reason in REASONS.items()} | {STORE: "a store"}
"""What was waited for, as a sentence calls it."""


class Pace:
    """The rate and the time left of a job, from one look at it to the next."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, job: Job, now: float) -> tuple[float | None, float | None]:
        """Documents a second, and seconds to go; None while that cannot be said."""
        left = None if job.estimate is None else max(0, job.estimate - job.documents)
        if job.estimate is None and job.partitions_done:
            left = job.documents * (job.partitions - job.partitions_done) // job.partitions_done
        return self.of(job.documents, left, now)

    def of(self, documents: int, left: int | None, now: float) -> tuple[float | None, float | None]:
        """The same of so many that are done, and that are left."""
        self._seen.append((now, documents))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        if now <= then:
            return None, None
        rate = (documents - before) / (now - then)
        return rate, None if left is None or rate <= 0 else left / rate


def told(job: Job, rate: float | None, left: float | None, waits_for: str) -> dict[str, Any]:
    """A job as data, for programs."""
    return {
        "job": job.id,
        "kind": job.kind,
        "state": job.state.value,
        "reason": job.reason,
        "documents": job.documents,
        "estimate": job.estimate,
        "rate": None if rate is None else round(rate, 1),
        "seconds_left": None if left is None else round(left),
        "partitions": job.partitions,
        "partitions_done": job.partitions_done,
        "processes": job.processes,
        "letters": job.letters,
        "pages": job.pages,
        "retries": job.retries,
        "waited": {reason: round(seconds, 1) for reason, seconds in job.waited.items()},
        "waits_for": waits_for,
        "collections": {
            # What has a ":" are digests and the like.
            name: {word: count for word, count in counts.items() if ":" not in word}
            for name, counts in job.counts.items()
        },
        "outcome": dict(job.outcome),
    }


def job_text(job: Job, rate: float | None, left: float | None, waits_for: str) -> str:
    """One line of a job."""
    of = "" if job.estimate is None else f" of about {job.estimate:,}"
    parts = [
        f"job {job.id} {job.state.value}",
        f"{job.documents:,}{of} documents",
        "- /s" if rate is None else f"{rate:,.0f}/s",
        f"{job.partitions_done}/{job.partitions} parts",
    ]
    if left is not None:
        parts.append(f"{duration(left)} left")
    beside = sum(job.total(word) for word in ("beside", "unmapped"))
    if beside:
        parts.append(f"{beside:,} with remainders")
    if job.letters:
        parts.append(f"{job.letters} NOT STORED")
    if job.processes > 1:
        parts.append(f"{job.processes} processes")
    if retries := sum(job.retries.values()):
        parts.append(f"{retries:,} read again")
    if waits_for:
        parts.append(f"waits for {waits_for}")
    return " | ".join(parts)


def effort_text(job: Job) -> str:
    """What was spent on a job that has ended."""
    parts = [f"{job.pages:,} pages"]
    if retries := job.retries:
        codes = ", ".join(f"{code} {count:,}" for code, count in retries.items())
        parts.append(f"{sum(retries.values()):,} read again ({codes})")
    parts += [
        f"waited {duration(seconds)} for {WAITS[reason]}"
        for reason, seconds in job.waited.items()
        if round(seconds)
    ]
    return "; ".join(parts)


def duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


class Line:
    """One line that is kept current. `as_json`: a JSON object a line on stdout, whenever
    something has changed."""

    def __init__(
        self,
        screen: Console | None = None,
        *,
        as_json: bool = False,
        plain_seconds: float = PLAIN_SECONDS,
    ) -> None:
        self._console = screen or console()
        self._json = as_json
        self._plain_seconds = plain_seconds
        self._pace = Pace()
        self._printed: float | None = None
        self._last: dict[str, Any] = {}
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if self._console.is_terminal and not as_json
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _show(self, data: dict[str, Any], line: str, now: float) -> None:
        if self._json:
            if data != self._last:
                self._last = data
                print(json.dumps(data), flush=True)
            return
        if self._live is not None:
            self._live.update(Text(line, overflow="fold"), refresh=True)
        elif self._printed is None or now - self._printed >= self._plain_seconds:
            self._printed = now
            self._console.print(line, markup=False, soft_wrap=True)


class JobLine(Line):
    """`with JobLine() as line: line.update(job, waits_for)`, about once a second."""

    def update(self, job: Job, waits_for: str = "", now: float | None = None) -> None:
        """`now`: seconds of `time.monotonic()`."""
        now = time.monotonic() if now is None else now
        rate, left = self._pace.look(job, now)
        self._show(told(job, rate, left, waits_for), job_text(job, rate, left, waits_for), now)


class CountLine(Line):
    """The same of what is no job: documents that are `what`, as "archived"."""

    def __init__(self, what: str, *, as_json: bool = False) -> None:
        super().__init__(as_json=as_json)
        self._what = what

    def update(
        self,
        documents: int,
        estimate: int | None,
        waits_for: str = "",
        now: float | None = None,
    ) -> None:
        """`estimate`: how many there are, about."""
        now = time.monotonic() if now is None else now
        left = None if estimate is None else max(0, estimate - documents)
        rate, seconds = self._pace.of(documents, left, now)
        data = {
            "documents": documents,
            "estimate": estimate,
            "rate": None if rate is None else round(rate, 1),
            "seconds_left": None if seconds is None else round(seconds),
            "waits_for": waits_for,
        }
        of = "" if estimate is None else f" of about {estimate:,}"
        parts = [
            f"{documents:,}{of} documents {self._what}",
            "- /s" if rate is None else f"{rate:,.0f}/s",
        ]
        parts += [] if seconds is None else [f"{duration(seconds)} left"]
        parts += [f"waits for {waits_for}"] if waits_for else []
        self._show(data, " | ".join(parts), now)
