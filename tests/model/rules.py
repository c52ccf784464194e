"""The rules of the protocol that can be taken away, one at a time, and the hole each one closes.

`docs/model.md` tells the holes, H1 to H31. A model asks the field where it takes the step; a rule
that is off leaves the step as an earlier draft had it.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any


def rule(hole: str, says: str) -> Any:
    """A field that is on, with the hole that opens without it."""
    return field(default=True, metadata={"hole": hole, "says": says})


@dataclass(frozen=True, slots=True)
class ForwardRules:
    """Firestore is the authority."""

    rows_per_intent: bool = rule("H1", "one pending row per intent and path, not one per path")
    claimed_rows_only: bool = rule("H2", "a recopy deletes the rows it claimed, not the path's")
    revoke: bool = rule("H3", "an intent in doubt is revoked before the recopy reads")
    put_needs_row: bool = rule("H4", "a put whose pending row is gone puts nothing")
    outbox_recopies: bool = rule("H4", "the image of an outbox write is never put directly")
    prune_not_pending: bool = rule("H5", "no tombstone is pruned while its path is pending")
    prune_no_page: bool = rule("H5", "no tombstone is pruned while a page of a copy is open")
    tombstones: bool = rule("H5", "deleting leaves a tombstone with the delete's version")
    recopy_at_least: bool = rule("H7", "a recopy puts its image over one of the same version, too")
    recopy_partial: bool = rule("H8", "partial writes are recopied, not applied to the mirror")
    guard: bool = rule("H9", "a put needs a version above the stored one")
    gate: bool = rule("H13", "an outbox write closes the gate for mirror reads first")
    gate_generation: bool = rule("H13", "an outbox commit needs the very gate that was waited for")
    wait_for_leases: bool = rule("H13", "after closing the gate, L passes before the commit")
    one_statement: bool = rule("H14", "a mirror read is one statement: data and pending together")
    check_before_read: bool = rule("H14", "what is pending is never asked after the data was read")
    whole_call: bool = rule("H15", "one pending path sends the whole call to the authority")
    wildcard: bool = rule("H16", "everything is pending until it has been copied")
    sweep: bool = rule("H16", "rows that the copy has not seen become pending before it ends")
    unknown_keeps_rows: bool = rule("H31", "only a definite refusal deletes the pending rows")


@dataclass(frozen=True, slots=True)
class ReverseRules:
    """PostgreSQL is the authority: the put into Firestore."""

    precondition: bool = rule("H22", "the commit needs the update_time that is remembered")
    remember_attempt: bool = rule("H22", "what is about to be sent is written down before")
    revoke_former: bool = rule("H23", "attempts that nobody has settled are revoked before")
    still_claimant: bool = rule("H23", "only the claimant writes down, remembers, and deletes")
    own_rows_only: bool = rule("H24", "only the rows that the claim holds are deleted")


@dataclass(frozen=True, slots=True)
class AuthorityRules:
    """Changes of authority, both ways."""

    revoke: bool = rule("H3", "an intent in doubt is revoked before the recopy reads")
    version_has_epoch: bool = rule("H10", "versions are (epoch, time), compared in that order")
    puts_check_epoch: bool = rule("H11", "a put of before the change is refused by the epoch")
    stage_lease: bool = rule("H17", "who reads Firestore as authority holds a stage lease")
    reads_show_epoch: bool = rule("H17", "a read of PostgreSQL as authority shows the epoch")
    fence_per_claim: bool = rule("H23a", "a reverse claim revokes the ones before it")
    epoch_under_lock: bool = rule("H25", "the epoch is checked under a lock shared with the change")
    outbox_checks_control: bool = rule("H26", "an outbox commit needs the control document open")
    outbox_drained: bool = rule("H26", "the change waits until the outbox is empty")


@dataclass(frozen=True, slots=True)
class CoordinatorRules:
    """A change of authority that several coordinators carry on."""

    step_compares: bool = rule("H34", "the next step is set by who has the turn at the former")
    open_compares: bool = rule("H34", "an authority is opened by who has the turn at that step")
    give_up_compares: bool = rule("H34", "a change is given up by who has the turn, at its step")
    settle_compares: bool = rule("H34", "a change is ended by who has the turn at its last step")
    document_compares: bool = rule("H34", "the document is written over what was read only")
    no_later_document: bool = rule("H34", "a document of a later epoch is left alone")
    epoch_of_its_turn: bool = rule("H34", "a turn ends with the epoch in which it was taken")
    waits_for_leases: bool = rule("H17", "PostgreSQL opens when the leases of before are over")
    waits_for_pending: bool = rule("H26", "PostgreSQL opens when nothing is pending")


@dataclass(frozen=True, slots=True)
class RequestRules:
    """A commit that is sent again with its request_id."""

    in_the_commit: bool = rule("H30", "the authority's own commit records the request_id")
    mirrored: bool = rule("H30", "the record is mirrored before the commit's pending row goes")


@dataclass(frozen=True, slots=True)
class SnapshotRules:
    """Reads routed to the Firestore mirror while PostgreSQL is the authority."""

    check_first: bool = rule("H14", "PostgreSQL is asked what is pending before Firestore is read")
    single_documents: bool = rule("H14", "queries are never answered by two steps, check and read")


@dataclass(frozen=True, slots=True)
class TombstoneRules:
    """The guard in PostgreSQL, under READ COMMITTED."""

    path_lock: bool = rule("H6", "the lock of the path is taken in a statement before the guard")


AnyRules = (
    ForwardRules
    | ReverseRules
    | AuthorityRules
    | CoordinatorRules
    | RequestRules
    | SnapshotRules
    | TombstoneRules
)
TABLE: tuple[type[AnyRules], ...] = (
    ForwardRules,
    ReverseRules,
    AuthorityRules,
    CoordinatorRules,
    RequestRules,
    SnapshotRules,
    TombstoneRules,
)


def rules_of(table: type[AnyRules]) -> tuple[Field[Any], ...]:
    return fields(table)
