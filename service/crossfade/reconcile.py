"""Keeps Firestore's control document and PostgreSQL's control row in step, and opens Firestore
alone when PostgreSQL is dead.

The document is changed by compare and set, and never to an earlier epoch: of two that disagree
the later one is followed, as far as that can be done without losing a write unsaid.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from crossfade.control import Control
from crossfade.errors import Aborted, EpochChanged, FailedPrecondition
from crossfade.lease import Lease
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.stores.fences import ControlDocument
from crossfade.stores.postgres.membership import listed, of_group

log = structlog.get_logger(__name__)

# Written by PostgreSQL and never sent on, when Firestore was put in charge by force.
_LOST = f"""update crossfade.pending
set dead = true, claim = null, failure = 'lost by a rollback by force'
where position('/' in path) > 0 and {of_group("collection_id", 1)}"""


class Reconciler:
    """Of one group. `lease` None: there is no Firestore, and nothing to keep in step."""

    def __init__(self, control: Control, lease: Lease | None, timeout: float) -> None:
        self._control = control
        self._lease = lease
        self._timeout = timeout

    async def force(self, target: Stage) -> None:
        """PostgreSQL is in charge and dead: Firestore is opened without it. What PostgreSQL had
        not sent on is lost, and when it is back it follows (see reconcile)."""
        snapshot = self._control.snapshot
        if self._lease is None or STAGES[target].authority is not StoreName.FIRESTORE:
            raise FailedPrecondition(
                f"stage {target} cannot be forced: only a way to Firestore can"
            )
        found = await self._lease.fences.read(timeout=self._timeout)
        if found.open:
            raise FailedPrecondition("Firestore is in charge by its control document already")
        epoch = max(found.epoch, snapshot.epoch) + 1
        mirrored = STAGES[target].mirrored
        await self.write_document(
            lambda document: replace(document, epoch=epoch, open=True, mirrored=mirrored), epoch
        )
        await self._control.adopt()
        log.error("Firestore was put in charge by force", epoch=epoch)

    async def write_document(
        self, wanted: Callable[[ControlDocument], ControlDocument], epoch: int
    ) -> ControlDocument:
        """Compare and set, until the document is as wanted; returns what it was. Raises
        EpochChanged when it is of a later epoch: then somebody else has gone on."""
        assert self._lease is not None  # noqa: S101 - the callers have looked
        fences = self._lease.fences
        while True:
            began = time.monotonic()
            found = await fences.read(timeout=self._timeout)
            if found.epoch > epoch:
                raise EpochChanged("Firestore's control document is of a later epoch")
            after = wanted(found)
            if found.update_time and after == found:
                self._lease.learn(found, began)
                return found
            with suppress(Aborted):
                changed = await fences.change(found, after, timeout=self._timeout)
                self._lease.learn(changed, began)
                return found

    async def reconcile(self, row: Mapping[str, Any]) -> None:
        """Nothing is under way, so the two sides should agree. They do not where Firestore has
        lost its document (it was emptied, or restored), where PostgreSQL is older than it (a
        restored backup), or after a rollback by force."""
        rules = STAGES[Stage(row["stage"])]
        by_firestore = row["authority"] == StoreName.FIRESTORE.value
        if self._lease is None:
            return
        if by_firestore and not self._lease.covers(self._control.snapshot):
            await self._lease.renew()
        elif not self._lease.valid:
            return
        document = self._lease.document
        if document.epoch > row["epoch"]:
            if document.open:
                await self._follow_document(row, document)
            elif by_firestore:
                log.error(
                    "PostgreSQL's control row is older than Firestore's control document, which "
                    "says that PostgreSQL is in charge: was a backup restored? Nothing is served",
                    row=row["epoch"],
                    document=document.epoch,
                )
        elif by_firestore and (
            not document.update_time
            or document.epoch < row["epoch"]
            or not document.open
            or document.mirrored != rules.mirrored
        ):
            await self.write_document(
                lambda found: replace(
                    found, epoch=row["epoch"], open=True, mirrored=rules.mirrored
                ),
                row["epoch"],
            )
            log.info("Firestore's control document was written anew", epoch=row["epoch"])

    async def _follow_document(self, row: Mapping[str, Any], document: ControlDocument) -> None:
        """Firestore went on without PostgreSQL: nothing that PostgreSQL holds is vouched for."""
        stage = Stage.DUAL_WRITE if document.mirrored else Stage.OFF
        async with self._control.transaction() as connection:
            changed = await connection.execute(
                """update crossfade.control set stage = $3, authority = 'firestore', epoch = $4,
                    generation = generation + 1, updated_at = now()
                where grp = $1 and epoch = $2 and barrier is null""",
                self._control.group.name,
                row["epoch"],
                stage.value,
                document.epoch,
            )
            if changed == "UPDATE 1":
                await self._control.doubt_everything(connection)
                if row["authority"] == StoreName.POSTGRESQL.value:
                    # A recopy would put Firestore's documents over them without a word.
                    await connection.execute(_LOST, *listed(self._control.group))
        log.error(
            "PostgreSQL's control row was older than Firestore's control document, and follows "
            "it now; everything has to be copied again",
            epoch=document.epoch,
            stage=stage.value,
        )
        await self._control.refresh()
