"""All that a group of collections has of its own in a sidecar, put together.

Its part of the control state and what follows it (lease, coordinator), its pending rows and who
settles them, its outbox, and the heart that reads and commits. What the groups share, they are
given: connections, stores' channels, telemetry, the shadow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossfade.barrier import Coordinator
from crossfade.control import Control
from crossfade.document import Database
from crossfade.follower import Follower
from crossfade.forward import Forward
from crossfade.groups import Group
from crossfade.lease import Lease
from crossfade.mapping import Mappings
from crossfade.migrator import Migrator
from crossfade.outbox import Outbox
from crossfade.pace import Pace
from crossfade.pending import Pending
from crossfade.recopy import Recopy
from crossfade.settings import Settings
from crossfade.shadow import Shadow
from crossfade.store import Stores
from crossfade.stores.fences import Fences
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.lanes import Lanes
from crossfade.stores.postgres.mirror import Mirror
from crossfade.stores.postgres.store import PostgresStore
from crossfade.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Shared:
    """What all groups of a sidecar work with. `lanes` by their role; empty without PostgreSQL."""

    settings: Settings
    telemetry: Telemetry
    database: Database
    mappings: Mappings
    lanes: Mapping[str, Lanes]
    firestore: FirestoreStore | None


@dataclass(slots=True)
class Member:
    """A group as it runs. `lease`, `forward` and `outbox` are None without Firestore, `postgres`
    and `mirror` without PostgreSQL, `pending` and `recopy` without either."""

    group: Group
    control: Control
    lease: Lease | None
    coordinator: Coordinator
    stores: Stores
    shadow_stores: Stores
    postgres: PostgresStore | None
    mirror: Mirror | None
    pending: Pending | None
    outbox: Outbox | None
    forward: Forward | None
    recopy: Recopy | None

    def heart(self, shared: Shared, shadow: Shadow) -> Migrator:
        """What reads and commits; comparisons are offered to the `shadow`."""
        return Migrator(
            self.control,
            self.stores,
            self.forward,
            self.pending,
            shadow,
            shared.telemetry,
            shared.database,
            shared.settings.migration.mirror,
        )


def lease_of(group: Group, settings: Settings, firestore: FirestoreStore) -> Lease:
    fences = Fences(firestore, group)
    return Lease(fences, settings.migration.lease, settings.firestore.timeout)


def build(control: Control, shared: Shared) -> Member:
    """The parts of the group that the control state is of."""
    settings, telemetry, firestore = shared.settings, shared.telemetry, shared.firestore
    group, lease, lanes = control.group, control.lease, shared.lanes
    coordinator = Coordinator(
        control,
        lease,
        horizon=settings.migration.horizon,
        timeout=settings.postgresql.timeout,
    )
    postgres = _postgres(shared, "answer", group, enforce=True)
    mirror = Mirror(lanes["mirror"], shared.mappings, shared.database, group) if lanes else None
    pending = outbox = forward = recopy = None
    if mirror is not None and firestore is not None:
        pending = Pending(mirror, firestore, shared.database, settings.postgresql.timeout)
        recopy = Recopy(
            control,
            pending,
            firestore,
            telemetry,
            shared.database,
            request_window=settings.migration.request_window,
            **settings.recopy.model_dump(),
        )
        coordinator.wake_recopy = pending.woken.set
    if pending is not None and firestore is not None and lease is not None:
        outbox = Outbox(
            control,
            lease,
            firestore,
            pending,
            telemetry,
            settings.migration.patience,
            Pace() if settings.migration.avoids_slow_mirror else None,
        )
    if firestore is not None:
        forward = Forward(
            control,
            firestore,
            pending,
            outbox,
            telemetry,
            settings.migration.mirror,
            settings.migration.fence,
            settings.migration.horizon,
        )
    return Member(
        group,
        control,
        lease,
        coordinator,
        _stores(firestore, postgres),
        # Shadows have connections of their own: they never queue before an answer.
        _stores(firestore, _postgres(shared, "shadow", group, enforce=False)),
        postgres,
        mirror,
        pending,
        outbox,
        forward,
        recopy,
    )


def follower_of(member: Member, shared: Shared, mapped: Sequence[str]) -> Follower | None:
    """What follows the changes that others make to the group's collections; None: nothing has
    to, by the settings. `mapped`: what is followed where they name none."""
    chosen = shared.settings.follower
    names = [name for name in chosen.collections or mapped if member.group.holds(name)]
    if not chosen.enabled or not names or shared.firestore is None or member.pending is None:
        return None
    return Follower(
        member.control,
        member.pending,
        shared.firestore,
        shared.telemetry,
        shared.database,
        names,
        settle=chosen.settle,
    )


def _postgres(shared: Shared, role: str, group: Group, *, enforce: bool) -> PostgresStore | None:
    if not shared.lanes:
        return None
    return PostgresStore(
        shared.lanes[role],
        shared.mappings,
        shared.database,
        group.name,
        enforce=enforce and shared.settings.migration.constraints == "enforce",
    )


def _stores(firestore: FirestoreStore | None, postgres: PostgresStore | None) -> Stores:
    return Stores({store.name: store for store in (firestore, postgres) if store is not None})
