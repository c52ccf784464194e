"""Changes of authority. F1 to F7b and G1, G2 stand alone; F8 to F10 and G3 are the whole."""

from typing import Any

from tests.model.authority.state import POSTGRESQL, Changes
from tests.model.authority.system import AuthoritySystem
from tests.model.rules import AuthorityRules
from tests.model.scenarios.scenario import Scenario, off

ONE: Any = (("set",), ())
OTHER: Any = ((), ("set",))
BOTH: Any = (("set",), ("set",))
TWICE: Any = (("set", "set"), ())
DELETED: Any = (("set", "delete"), ())
RECREATED: Any = (("delete", "set"), ())
DELETED_BOTH: Any = (("set", "delete"), ("set",))


def _authority(
    name: str,
    *without: str,
    wrong: str | None = None,
    steps: int | None = None,
    slow: bool = False,
    **bounds: Any,
) -> Scenario:
    model = Changes(rules=AuthorityRules(**off(without)), **bounds)
    return Scenario(name, AuthoritySystem(model), AuthorityRules, without, wrong, steps, slow)


def _whole(name: str, *without: str, wrong: str | None = None, **bounds: Any) -> Scenario:
    """There and back, with everything that may go wrong."""
    everything = {"changes": 2, "cuts": 1, "crashes": 1, "skew": 5, "prunes": 1, "reads": 1}
    everything |= {"workers": 2, "operations": DELETED_BOTH, **bounds}
    return _authority(f"F9 {name}", *without, wrong=wrong, slow=True, **everything)


AUTHORITY: tuple[Scenario, ...] = (
    _authority(
        "F1 the epoch read without a lock, to PostgreSQL",
        "epoch_under_lock",
        operations=ONE,
        wrong="two authorities: Firestore",
        steps=7,
    ),
    _authority(
        "F1a the epoch read without a lock, to Firestore",
        "epoch_under_lock",
        start=POSTGRESQL,
        operations=ONE,
        wrong="two authorities: PostgreSQL",
        steps=4,
    ),
    _authority(
        "F2 a crashed writer's commit is in flight, not revoked",
        "revoke",
        crashes=1,
        operations=ONE,
        wrong="lost at the change",
        steps=9,
    ),
    _authority(
        "F3 outbox of a sidecar that is cut off",
        "outbox_checks_control",
        cuts=1,
        operations=ONE,
        wrong="two authorities: Firestore",
        steps=7,
    ),
    _authority(
        "F3a the same, two writers",
        "outbox_checks_control",
        cuts=1,
        operations=BOTH,
        wrong="two authorities: Firestore",
        steps=7,
    ),
    _authority(
        "F3b the outbox is not waited for",
        "outbox_drained",
        cuts=1,
        operations=ONE,
        wrong="lost at the change",
        steps=7,
    ),
    _authority(
        "F3c the outbox chosen at will, and nothing checks the control document",
        "outbox_checks_control",
        at_will=True,
        operations=ONE,
        wrong="two authorities: Firestore",
        steps=6,
    ),
    _authority("F3d the outbox chosen at will", at_will=True, crashes=1, operations=BOTH),
    _authority(
        "F3e the outbox chosen at will, there and back, cut off",
        at_will=True,
        changes=2,
        cuts=1,
        crashes=1,
        reads=1,
        operations=DELETED_BOTH,
        slow=True,
    ),
    _authority(
        "F4 every commit checks the control document",
        every_commit_checks_control=True,
        cuts=1,
        crashes=1,
        operations=BOTH,
    ),
    _authority(
        "F4a outbox commits check it, what is in doubt is revoked",
        cuts=1,
        crashes=1,
        operations=BOTH,
    ),
    _authority(
        "F5 a recopy of before the change, tombstone pruned, clock behind",
        "puts_check_epoch",
        "version_has_epoch",
        prunes=1,
        crashes=1,
        workers=2,
        skew=-3,
        operations=DELETED,
        wrong="lost",
        steps=14,
    ),
    _authority(
        "F5 the same, the epoch in the versions",
        "puts_check_epoch",
        prunes=1,
        crashes=1,
        workers=2,
        skew=-3,
        operations=DELETED,
        wrong="lost",
        steps=14,
    ),
    _authority(
        "F5a every put checks the epoch",
        prunes=1,
        crashes=1,
        workers=2,
        skew=-3,
        operations=RECREATED,
    ),
    _authority(
        "F6 versions without the epoch, clock ahead",
        "version_has_epoch",
        start=POSTGRESQL,
        skew=5,
        operations=TWICE,
        wrong="lost",
        steps=11,
    ),
    _authority("F6a versions of epoch and time", start=POSTGRESQL, skew=5, operations=TWICE),
    _authority(
        "F7 Firestore read without a stage lease",
        "stage_lease",
        reads=1,
        operations=OTHER,
        wrong="stale read",
        steps=6,
    ),
    _authority(
        "F7a PostgreSQL read without the epoch",
        "reads_show_epoch",
        start=POSTGRESQL,
        reads=1,
        operations=OTHER,
        wrong="stale read",
        steps=7,
    ),
    _authority("F7b stage lease and epoch, there and back", changes=2, reads=2, operations=BOTH),
    _authority(
        "F8 there and back, clock behind",
        changes=2,
        cuts=1,
        crashes=1,
        prunes=1,
        skew=-3,
        operations=DELETED_BOTH,
        slow=True,
    ),
    _authority(
        "F8a there and back, clock ahead",
        changes=2,
        cuts=1,
        crashes=1,
        prunes=1,
        skew=5,
        operations=(("set", "set"), ("delete",)),
        slow=True,
    ),
    _authority(
        "F8b there and back, one operation each",
        changes=2,
        cuts=1,
        crashes=1,
        prunes=1,
        skew=-3,
        operations=(("set",), ("delete",)),
    ),
    _whole("complete"),
    _whole("complete, every commit checks the control document", every_commit_checks_control=True),
    _whole("minus the revoking", "revoke", wrong="lost"),
    _whole("minus the epoch in versions", "version_has_epoch", wrong="lost"),
    _whole("minus the epoch in puts", "puts_check_epoch", wrong="lost"),
    _whole("minus the stage lease", "stage_lease", wrong="stale read"),
    _whole("minus the epoch in PostgreSQL reads", "reads_show_epoch", wrong="stale read"),
    _whole("minus the lock", "epoch_under_lock", wrong="two authorities"),
    _whole(
        "minus the control document in outbox commits",
        "outbox_checks_control",
        wrong="two authorities",
    ),
    _whole("minus waiting for the outbox", "outbox_drained", wrong="lost"),
    _authority(
        "F10 there and back, one barrier aborted",
        changes=2,
        aborts=1,
        crashes=1,
        reads=1,
        operations=BOTH,
    ),
    _authority(
        "F10a there and back, one barrier aborted, cut off",
        changes=2,
        aborts=1,
        cuts=1,
        crashes=1,
        reads=1,
        operations=BOTH,
        slow=True,
    ),
    _authority(
        "G1 a reverse put outlives its claim",
        "fence_per_claim",
        start=POSTGRESQL,
        reverse_in_steps=True,
        workers=2,
        crashes=1,
        skew=5,
        operations=TWICE,
        wrong="lost at the change",
        steps=11,
    ),
    _authority(
        "G2 a fence per claim",
        start=POSTGRESQL,
        reverse_in_steps=True,
        workers=2,
        crashes=1,
        skew=5,
        operations=TWICE,
    ),
    _authority(
        "G3 the same, there and back, deleted, cut off",
        start=POSTGRESQL,
        changes=2,
        reverse_in_steps=True,
        workers=2,
        crashes=1,
        cuts=1,
        skew=-3,
        operations=DELETED_BOTH,
        slow=True,
    ),
)
