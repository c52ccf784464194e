"""Read-repair: what a verdict found bad is queued for a recopy, but not for ever.

A document that is bad again after it was repaired has a cause that no repair removes
(a mapping that loses something, a writer around the sidecar). After `limit` repairs in
a row it is reported instead, until a comparison finds it good or the process ends.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from crossfade.plan import StoreName
from crossfade.telemetry import REPAIRS, REPAIRS_GIVEN_UP, Telemetry
from crossfade.verdict import BAD, Finding, Offer

log = structlog.get_logger(__name__)

Mark = Callable[[Sequence[str], int, StoreName], Awaitable[None]]
"""Queues a recopy of paths: under an epoch, from its authority."""

MAX_REMEMBERED = 10_000


class Repairs:
    """`mark` None: nothing is repaired."""

    def __init__(self, mark: Mark | None, telemetry: Telemetry, *, limit: int = 5) -> None:
        self._mark = mark
        self._telemetry = telemetry
        self._limit = limit
        self._repaired: OrderedDict[str, int] = OrderedDict()
        """How often in a row, of the documents repaired last."""

    def given_up(self, path: str) -> bool:
        return self._repaired.get(path, 0) >= self._limit

    def healthy(self, paths: Iterable[str]) -> None:
        """They were compared and are good."""
        if self._repaired:
            for path in paths:
                self._repaired.pop(path, None)

    async def repair(self, offer: Offer, findings: Iterable[Finding]) -> None:
        """Queues the documents that are bad. Raises CrossfadeError when that cannot be done."""
        if self._mark is None:
            return
        due = []
        for finding in findings:
            # A result that is wrong though its documents are right is nothing to copy.
            if finding.verdict not in BAD or finding.postgres is None:
                continue
            if self.given_up(finding.path):
                self._telemetry.count(REPAIRS_GIVEN_UP, offer.collection)
                log.error(
                    "a document is bad again after every repair",
                    path=finding.path,
                    repairs=self._limit,
                    fields=finding.fields[:10],
                )
            else:
                due.append(finding)
        if not due:
            return
        await self._mark([each.path for each in due], offer.epoch, offer.authority)
        for each in due:
            self._telemetry.count(REPAIRS, offer.collection, each.verdict.value)
            self._repaired[each.path] = self._repaired.pop(each.path, 0) + 1
            if len(self._repaired) > MAX_REMEMBERED:
                self._repaired.popitem(last=False)
