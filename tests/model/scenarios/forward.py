"""Firestore as the authority. A1 to A9 stand alone; A10 to A12 are the whole."""

from typing import Any

from tests.model.forward.state import FIRST, Forward, Op, Row
from tests.model.forward.system import ForwardSystem
from tests.model.rules import ForwardRules
from tests.model.scenarios.scenario import Scenario, off

SET = Op("set")
OTHER = Op("set", (1,))
BOTH = Op("set", (0, 1))
LEFT = Op("update", field=0)
RIGHT = Op("update", field=1)
DELETE = Op("delete")

NO_FAULT: Any = {"crashes": 0}
TWO_DOCUMENTS: Any = {"authority": (FIRST, FIRST)}
EMPTY_MIRROR: Any = {"mirror": (None,), "backfill": True}
OLD_MIRROR: Any = {"mirror": (Row(FIRST, 0),), "authority": (None,), "backfill": True}
"""Deleted in stage `off`, while nothing was mirrored."""


def _forward(
    name: str,
    *without: str,
    wrong: str | None = None,
    steps: int | None = None,
    slow: bool = False,
    operations: tuple[tuple[Op, ...], ...] = ((SET,), (SET,)),
    **bounds: Any,
) -> Scenario:
    model = Forward(operations, rules=ForwardRules(**off(without)), **bounds)
    return Scenario(name, ForwardSystem(model), ForwardRules, without, wrong, steps, slow)


def _whole(name: str, *without: str, wrong: str | None = None, **bounds: Any) -> Scenario:
    """Backfill, pruning, outbox, crash, slow workers, reads; partial writes, too."""
    everything: Any = {"prunes": 1, "cuts": 1, "overtaken": True, **EMPTY_MIRROR}
    everything |= {"operations": ((SET, LEFT), (DELETE,)), **bounds}
    return _forward(name, *without, wrong=wrong, slow=True, **everything)


FORWARD: tuple[Scenario, ...] = (
    _forward(
        "A1 one pending row per path",
        "rows_per_intent",
        **NO_FAULT,
        workers=0,
        wrong="stale read",
        steps=8,
    ),
    _forward("A1a one pending row per intent, puts not tied to it", "put_needs_row", **NO_FAULT),
    _forward(
        "A2 a recopy deletes the rows of the path",
        "claimed_rows_only",
        wrong="stale read",
        steps=10,
    ),
    _forward(
        "A2a the same with a horizon",
        "claimed_rows_only",
        "put_needs_row",
        fence="horizon",
        wrong="stale read",
        steps=9,
    ),
    _forward("A3 the lease is over, the commit is in flight", "revoke", wrong="lost", steps=12),
    _forward("A3i a horizon: nothing is in flight any more", fence="horizon"),
    _forward("A3ii revoked before the recopy"),
    _forward(
        "A3iii revoked, owner and workers overtaken",
        overtaken=True,
        crashes=2,
        workers=2,
        reads=0,
        operations=((SET, LEFT), (SET,)),
        slow=True,
    ),
    _forward(
        "A3iv unknown, and the rows are deleted",
        "unknown_keeps_rows",
        operations=((SET,), ()),
        wrong="lost",
        steps=5,
    ),
    _forward(
        "A4 partial writes merged into the mirror",
        "recopy_partial",
        **NO_FAULT,
        operations=((LEFT,), (RIGHT,)),
        wrong="mixed",
        steps=7,
    ),
    _forward("A4a partial writes recopied", overtaken=True, operations=((LEFT,), (RIGHT,))),
    _forward("A4b a partial write beside a delete", operations=((LEFT, RIGHT), (DELETE,))),
    _forward(
        "A4i partial writes recopied, deletes and sets beside",
        overtaken=True,
        operations=((LEFT, DELETE), (RIGHT, SET)),
        slow=True,
    ),
    _forward(
        "A5 outbox, another sidecar reads the mirror",
        "gate",
        cuts=1,
        **NO_FAULT,
        operations=((SET,), ()),
        wrong="stale read",
        steps=5,
    ),
    _forward(
        "A5a a gate without generation",
        "gate_generation",
        cuts=2,
        **NO_FAULT,
        reads=2,
        operations=((SET,), (), (SET,)),
        wrong="stale read",
        steps=11,
    ),
    _forward(
        "A5b a gate with generation, and leases",
        cuts=2,
        **NO_FAULT,
        reads=2,
        operations=((SET,), (), (SET,)),
    ),
    _forward(
        "A5c the same, writers on all sides, a crash",
        cuts=1,
        reads=2,
        operations=((SET, LEFT), (SET,)),
        slow=True,
    ),
    _forward(
        "A5d the gate closed, and no waiting",
        "wait_for_leases",
        cuts=1,
        **NO_FAULT,
        operations=((SET,), ()),
        wrong="stale read",
        steps=6,
    ),
    _forward(
        "A5e the outbox of a sidecar that reaches PostgreSQL, no gate",
        "gate",
        at_will=True,
        **NO_FAULT,
        operations=((SET,), ()),
        wrong="stale read",
        steps=4,
    ),
    _forward(
        "A5f the outbox chosen at will, by two writers, a crash",
        at_will=True,
        operations=((SET,), (LEFT,)),
    ),
    _forward(
        "A5g the same, pruning, deletes, owners overtaken",
        at_will=True,
        overtaken=True,
        prunes=1,
        reads=2,
        operations=((SET, LEFT), (DELETE,)),
        slow=True,
    ),
    _forward(
        "A6 a query, checked, then read",
        "one_statement",
        query=True,
        **TWO_DOCUMENTS,
        **NO_FAULT,
        operations=((SET,), (OTHER,)),
        wrong="torn read",
        steps=9,
    ),
    _forward(
        "A6a a document, read, then checked",
        "check_before_read",
        **NO_FAULT,
        operations=((SET,), ()),
        wrong="stale read",
        steps=6,
    ),
    _forward("A6b a document, checked, then read", "one_statement"),
    _forward(
        "A6c a query in one statement, commits of two documents",
        query=True,
        **TWO_DOCUMENTS,
        reads=2,
        operations=((BOTH,), (SET, OTHER)),
    ),
    _forward(
        "A6d a batch answered by both stores",
        "whole_call",
        query=True,
        **TWO_DOCUMENTS,
        **NO_FAULT,
        operations=((BOTH,), (OTHER,)),
        wrong="torn read",
        steps=6,
    ),
    _forward(
        "A7 a tombstone pruned at any time, a stalled put",
        "prune_not_pending",
        "put_needs_row",
        prunes=1,
        **NO_FAULT,
        reads=0,
        operations=((SET,), (DELETE,)),
        wrong="resurrected",
        steps=9,
    ),
    _forward(
        "A7 the same, puts tied to their rows",
        "prune_not_pending",
        prunes=1,
        **NO_FAULT,
        reads=0,
        operations=((SET,), (DELETE,)),
        wrong="resurrected",
        steps=9,
    ),
    _forward(
        "A7a a put not tied to its row, a pruned tombstone",
        "put_needs_row",
        overtaken=True,
        prunes=1,
        reads=0,
        operations=((SET,), (DELETE,)),
        wrong="resurrected",
        steps=13,
    ),
    _forward(
        "A7b a tombstone pruned, a page open",
        "prune_no_page",
        prunes=1,
        **EMPTY_MIRROR,
        **NO_FAULT,
        reads=0,
        operations=((DELETE,), ()),
        wrong="resurrected",
        steps=8,
    ),
    _forward(
        "A7c pruned by the rule",
        prunes=1,
        **EMPTY_MIRROR,
        overtaken=True,
        operations=((DELETE, SET), (DELETE,)),
        slow=True,
    ),
    _forward(
        "A8 mirror reads before the copy is complete",
        "wildcard",
        **EMPTY_MIRROR,
        **NO_FAULT,
        operations=((), ()),
        wrong="false read",
        steps=1,
    ),
    _forward(
        "A8a everything pending until it is copied", **EMPTY_MIRROR, operations=((SET,), (DELETE,))
    ),
    _forward(
        "A8b deleted while nothing was mirrored, no sweep",
        "sweep",
        **OLD_MIRROR,
        **NO_FAULT,
        operations=((), ()),
        reads=0,
        wrong="resurrected",
        steps=3,
    ),
    _forward("A8c the sweep", **OLD_MIRROR, operations=((SET,), (DELETE,))),
    _forward(
        "A9 no tombstones, a late page",
        "tombstones",
        **EMPTY_MIRROR,
        **NO_FAULT,
        operations=((DELETE,), ()),
        reads=0,
        wrong="resurrected",
        steps=7,
    ),
    _forward("A9a no guard", "guard", **NO_FAULT, reads=0, wrong="lost", steps=8),
    _forward(
        "A9b a row edited by hand, recopies need a greater version",
        "recopy_at_least",
        edits=1,
        **NO_FAULT,
        operations=((), ()),
        reads=0,
        wrong="lost",
        steps=5,
    ),
    _forward("A9c a row edited by hand", edits=1, operations=((SET,), (DELETE,))),
    _forward(
        "A10c an outbox image put directly, the tombstone pruned before the drain",
        "outbox_recopies",
        prunes=1,
        cuts=1,
        **NO_FAULT,
        reads=0,
        operations=((SET,), (DELETE,)),
        wrong="resurrected",
        steps=15,
    ),
    _whole(
        "A10 an outbox image put directly",
        "outbox_recopies",
        operations=((SET,), (DELETE,)),
        wrong="resurrected",
    ),
    _whole("A10a the whole, two operations", operations=((SET,), (DELETE,))),
    _forward(
        "A10b the whole, one writer and one cut off",
        prunes=1,
        cuts=1,
        **EMPTY_MIRROR,
        operations=((DELETE,), (SET,)),
    ),
    _whole("A11 minus the row that a put needs", "put_needs_row", wrong="stale read"),
    _whole("A11 minus the guard", "guard", wrong="stale read"),
    _whole("A11 minus tombstones", "tombstones", wrong="stale read"),
    _whole("A11 minus the revoking", "revoke", wrong="stale read"),
    _whole("A11 minus deleting only claimed rows", "claimed_rows_only", wrong="stale read"),
    _whole("A11 minus rows per intent", "rows_per_intent", wrong="stale read"),
    _whole("A11 minus the wildcard", "wildcard", wrong="false read"),
    _whole("A11 minus the gate", "gate", wrong="stale read"),
    _whole("A11 minus waiting for leases", "wait_for_leases", wrong="stale read"),
    _whole("A11 minus the open page in pruning", "prune_no_page", wrong="stale read"),
    _whole("A11 minus the pending row in pruning", "prune_not_pending", wrong="stale read"),
    _whole("A11 minus recopying partial writes", "recopy_partial", wrong="mixed"),
    _whole("A12 complete"),
)
