"""The commands that archive a store's documents, and bring an archive back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from crossfade.probes import CannotStart, probe_firestore, probe_postgresql
from crossfade.settings import Settings, load

if TYPE_CHECKING:
    from crossfade.document import Database
    from crossfade.plan import StoreName
    from crossfade.snapshot import Snapshot
    from crossfade.store import DocumentStore, Intent
    from crossfade.stores.postgres.lanes import Lanes
    from crossfade.stores.postgres.store import PostgresStore

OK, FAILED = 0, 1
TIMEOUT = 60.0
LANES = 2
PLAIN_SECONDS = 5.0

Config = Annotated[
    Path | None,
    Parameter(help="TOML file. Default: CROSSFADE_CONFIG, or ./crossfade.toml if it is there."),
]
Switch = Parameter(negative="", show_default=False)
StoreChoice = Literal["firestore", "postgresql"]


def archive(
    directory: Path,
    *,
    source: Annotated[
        Literal["firestore", "postgresql", "authority"], Parameter(name="--from")
    ] = "firestore",
    config: Config = None,
) -> int:
    """Writes all documents of a store into a directory: compressed lines of JSON with exact
    types, a manifest, and digests that `sha256sum -c SHA256SUMS` checks.

    Broken off, the same command goes on where it was. It is a snapshot if nothing is written
    meanwhile, as in stage complete for Firestore. Crossfade's own documents are not in it.

    Example: crossfade archive /backup/firestore-2026-03-01

    :param directory: A new or empty one, or one with the beginning of the same archive.
    :param source: Which store's documents; authority: of the one that decides now.
    """
    from crossfade.errors import CrossfadeError
    from crossfade.jobs import archive as archiving
    from crossfade.plan import StoreName
    from crossfade.stores.firestore import connect

    settings = load(config)

    async def run() -> int:
        async with _opened(settings, needed=source != "firestore") as stores:
            name = stores.authority if source == "authority" else StoreName(source)
            pages: archiving.PagesFrom
            postgres = stores.postgres
            if name is StoreName.POSTGRESQL and postgres is not None:

                def pages(after: str | None) -> archiving.Pages:
                    return archiving.pages_of_postgresql(postgres.ranges, after, timeout=TIMEOUT)
            else:
                if settings.firestore.emulator is not None:
                    await probe_firestore(settings.firestore.emulator)
                firestore = connect(stores.database, settings.firestore.emulator)
                stores.resources.push_async_callback(firestore.close)

                def pages(after: str | None) -> archiving.Pages:
                    return archiving.pages_of_firestore(
                        firestore, stores.database, after, timeout=TIMEOUT
                    )

            stages = {group: each.stage.value for group, each in stores.snapshots.items()}
            of = archiving.Source(name, stores.database.name, stages)
            told = _Told("archived")
            async for count in archiving.archive(directory, of, pages):
                told(count)
        manifest = await asyncio.to_thread(archiving.verified, directory)
        print(f"{manifest['documents']} documents of {name.value} are in {directory}")
        return OK

    try:
        return asyncio.run(run())
    except CrossfadeError as error:
        raise CannotStart(f"{error} ({error.code})") from error


def restore(
    directory: Path,
    *,
    to: StoreChoice,
    overwrite: Annotated[bool, Switch] = False,
    address: Annotated[str | None, Parameter(env_var="CROSSFADE_ADDRESS")] = None,
    config: Config = None,
) -> int:
    """Brings an archive back: writes every document that the store does not hold as the archive
    has it. All digests are checked before the first write.

    Only into the store that decides; the other one follows. While Crossfade mirrors (stages
    dual_write to ramp_down), it goes as commits through a sidecar, whose --address it needs.
    A document that is newer than the archive is refused, and the exit code is 1 then.
    Documents that are not in the archive stay. Broken off, it may be started again.

    Example: crossfade restore /backup/firestore-2026-03-01 --to firestore

    :param directory: A whole archive.
    :param to: The store that is meant.
    :param overwrite: Also documents that are newer than the archive.
    :param address: HOST:PORT of a sidecar.
    """
    from crossfade.errors import CrossfadeError
    from crossfade.jobs import archive as archiving
    from crossfade.jobs.restore import Restorer
    from crossfade.plan import StoreName

    settings = load(config)

    async def run() -> int:
        manifest = await asyncio.to_thread(archiving.verified, directory)
        async with _opened(settings, needed=to == "postgresql") as stores:
            target, intent = await _target(settings, stores, StoreName(to), address)
            restorer = Restorer(
                target, stores.database, intent=intent, overwrite=overwrite, timeout=TIMEOUT
            )
            told = _Told("restored")
            async for count in restorer.run(archiving.documents_of(directory, manifest)):
                told(count)
        found = restorer.restored
        for path in found.refused:
            print(f"refused: {path}")
        print(", ".join(f"{count} {outcome}" for outcome, count in found.counts.items()))
        return OK if found.ok else FAILED

    try:
        return asyncio.run(run())
    except CrossfadeError as error:
        raise CannotStart(f"{error} ({error.code})") from error


class _Told:
    """A plain line on stderr now and then."""

    def __init__(self, what: str) -> None:
        from crossfade.display import console

        self._what = what
        self._screen = console()
        self._began = self._printed = time.monotonic()

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            rate = count / (now - self._began)
            self._screen.print(f"{count:,} documents {self._what} | {rate:,.0f}/s", markup=False)


# --- what they work with -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stores:
    """`snapshots` by group; none: PostgreSQL is not configured, or knows of no migration."""

    database: "Database"
    postgres: "PostgresStore | None"
    snapshots: "dict[str, Snapshot]"
    resources: AsyncExitStack

    @property
    def authority(self) -> "StoreName":
        """The store that decides. Raises CannotStart where each does of some collections."""
        from crossfade.plan import StoreName

        found = {each.authority for each in self.snapshots.values()} or {StoreName.FIRESTORE}
        if len(found) > 1:
            raise CannotStart(
                "one store decides of some groups of collections, the other of others; say which "
                "store is meant, or bring the groups to one stage first"
            )
        return found.pop()


@asynccontextmanager
async def _opened(settings: Settings, *, needed: bool) -> AsyncIterator[_Stores]:
    """PostgreSQL where it is configured (or `needed`), and what its control row says."""
    from crossfade import logs
    from crossfade.document import Database
    from crossfade.starting import hide_ids, load_mappings
    from crossfade.stores.postgres.lanes import Lanes
    from crossfade.stores.postgres.store import PostgresStore

    logs.configure(settings.log)
    database = Database(settings.firestore.project, settings.firestore.database)
    mappings = load_mappings(settings.migration.mappings)
    hide_ids(settings, mappings)
    async with AsyncExitStack() as resources:
        if settings.postgresql.url is None and not needed:
            yield _Stores(database, None, {}, resources)
            return
        await probe_postgresql(settings.postgresql)
        lanes = await Lanes.open(settings.postgresql.dsn, size=LANES)
        resources.push_async_callback(lanes.close)
        postgres = PostgresStore(lanes, mappings, database)
        yield _Stores(database, postgres, await _snapshots(lanes), resources)


async def _snapshots(lanes: "Lanes") -> "dict[str, Snapshot]":
    """Where the migration stands, by group; empty: there is none."""
    from crossfade.control import READ
    from crossfade.snapshot import snapshot_of

    if await lanes.fetchval("select to_regclass('crossfade.control')", timeout=TIMEOUT) is None:
        return {}
    names = await lanes.fetch("select grp from crossfade.control order by grp", timeout=TIMEOUT)
    rows = {name: await lanes.fetchrow(READ, name, timeout=TIMEOUT) for (name,) in names}
    return {name: snapshot_of(dict(row), {}) for name, row in rows.items() if row is not None}


async def _target(
    settings: Settings, stores: _Stores, name: "StoreName", address: str | None
) -> "tuple[DocumentStore, Callable[[], Intent | None]]":
    """The store that is written to, by the way that the stage asks for. Raises CannotStart."""
    from crossfade.pending import new_intent
    from crossfade.plan import StoreName
    from crossfade.store import Intent
    from crossfade.stores.fences import Fences
    from crossfade.stores.firestore import connect

    snapshots = list(stores.snapshots.values())
    if name is not stores.authority:
        raise CannotStart(
            f"{stores.authority.value} decides, and {name.value} follows it: restore "
            f"--to {stores.authority.value}, or change the stage first"
        )
    if len(snapshots) > 1 or any(each.rules.mirrored or not each.writable for each in snapshots):
        if address is None:
            raise CannotStart(
                f"the stage is {snapshots[0].stage}: what is restored has to be mirrored, so it "
                f"goes through a sidecar; say its --address"
            )
        await probe_firestore(address)
        # A sidecar speaks Firestore's protocol, whichever store decides behind it.
        sidecar = connect(stores.database, address)
        stores.resources.push_async_callback(sidecar.close)
        return sidecar, lambda: None
    if name is StoreName.POSTGRESQL:
        if stores.postgres is None or not snapshots:
            raise CannotStart("PostgreSQL is in charge of nothing yet: start a sidecar once")
        epoch = snapshots[0].epoch
        return stores.postgres, lambda: Intent(new_intent(), epoch, mirrored=False)
    if settings.firestore.emulator is not None:
        await probe_firestore(settings.firestore.emulator)
    firestore = connect(stores.database, settings.firestore.emulator)
    stores.resources.push_async_callback(firestore.close)
    document = await Fences(firestore).read(timeout=TIMEOUT)
    if not snapshots and (document.mirrored or not document.open):
        raise CannotStart(
            "a migration is under way, by the control document in Firestore; set DATABASE_URL, "
            "so that it can be seen how far it is"
        )
    return firestore, lambda: None
