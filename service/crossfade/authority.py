"""What is asked of the authority alone: of one group, or of several that have the same one.

Reads of a past moment, queries of all collections, what lists names, and whether a request
was done before. PostgreSQL keeps no past, so there it is refused where something has changed.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from crossfade.aggregate import Aggregation
from crossfade.call import Call
from crossfade.controls import Controls
from crossfade.errors import (
    CrossfadeError,
    FailedPrecondition,
    InfrastructureError,
    InvalidArgument,
    Unavailable,
)
from crossfade.groups import DEFAULT, Groups
from crossfade.migrator import spans
from crossfade.pending import ATTEMPTS, intents_of
from crossfade.plan import StoreName
from crossfade.query import Query
from crossfade.store import NOW, Aggregated, At, MirrorState, Page, Reading, Stored
from crossfade.stores.firestore import FirestoreStore
from crossfade.stores.postgres.store import PostgresStore


class Authority:
    """The stores by what is in charge. `firestore` None, and no `postgres`: the sidecar runs
    without."""

    def __init__(
        self,
        groups: Groups,
        controls: Controls,
        firestore: FirestoreStore | None,
        postgres: Mapping[str, PostgresStore],
    ) -> None:
        self._groups = groups
        self._controls = controls
        self._several = len(controls) > 1
        self.firestore = firestore
        self._postgres = postgres

    async def known(self, request_id: str | None, call: Call) -> tuple[bool, int]:
        """Whether the request was committed before, and which of its intents to try next."""
        if request_id is None:
            return False, 0
        intents = intents_of(request_id)
        if not self._several:
            snapshot = await self._controls[DEFAULT].admit(call.left)
            return await self._was_done(snapshot.authority, intents, call)
        done, attempt = False, 0
        authorities = {control.snapshot.authority for control in self._controls.values()}
        for authority in sorted(authorities):
            try:
                found, free = await self._was_done(authority, intents, call)
            except InfrastructureError:
                # It may be about the other one's groups alone. If it is not, it fails by itself.
                if len(authorities) == 1:
                    raise
                continue
            done, attempt = done or found, max(attempt, free)
        return done, attempt

    async def _was_done(
        self, authority: StoreName, intents: Sequence[str], call: Call
    ) -> tuple[bool, int]:
        if authority is StoreName.POSTGRESQL:
            return await self.postgres.was_done(intents, timeout=call.left()), 0
        states = await self.needs_firestore().intent_states(intents, timeout=call.left())
        free = [number for number, state in enumerate(states) if state != "revoked"]
        return "applied" in states, free[0] if free else ATTEMPTS - 1

    # --- reads of a past moment ---------------------------------------------------------------

    async def get_at(self, read_time: int, paths: Sequence[str], call: Call) -> Reading:
        """The documents as they were at a time, in microseconds. PostgreSQL keeps no past: there
        it is FailedPrecondition where one of them has changed since."""
        names = self._groups.spanned(paths)
        if len(names) == 1:
            return await self._get_at(names[0], read_time, paths, call)
        found: dict[str, Stored] = {}
        for name in names:
            own = [path for path in paths if self._groups.spanned([path]) == (name,)]
            reading = await self._get_at(name, read_time, own, call)
            found |= {stored.path: stored for stored in reading.documents}
        return Reading(tuple(found[path] for path in paths), read_time)

    async def _get_at(
        self, group: str, read_time: int, paths: Sequence[str], call: Call
    ) -> Reading:
        at = At(read_time=read_time)
        snapshot = await self._controls[group].admit(call.left)
        call.served(snapshot.authority.value)
        if snapshot.authority is StoreName.FIRESTORE:
            return await self.needs_firestore().get(paths, timeout=call.left(), at=at)
        reading = await self.postgres_of(group).get(paths, timeout=call.left())
        self._check_state(group, reading.state)
        if read_time > reading.read_time:
            raise InvalidArgument("read_time: it cannot be in the future")
        if any(s.version is not None and s.version[1] > read_time for s in reading.documents):
            raise no_past(read_time)
        return Reading(reading.documents, read_time, reading.state)

    async def query(self, query: Query, call: Call, at: At = NOW) -> AsyncIterator[Page]:
        """A query's pages by the authority, as nobody routes it: of all collections, or of the
        past."""
        names = self.reached(query)
        firestore = await self.at(call, at, names)
        if firestore is not None:
            async for page in firestore.query(query, timeout=call.left(), at=at):
                yield page
            return
        async for page in self.postgres_of(names[0]).query(query, timeout=call.left()):
            self._check_state(names[0], page.state)
            yield page

    async def aggregate(
        self, query: Query, aggregations: Sequence[Aggregation], call: Call, at: At = NOW
    ) -> Aggregated:
        """The same for aggregations."""
        names = self.reached(query)
        firestore = await self.at(call, at, names)
        if firestore is not None:
            return await firestore.aggregate(query, aggregations, timeout=call.left(), at=at)
        postgres = self.postgres_of(names[0])
        found = await postgres.aggregate(query, aggregations, timeout=call.left())
        self._check_state(names[0], found.state)
        return found

    def _check_state(self, group: str, state: MirrorState | None) -> None:
        if state is not None and not self._controls[group].snapshot.current(state):
            raise Unavailable("the authority is changing")

    async def at(
        self, call: Call, at: At = NOW, names: Sequence[str] = (DEFAULT,)
    ) -> FirestoreStore | None:
        """The Firestore to ask for something that is asked of the authority of these groups
        alone; None where that is PostgreSQL. Raises FailedPrecondition there for a read_time,
        and where they have different authorities."""
        call.check_unpinned()
        snapshots = [*(await self._controls.admit(names, call.left)).values()]
        authority = snapshots[0].authority
        if any(snapshot.authority is not authority for snapshot in snapshots):
            raise FailedPrecondition(spans("the read", [self._controls[name] for name in names]))
        call.served(authority.value)
        if authority is StoreName.FIRESTORE:
            return self.needs_firestore()
        if at.read_time is not None:
            raise no_past(at.read_time)
        return None

    async def of(self, collection: str | None, call: Call, at: At = NOW) -> FirestoreStore | None:
        """`at` of one collection, or (None) of all."""
        names = tuple(self._controls) if collection is None else (self._groups.of(collection),)
        return await self.at(call, at, names)

    async def of_each(
        self, call: Call, at: At = NOW
    ) -> list[tuple[FirestoreStore | None, Callable[[str], bool]]]:
        """The authorities of all groups: each as `at` names it, and whether it is
        that of a collection."""
        asked = {name: await self.at(call, at, (name,)) for name in self._controls}

        def led(by: FirestoreStore | None) -> Callable[[str], bool]:
            return lambda collection: asked[self._groups.of(collection)] is by

        return [(store, led(store)) for store in dict.fromkeys(asked.values())]

    # --- the stores ---------------------------------------------------------------------------

    def needs_firestore(self) -> FirestoreStore:
        if self.firestore is None:
            raise Unavailable("this sidecar runs without Firestore")
        return self.firestore

    @property
    def postgres(self) -> PostgresStore:
        return self.postgres_of(DEFAULT)

    def postgres_of(self, group: str) -> PostgresStore:
        """The store whose answers show the state of a group."""
        if group not in self._postgres:
            raise Unavailable("this sidecar runs without PostgreSQL")
        return self._postgres[group]

    def reached(self, query: Query) -> tuple[str, ...]:
        """The groups that a query is of: one, or all if it is of all collections."""
        if query.collection is None:
            return tuple(self._controls)
        return (self._groups.of(query.collection),)

    def led_by(self, authority: StoreName) -> list[str]:
        """The groups that an authority decides."""
        return [
            name
            for name, control in self._controls.items()
            if control.snapshot.authority is authority
        ]


def no_past(read_time: int) -> CrossfadeError:
    if read_time > time.time_ns() // 1_000:
        return InvalidArgument("read_time: it cannot be in the future")
    return FailedPrecondition(
        "read_time: PostgreSQL is the authority and keeps no earlier versions of documents"
    )
