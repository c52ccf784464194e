"""The audit trail: who changed what, when, and what the checks said."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from crossfade.ramp import Answer, Outcome
from crossfade.stores.postgres.lanes import Lanes

_LIST = """select at, who, action, collection_id, before, after, checks, reason
from crossfade.audit where $1::text is null or collection_id = $1
order by id desc limit $2"""


@dataclass(frozen=True, slots=True)
class Change:
    """`action`: stage, traffic, ramp or guard. `collection` "": all, or the defaults. `at`: when
    it was made; None: now, by PostgreSQL's clock."""

    who: str
    action: str
    before: str
    after: str
    reason: str
    collection: str = ""
    checks: tuple[Answer, ...] = ()
    at: datetime | None = None


def without_nul(text: str) -> str:
    """PostgreSQL has no NUL in texts; its symbol stands for it. A change was made, and what
    somebody wrote beside it must not keep it out of the trail."""
    return text.replace("\0", "\u2400")


def adding(source: str, first: int = 1) -> str:
    """The statement that adds a row for each row of `source`, of the arguments from `first` on:
    those of `arguments`. So a change and its row are one statement, and neither is without the
    other whatever happens to who makes it."""
    types = ("text", "text", "text", "text", "text", "jsonb", "text", "timestamptz")
    *given, at = (f"${number}::{kind}" for number, kind in enumerate(types, first))
    return f"""insert into crossfade.audit
    (who, action, collection_id, before, after, checks, reason, at)
select {", ".join(given)}, coalesce({at}, now()) {source}"""


def arguments(change: Change) -> tuple[Any, ...]:
    return (
        without_nul(change.who),
        change.action,
        change.collection,
        change.before,
        change.after,
        [
            {"name": each.name, "outcome": each.outcome.value, "reason": each.reason}
            for each in change.checks
        ],
        without_nul(change.reason),
        change.at,
    )


_ADD = adding("")


class Audit:
    """Rows are only ever added."""

    def __init__(self, lanes: Lanes, timeout: float = 5.0) -> None:
        self._lanes = lanes
        self._timeout = timeout

    async def add(self, change: Change) -> None:
        await self._lanes.execute(_ADD, *arguments(change), timeout=self._timeout)

    async def list(self, collection: str | None, limit: int) -> Sequence[tuple[datetime, Change]]:
        """The latest first."""
        where = None if collection is None else without_nul(collection)
        rows = await self._lanes.fetch(_LIST, where, limit, timeout=self._timeout)
        return [
            (
                row["at"],
                Change(
                    row["who"],
                    row["action"],
                    row["before"],
                    row["after"],
                    row["reason"],
                    row["collection_id"],
                    tuple(
                        Answer(each["name"], Outcome(each["outcome"]), each["reason"])
                        for each in row["checks"]
                    ),
                ),
            )
            for row in rows
        ]
