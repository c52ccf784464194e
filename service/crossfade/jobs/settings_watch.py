"""Watches the settings file, and applies what may change while the sidecar runs.

That is how reads are routed and compared: [migration] read_percent and shadow_rate, and
all of [collections]. A file is applied as a whole or not at all; one that cannot be used
changes nothing and is told of in the log, the status and a gauge until it is mended.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from crossfade.settings import Settings, SettingsError

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 1.0

Apply = Callable[[Settings], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Changed:
    """What a file changed of one collection ("": of the defaults), in words for people."""

    collection: str
    before: str
    after: str


Tell = Callable[[Sequence[Changed]], Awaitable[None]]


class SettingsWatch:
    """`load` reads the whole settings anew, the environment too. `current` are those in force.
    `tell` hears what an applied file has changed; it raises nothing."""

    def __init__(
        self,
        file: Path,
        load: Callable[[], Settings],
        apply: Apply,
        current: Settings,
        tell: Tell | None = None,
    ) -> None:
        self._tell = tell
        self._file = file
        self._load = load
        self._apply = apply
        self.current = current
        self._seen = self._mark()
        self.problem = ""
        """Why the file is not in force; empty: it is."""

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Applies the file if it is another one than when it was looked at last."""
        mark = self._mark()
        if mark == self._seen:
            return
        try:
            fresh = await asyncio.to_thread(self._load)
        except SettingsError as error:
            self._seen = mark
            self._refuse(str(error))
            return
        if self._mark() != mark:
            return  # somebody is still writing it
        await self._apply(fresh)
        self._seen = mark
        if self._tell is not None:
            await self._tell(changes(self.current, fresh))
        later = _restarts(self.current, fresh)
        if self.problem or fresh != self.current:
            log.info("the settings file is applied", file=str(self._file), restart_for=later)
        # What takes a restart is not in force, so it is told again with the next change.
        self.current = self.current.model_copy(update=_routing(self.current, fresh))
        self.problem = ""

    def _refuse(self, problem: str) -> None:
        if problem != self.problem:
            log.error("the settings file is refused, nothing is changed", problem=problem)
        self.problem = problem

    def _mark(self) -> tuple[int, ...] | None:
        """Changes with the file, also where another one takes its place (a config map)."""
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def changes(before: Settings, after: Settings) -> list[Changed]:
    """How reads are routed and compared otherwise than before."""
    names = sorted({*before.collections, *after.collections})
    return [
        Changed(name, was, now)
        for name in ("", *names)
        if (was := _shown(before, name)) != (now := _shown(after, name))
    ]


def _shown(settings: Settings, name: str) -> str:
    """The part of the file that says how a collection is read; names of rules and fields stand
    in the audit trail, values of documents are in none of it."""
    part = settings.migration if not name else settings.collections.get(name)
    if part is None:
        return "the defaults"
    wanted = {"read_percent", "shadow_rate"} if not name else None
    given = part.model_dump(mode="json", include=wanted, exclude_defaults=bool(name))
    return json.dumps(given, sort_keys=True)


def _routing(current: Settings, fresh: Settings) -> dict[str, object]:
    """The parts of the settings that are applied."""
    percent, rate = fresh.migration.read_percent, fresh.migration.shadow_rate
    migration = current.migration.model_copy(update={"read_percent": percent, "shadow_rate": rate})
    return {"migration": migration, "collections": fresh.collections}


def _restarts(current: Settings, fresh: Settings) -> list[str]:
    """The sections with changes that only a restart takes up."""
    applied = current.model_copy(update=_routing(current, fresh))
    return [
        name for name in Settings.model_fields if getattr(applied, name) != getattr(fresh, name)
    ]
