"""The tokens' file and variable: read at the start, and the file anew whenever it changes.

A file is taken as a whole or not at all: one that cannot be used leaves the tokens that are
in force, and is told of in the log, the status and a gauge until it is mended.
"""

import asyncio

import structlog

from crossfade.access import Access, AccessError, Caller, Role, Token, check, parse, parse_words
from crossfade.settings import AccessSettings, SettingsError

log = structlog.get_logger(__name__)

PERIOD_SECONDS = 1.0


class AccessWatch:
    """`access` holds the tokens of the settings. Raises SettingsError where they are wrong."""

    def __init__(self, settings: AccessSettings) -> None:
        self._file = settings.tokens_file
        self._words = settings.tokens
        self._seen = self._mark()
        trusted = Caller("", Role[settings.trusted_role.upper()]) if settings.trust else None
        self.problem = ""
        """Why the file is not in force; empty: it is."""
        try:
            self.access = Access(self._read(), trusted=trusted)
        except AccessError as error:
            raise SettingsError(str(error)) from None

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Takes the file if it is another one than when it was looked at last."""
        mark = self._mark()
        if mark == self._seen:
            return
        try:
            tokens = await asyncio.to_thread(self._read)
        except AccessError as error:
            self._seen = mark
            if str(error) != self.problem:
                log.error("the tokens are refused, the old ones stay", problem=str(error))  # noqa: TRY400
            self.problem = str(error)
            return
        if self._mark() != mark:
            return  # somebody is still writing it
        self._seen = mark
        self.problem = ""
        if tokens != self.access.tokens:
            self.access.replace(tokens)
            log.info("the tokens are taken", file=str(self._file), tokens=len(tokens))

    def _read(self) -> tuple[Token, ...]:
        """Raises AccessError; the message names file or setting, and shows no token."""
        found: tuple[Token, ...] = ()
        if self._words is not None:
            try:
                found = parse_words(self._words.get_secret_value())
            except AccessError as error:
                raise AccessError(f"[access] tokens: {error}") from None
        if self._file is not None:
            try:
                found += parse(self._file.read_text())
            except AccessError as error:
                raise AccessError(f"[access] tokens_file {self._file}: {error}") from None
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise AccessError(
                    f"[access] tokens_file {self._file} cannot be read: {reason}"
                ) from None
        return check(found)

    def _mark(self) -> tuple[int, ...] | None:
        """Changes with the file, also where another one takes its place (a mounted secret)."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
