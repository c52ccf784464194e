"""Mechanisms of the protocol, each switched off in the sidecars' processes, and the test
that must fail then. A mechanism whose absence no test notices is not proved to be needed.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TEST_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Mutation:
    """`law`: what is promised; `test`: the test of `test_faults.py` that finds it broken."""

    law: str
    test: str
    switch_off: Callable[[], None]


# --- what is switched off ----------------------------------------------------------------------


def _puts_of_nobody() -> None:
    """A put is not tied to its rows; they are deleted all the same."""
    from crossfade.stores.postgres.mirror import Mirror

    real = Mirror.put

    async def put(self: Any, images: Any, **options: Any) -> Any:
        owner = {"intent": None, "claim": None}
        done = await real(self, images, **(options | owner))
        intent, claim = options.get("intent"), options.get("claim")
        await self._lanes.execute(
            "delete from crossfade.pending where intent = $1 or claim = $2",
            intent,
            claim,
            timeout=5.0,
        )
        return done

    Mirror.put = put  # type: ignore[method-assign]


def _no_version_guard() -> None:
    from crossfade.stores.postgres.mirror import Mirror

    real = Mirror.put

    async def put(self: Any, images: Any, **options: Any) -> Any:
        await self._lanes.execute(
            "update crossfade.versions set epoch = 0 where path = any($1::text[])",
            [image.path for image in images],
            timeout=5.0,
        )
        return await real(self, images, **options)

    Mirror.put = put  # type: ignore[method-assign]


def _no_lock_of_the_path() -> None:
    """The guard reads what is committed, and then puts the document, apart."""
    from dataclasses import replace

    from crossfade.stores.postgres.mirror import Mirror

    real = Mirror.put

    async def put(self: Any, images: Any, **options: Any) -> Any:
        if options.get("intent") is None or len(images) != 1 or images[0].fields is None:
            return await real(self, images, **options)
        image, epoch = images[0], options["epoch"]
        newer = await self._lanes.fetchval(
            "select count(*) from crossfade.versions where path = $1 and (epoch, time) > ($2, $3)",
            image.path,
            epoch,
            image.time,
            timeout=5.0,
        )
        if newer:
            return await real(self, images, **options)
        apart = replace(image, path=f"{image.path}~")
        done = await real(self, [apart], **(options | {"intent": None, "requests": []}))
        for statement in (
            f"update crossfade.documents set path = '{image.path}' where path = '{apart.path}'",
            f"delete from crossfade.versions where path = '{apart.path}'",
            f"delete from crossfade.pending where intent = '{options['intent']}'",
        ):
            await self._lanes.execute(statement, timeout=5.0)
        return done

    Mirror.put = put  # type: ignore[method-assign]


def _pages_keep_nothing() -> None:
    """Tombstones are pruned though a copy is under way."""
    from crossfade.stores.postgres import pruning

    pruning._PRUNE = pruning._PRUNE.replace("and not exists (select from crossfade.pages)", "")


def _equal_versions_are_refused() -> None:
    from crossfade.stores.postgres.mirror import Mirror

    real = Mirror.put

    async def put(self: Any, images: Any, **options: Any) -> Any:
        return await real(self, images, **(options | {"allow_equal": False}))

    Mirror.put = put  # type: ignore[method-assign]


def _nothing_is_revoked() -> None:
    """An expired lease is taken for a finished commit; it is asked what it did, at most."""
    from crossfade.errors import Unavailable
    from crossfade.stores.firestore import FirestoreStore

    async def revoke(self: Any, intent_id: str, timeout: float) -> bool:
        try:
            return await self.intent_outcome(intent_id, 0, timeout) is None
        except Unavailable:
            return True

    FirestoreStore.revoke = revoke  # type: ignore[method-assign]


def _rows_go_though_nobody_knows() -> None:
    from crossfade import forward

    async def refused(parts: Any, intent: str, error: Any, *, shared: bool) -> None:
        for part in parts:
            if part.mirrored:
                await part.forward.mirroring.drop(intent)

    forward._refused = refused


def _pending_is_ignored() -> None:
    from crossfade.snapshot import Snapshot

    Snapshot.vouches = Snapshot.current  # type: ignore[method-assign]
    Snapshot.settles = Snapshot.current  # type: ignore[method-assign]


def _leases_never_end() -> None:
    from crossfade.lease import Lease

    Lease.covers = lambda self, snapshot: True  # type: ignore[method-assign]
    Lease.valid = property(lambda self: True)  # type: ignore[assignment, method-assign]


def _no_epoch_in_statements() -> None:
    """Pending rows are opened under whatever epoch there is, and nobody asks the lease."""
    from crossfade.stores.postgres import mirror

    mirror._OPEN = mirror._OPEN.replace("epoch = $2::int8 and", "$2::int8 > 0 and").replace(
        "authority = any($9::text[])", "$9::text[] is not null"
    )
    _leases_never_end()


def _the_gate_stays_open() -> None:
    from crossfade.outbox import Outbox

    async def closed_gate(self: Any, snapshot: Any, left: Any) -> int:
        document = await self._lease.renew(left())
        return int(document.gate)

    Outbox.closed_gate = closed_gate  # type: ignore[method-assign]


def _partial_writes_are_put() -> None:
    """The image that the writer saw after its merge, instead of what is there now."""
    from crossfade.pending import Pending
    from crossfade.stores.postgres.mirror import Image

    async def settle(
        self: Any, intent: str, folded: Any, outcome: Any, epoch: int, *, shared: bool = False
    ) -> None:
        images = [
            Image(entry.path, entry.fields, outcome.commit_time, outcome.commit_time)
            for entry in folded
        ]
        await self.mirror.put(
            images, epoch=epoch, intent=intent, allow_equal=False, timeout=5.0, requests=[]
        )

    Pending.settle = settle  # type: ignore[method-assign]


def _nobody_looks_before_overwriting() -> None:
    """The way back commits without the precondition of what Firestore is known to hold."""
    from dataclasses import replace

    from crossfade.stores.firestore import FirestoreStore

    real = FirestoreStore.commit

    async def commit(self: Any, writes: Any, **options: Any) -> Any:
        blind = [replace(write, exists=None, update_time=None) for write in writes]
        return await real(self, blind, **options)

    FirestoreStore.commit = commit  # type: ignore[method-assign]


def _requests_are_forgotten() -> None:
    """A repeated request is an intent of its own."""
    from crossfade import forward, migrator, pending

    def intent_of(request_id: str, attempt: int) -> str:
        return pending.new_intent()

    for module, name, made in (
        (forward, "intent_of", intent_of),
        (pending, "intent_of", intent_of),
        (migrator, "intents_of", lambda _: (pending.new_intent(),)),
    ):
        setattr(module, name, made)


MUTATIONS: dict[str, Mutation] = {
    "rows that tie a put": Mutation(
        "what is deleted stays so",
        "test_a_put_that_comes_late_brings_nothing_back",
        _puts_of_nobody,
    ),
    "the version guard": Mutation(
        "an older write never overwrites a newer one",
        "test_a_put_that_comes_late_does_not_overwrite_a_newer_one",
        _no_version_guard,
    ),
    "the lock of the path": Mutation(
        "what is deleted stays so",
        "test_an_older_put_waits_for_a_delete_that_is_not_committed_yet",
        _no_lock_of_the_path,
    ),
    "pages that keep tombstones": Mutation(
        "what is deleted stays so",
        "test_a_page_that_is_open_keeps_the_tombstones_of_what_it_has_read",
        _pages_keep_nothing,
    ),
    "recopies of equal versions": Mutation(
        "a wrong document is healed",
        "test_what_is_wrong_in_the_mirror_is_healed_by_a_recopy",
        _equal_versions_are_refused,
    ),
    "revoking before a recopy": Mutation(
        "what was given up is never applied",
        "test_a_commit_that_arrives_after_its_recopy_is_refused",
        _nothing_is_revoked,
    ),
    "revoking before a takeover of the way back": Mutation(
        "what is deleted stays so",
        "test_a_reverse_put_that_arrives_after_a_takeover_is_refused",
        _nothing_is_revoked,
    ),
    "rows of an unknown outcome": Mutation(
        "an acknowledged or unknown write is never forgotten",
        "test_a_commit_that_nobody_answered_is_fenced_by_the_rows_that_stay",
        _rows_go_though_nobody_knows,
    ),
    "the pending rule of reads": Mutation(
        "no read is stale",
        "test_the_put_of_one_writer_does_not_settle_the_other",
        _pending_is_ignored,
    ),
    "stage leases": Mutation(
        "no read at a former authority",
        "test_a_sidecar_that_slept_through_a_flip_uses_the_old_authority_for_nothing",
        _leases_never_end,
    ),
    "the epoch in statements": Mutation(
        "no write at a former authority",
        "test_a_sidecar_that_slept_through_a_flip_writes_where_the_new_authority_is",
        _no_epoch_in_statements,
    ),
    "the gate of the outbox": Mutation(
        "no read is stale, on several sidecars",
        "test_no_sidecar_answers_from_a_mirror_that_another_went_around",
        _the_gate_stays_open,
    ),
    "recopies of partial writes": Mutation(
        "both stores hold the same",
        "test_merges_of_two_writers_leave_what_firestore_has",
        _partial_writes_are_put,
    ),
    "preconditions of the way back": Mutation(
        "a foreign document is never overwritten",
        "test_a_foreign_document_is_reported_and_never_overwritten",
        _nobody_looks_before_overwriting,
    ),
    "intents of requests": Mutation(
        "a repeated request is done once",
        "test_a_request_is_done_once_across_sidecars_crashes_and_flips",
        _requests_are_forgotten,
    ),
}


# --- trying them -------------------------------------------------------------------------------


def run_all() -> bool:
    """Tries all; whether one of them was not noticed, or its test fails without it, too."""
    wrong = []
    for test in dict.fromkeys(mutation.test for mutation in MUTATIONS.values()):
        if found := failure(test, ""):
            print(f"{test} fails with nothing switched off: {found}", flush=True)
            wrong.append(test)
    for name, mutation in MUTATIONS.items():
        found = failure(mutation.test, name)
        print(f"without {name}: {mutation.test} {found or 'PASSES'}", flush=True)
        if not found:
            wrong.append(name)
    return bool(wrong)


def failure(test: str, mutation: str) -> str:
    """How the test fails, "" if it does not. A test that does not come to run is an error
    (RuntimeError) and no proof."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            f"tests/fault/test_faults.py::{test}",
        ],
        env={**os.environ, "FAULT_MUTATION": mutation},
        capture_output=True,
        text=True,
        check=False,
        timeout=TEST_SECONDS,
    )
    lines = ended.stdout.splitlines()
    if ended.returncode == 0:
        return ""
    if ended.returncode != 1 or " failed" not in lines[-1] or "ChildError" in ended.stdout:
        raise RuntimeError(f"{test} did not run:\n{ended.stdout[-2_000:]}")
    said = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]
    return f"fails: {said[0] if said else lines[-1]}"[:200]
