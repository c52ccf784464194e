"""request_id (M1), snapshots of the Firestore mirror (M2), tombstones in a second table (M3)."""

from tests.model.rules import RequestRules, SnapshotRules, TombstoneRules
from tests.model.scenarios.scenario import Scenario, off
from tests.model.small import Requests, Snapshots, Tombstones


def _requests(
    name: str, *without: str, wrong: str | None = None, steps: int | None = None, change: bool
) -> Scenario:
    system = Requests(RequestRules(**off(without)), change_of_authority=change)
    return Scenario(name, system, RequestRules, without, wrong, steps)


def _snapshots(
    name: str,
    *without: str,
    writes: tuple[tuple[int, ...], ...],
    docs: tuple[int, ...] = (0,),
    check_again: bool = False,
    wrong: str | None = None,
    steps: int | None = None,
) -> Scenario:
    rules = SnapshotRules(**off(without))
    system = Snapshots(writes, docs, rules, check_again=check_again)
    return Scenario(name, system, SnapshotRules, without, wrong, steps)


def _tombstones(
    name: str, *without: str, wrong: str | None = None, steps: int | None = None
) -> Scenario:
    system = Tombstones(TombstoneRules(**off(without)))
    return Scenario(name, system, TombstoneRules, without, wrong, steps)


SMALL: tuple[Scenario, ...] = (
    _requests(
        "M1 request_id kept in PostgreSQL only",
        "in_the_commit",
        change=False,
        wrong="doubled",
        steps=4,
    ),
    _requests("M1a request_id in the commit, no change of authority", "mirrored", change=False),
    _requests(
        "M1b request_id in the commit, PostgreSQL takes over",
        "mirrored",
        change=True,
        wrong="doubled",
        steps=5,
    ),
    _requests("M1c request_id in the commit and mirrored", change=True),
    _snapshots(
        "M2 a document of the Firestore mirror, read, then checked",
        "check_first",
        writes=((0,),),
        wrong="stale read",
        steps=4,
    ),
    _snapshots("M2a a document of the Firestore mirror, checked, then read", writes=((0,), (0,))),
    _snapshots(
        "M2b a query of the Firestore mirror, checked, then read",
        "single_documents",
        writes=((0,), (1,)),
        docs=(0, 1),
        wrong="torn read",
        steps=5,
    ),
    _snapshots(
        "M2c a query checked, read, checked again with the sequence of commits",
        "single_documents",
        writes=((0, 1), (0,), (1,)),
        docs=(0, 1),
        check_again=True,
    ),
    _snapshots("M2d queries stay with PostgreSQL", writes=((0,), (1,)), docs=(0, 1)),
    _tombstones(
        "M3 tombstones in a second table, READ COMMITTED", "path_lock", wrong="resurrected", steps=4
    ),
    _tombstones("M3a plus the lock of the path in a statement of its own"),
)
