"""`python -m loadtests.troubled FILE serve ...`: a sidecar whose reads of documents in PostgreSQL
can be made to fail, or to be slow, while it runs.

The file says what is wrong: nothing (or it is not there), "errors", or "latency SECONDS". Only
gets are touched, whoever makes them: answers and shadow reads alike. All else of the sidecar, and
PostgreSQL itself, are as they always are.
"""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossfade import cli
from crossfade.errors import Unavailable
from crossfade.store import Reading
from crossfade.stores.postgres.store import PostgresStore

Get = Callable[..., Any]


def troubled(get: Get, told: Callable[[], str]) -> Get:
    """A store's `get`, or its method, as long as `told` says what the file does."""

    async def read(*args: Any, **options: Any) -> Reading:
        kind, _, seconds = told().partition(" ")
        if kind == "errors":
            raise Unavailable("PostgreSQL: a read that was made to fail")
        if kind == "latency":
            await asyncio.sleep(float(seconds))
        found: Reading = await get(*args, **options)
        return found

    return read


def main(file: str, *arguments: str) -> int:
    said = Path(file)

    def told() -> str:
        return said.read_text() if said.exists() else ""

    patched: Any = PostgresStore
    patched.get = troubled(PostgresStore.get, told)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
