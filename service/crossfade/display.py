"""What the commands show: a status line that keeps itself current, and tables.

On a terminal the line is rewritten in place; elsewhere (a file, a pipe, CI) a plain
line is written now and then. All of it goes to stderr, so that stdout stays
readable for programs.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from crossfade_api.v1.admin_pb2 import Status, StoreLatency

PLAIN_SECONDS = 5.0
READS = {"get", "query"}


def console() -> Console:
    return Console(stderr=True, highlight=False)


class StatusLine:
    """Shows the migration from one `Status` to the next; rates come from two of them.

    `with StatusLine() as line: line.update(status)`, about once a second.
    """

    def __init__(self, screen: Console | None = None, plain_seconds: float = PLAIN_SECONDS) -> None:
        self._console = screen or console()
        self._plain_seconds = plain_seconds
        self._live = (
            # Else what is said on stdout would go to the screen, and never into a pipe.
            Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            if self._console.is_terminal
            else None
        )
        self._before: tuple[float, Status] | None = None
        self._printed: float | None = None

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

    def say(self, text: str) -> None:
        """A line of its own, above the status."""
        self._console.print(text, markup=False, soft_wrap=True)

    def answer(self, text: str) -> None:
        """The same for programs, too: on stdout, where a terminal shows it among the others."""
        if self._live is not None:
            self._live.stop()
        print(text, flush=True)
        if self._live is not None:
            self._live.start()

    def update(self, status: Status, now: float | None = None) -> None:
        """`now`: seconds of `time.monotonic()`."""
        now = time.monotonic() if now is None else now
        then, before = self._before or (now, status)
        line = status_text(status, before, now - then)
        self._before = (now, status)
        if self._live is not None:
            self._live.update(Text(line, overflow="fold"), refresh=True)
        elif self._printed is None or now - self._printed >= self._plain_seconds:
            self._printed = now
            self._console.print(line, markup=False, soft_wrap=True)


def status_text(status: Status, before: Status, seconds: float) -> str:
    """One line: where the migration stands, what went on since `before`, `seconds` ago."""
    reads = sum(status.reads_by_store.values()) - sum(before.reads_by_store.values())
    parts = [
        status.stage + ("" if status.authority != "none" else " (changing)"),
        f"{_rate(reads, seconds)} reads/s",
        f"{_rate(status.commits - before.commits, seconds)} writes/s",
    ]
    for store in ("firestore", "postgresql"):
        busiest = _busiest(status.latencies, store)
        if busiest is not None:
            parts.append(f"{store} p50 {busiest.p50_ms:.1f} p99 {busiest.p99_ms:.1f} ms")
    verdicts: Counter[str] = Counter()
    for entry in status.verdicts:
        verdicts[entry.verdict] += entry.count
    parts.extend(f"{verdict} {count}" for verdict, count in verdicts.most_common())
    parts.append(f"pending {status.pending}")
    for name, count in (
        ("dropped", status.shadow_dropped),
        ("fallback", status.fallback_reads),
        ("dead", status.dead_letters),
    ):
        if count:
            parts.append(f"{name} {count}")
    return " | ".join(parts)


def _rate(count: int, seconds: float) -> str:
    # A sidecar that was started anew counts from 0 again.
    return f"{count / seconds:.0f}" if seconds > 0 and count >= 0 else "-"


def _busiest(latencies: Iterable[StoreLatency], store: str) -> StoreLatency | None:
    """The series with most reads: quantiles of several series cannot be added up."""
    of_store = [entry for entry in latencies if entry.store == store and entry.operation in READS]
    return max(of_store, key=lambda entry: entry.count, default=None)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], screen: Console | None = None
) -> None:
    """A table; the first column to the left, the others to the right. Off a terminal:
    the same columns, without frames, two blanks between them, of full width."""
    screen = screen or console()
    lines = [list(row) for row in rows]
    if not screen.is_terminal:
        widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
        for line in (columns, *lines):
            cells = [
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            screen.print("  ".join(cells).rstrip(), markup=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for line in lines:
        table.add_row(*map(Text, line))
    screen.print(table)
