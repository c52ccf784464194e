"""The commands that archive a store's documents, and bring an archive back."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from crossfade.admin_commands import sidecar_channel
from crossfade.backfill_commands import LOOK_SECONDS, Amount, Json, quiet_logs
from crossfade.loading import load
from crossfade.probes import CannotStart, probe_firestore, probe_postgresql
from crossfade.settings import Settings

if TYPE_CHECKING:
    from crossfade.budget import Budget
    from crossfade.document import Database
    from crossfade.job_display import CountLine
    from crossfade.jobs import archive as archiving
    from crossfade.jobs.brake import Brake
    from crossfade.plan import StoreName
    from crossfade.snapshot import Snapshot
    from crossfade.store import DocumentStore, Intent
    from crossfade.stores.postgres.lanes import Lanes
    from crossfade.stores.postgres.store import PostgresStore

OK, FAILED = 0, 1
TIMEOUT = 60.0
LANES = 2

Config = Annotated[
    Path | None,
    Parameter(help="TOML file. Default: CROSSFADE_CONFIG, or ./crossfade.toml if it is there."),
]
Switch = Parameter(negative="", show_default=False)
_LIVE = "select count(*) from crossfade.versions where live"
StoreChoice = Literal["firestore", "postgresql"]


def archive(
    directory: Path,
    *,
    source: Annotated[
        Literal["firestore", "postgresql", "authority"], Parameter(name="--from")
    ] = "firestore",
    rate: Amount | None = None,
    ignore_budget: Annotated[bool, Switch] = False,
    patience: Amount = 60.0,
    json_: Json = False,
    config: Config = None,
) -> int:
    """Writes all documents of a store into a directory: compressed lines of JSON with exact
    types, a manifest, and digests that `sha256sum -c SHA256SUMS` checks.

    Broken off, the same command goes on where it was. It is a snapshot if nothing is written
    meanwhile, as in stage complete for Firestore. Crossfade's own documents are not in it.

    Example: crossfade archive /backup/firestore-2026-03-01

    Example: crossfade archive /backup/firestore-2026-03-01 --rate 500

    :param directory: A new or empty one, or one with the beginning of the same archive.
    :param source: Which store's documents; authority: of the one that decides now.
    :param rate: Documents a second, at most.
    :param ignore_budget: Spends more than [shadow] daily_reads has left of the day; without it
        the archive waits for the next day (UTC).
    :param patience: Seconds for which the store may be away. One that refuses because of a quota
        is asked again until it does not.
    :param json_: Progress as JSON lines on stdout; the last one is the manifest.
    """
    from crossfade.errors import CrossfadeError
    from crossfade.job_display import CountLine
    from crossfade.jobs import archive as archiving
    from crossfade.jobs.brake import Brake
    from crossfade.plan import StoreName

    settings = load(config)

    async def run() -> int:
        async with _opened(settings, needed=source != "firestore") as stores:
            name = stores.authority if source == "authority" else StoreName(source)
            billed = name is StoreName.FIRESTORE and not ignore_budget
            brake = Brake(rate, await _budget(settings, stores) if billed else None, patience)
            pages, estimate = await _source(settings, stores, name, brake)
            stages = {group: each.stage.value for group, each in stores.snapshots.items()}
            of = archiving.Source(name, stores.database.name, stages)
            with CountLine("archived", as_json=json_) as line:
                doing = archiving.archive(directory, of, pages)
                await _followed(doing, line, estimate, brake)
        manifest = await asyncio.to_thread(archiving.verified, directory)
        if json_:
            print(json.dumps({"manifest": manifest}), flush=True)
        else:
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
    patience: Amount = 60.0,
    json_: Json = False,
    config: Config = None,
) -> int:
    """Brings an archive back: writes every document that the store does not hold as the archive
    has it. All digests are checked before the first write.

    Only into the store that decides; the other one follows. While Crossfade mirrors (stages
    dual_write to ramp_down), it goes as commits through a sidecar, whose --address it needs,
    and a token of the role writer where the sidecar asks for one (--token-file, --ca).
    A document that is newer than the archive is refused, and the exit code is 1 then.
    Documents that are not in the archive stay. Broken off, it may be started again.

    Example: crossfade restore /backup/firestore-2026-03-01 --to firestore

    :param directory: A whole archive.
    :param to: The store that is meant.
    :param overwrite: Also documents that are newer than the archive.
    :param address: HOST:PORT of a sidecar, or unix:PATH.
    :param patience: Seconds for which the store may be away. One that refuses because of a quota
        is asked again until it does not.
    :param json_: Progress as JSON lines on stdout; the last one is what came of the documents.
    """
    from crossfade.errors import CrossfadeError
    from crossfade.job_display import CountLine
    from crossfade.jobs import archive as archiving
    from crossfade.jobs.brake import Brake
    from crossfade.jobs.restore import Restorer
    from crossfade.plan import StoreName

    settings = load(config)

    async def run() -> int:
        manifest = await asyncio.to_thread(archiving.verified, directory)
        async with _opened(settings, needed=to == "postgresql") as stores:
            target, intent = await _target(settings, stores, StoreName(to), address)
            brake = Brake(patience=patience)
            restorer = Restorer(
                target,
                stores.database,
                intent=intent,
                overwrite=overwrite,
                timeout=TIMEOUT,
                brake=brake,
            )
            doing = restorer.run(archiving.documents_of(directory, manifest))
            with CountLine("restored", as_json=json_) as line:
                await _followed(doing, line, manifest["documents"], brake)
        found = restorer.restored
        if json_:
            counts = {str(outcome): count for outcome, count in found.counts.items()}
            print(json.dumps({"restored": counts, "refused": found.refused}), flush=True)
            return OK if found.ok else FAILED
        for path in found.refused:
            print(f"refused: {path}")
        print(", ".join(f"{count} {outcome}" for outcome, count in found.counts.items()))
        return OK if found.ok else FAILED

    try:
        return asyncio.run(run())
    except CrossfadeError as error:
        raise CannotStart(f"{error} ({error.code})") from error


async def _followed(
    doing: AsyncIterator[int], line: "CountLine", estimate: int | None, brake: "Brake"
) -> None:
    """To its end, with how far it is: `doing` yields how many documents are done."""
    done = 0

    async def through() -> None:
        nonlocal done
        async for count in doing:
            done = count

    running = asyncio.create_task(through())
    try:
        while not running.done():
            line.update(done, estimate, brake.waits_for)
            await asyncio.wait([running], timeout=LOOK_SECONDS)
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    line.update(done, estimate)


# --- what they work with -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stores:
    """`snapshots` by group; none: PostgreSQL is not configured, or knows of no migration."""

    database: "Database"
    postgres: "PostgresStore | None"
    lanes: "Lanes | None"
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


async def _budget(settings: Settings, stores: _Stores) -> "Budget | None":
    """The day's budget of reads, which PostgreSQL keeps for all that spend of it. Raises
    CannotStart where there is one and nobody keeps it."""
    from crossfade.budget import Budget
    from crossfade.starting import supervise
    from crossfade.stores.postgres.budget import BudgetTable

    if settings.shadow.daily_reads is None:
        return None
    if stores.lanes is None or not stores.snapshots:
        raise CannotStart(
            "[shadow] daily_reads is set, and there is no PostgreSQL with Crossfade's tables that "
            "would keep what is spent of it: set DATABASE_URL, or give --ignore-budget"
        )
    budget = Budget(settings.shadow.daily_reads, BudgetTable(stores.lanes))
    await budget.refill()
    refilling = supervise("budget", budget.run)
    stores.resources.callback(refilling.cancel)
    return budget


async def _source(
    settings: Settings, stores: _Stores, name: "StoreName", brake: "Brake"
) -> "tuple[archiving.PagesFrom, int | None]":
    """The pages of a store, and about how many documents there are."""
    from crossfade.errors import ResourceExhausted
    from crossfade.jobs import archive as archiving
    from crossfade.jobs.partitions import NameRange
    from crossfade.jobs.planning import count_in
    from crossfade.plan import StoreName
    from crossfade.stores.firestore import connect

    postgres, lanes = stores.postgres, stores.lanes
    if name is StoreName.POSTGRESQL and postgres is not None and lanes is not None:

        def pages(after: str | None) -> archiving.Pages:
            return archiving.pages_of_postgresql(
                postgres.ranges, after, timeout=TIMEOUT, brake=brake
            )

        live = int(await lanes.fetchval(_LIVE, timeout=TIMEOUT))
        return archiving.patient(pages, brake), live
    if settings.firestore.emulator is not None:
        await probe_firestore(settings.firestore.emulator)
    firestore = connect(stores.database, settings.firestore.emulator)
    stores.resources.push_async_callback(firestore.close)

    def pages_of_firestore(after: str | None) -> archiving.Pages:
        return archiving.pages_of_firestore(
            firestore, stores.database, after, timeout=TIMEOUT, brake=brake
        )

    try:
        count = await count_in(firestore, NameRange("", None, None), timeout=TIMEOUT)
    except ResourceExhausted:
        count = None  # the pages will wait for the quota
    brake.spend(0, 1 + (count or 0) // 1_000)
    return archiving.patient(pages_of_firestore, brake), count


@asynccontextmanager
async def _opened(settings: Settings, *, needed: bool) -> AsyncIterator[_Stores]:
    """PostgreSQL where it is configured (or `needed`), and what its control row says."""
    from crossfade.document import Database
    from crossfade.starting import hide_ids, load_mappings
    from crossfade.stores.postgres.lanes import Lanes
    from crossfade.stores.postgres.store import PostgresStore

    quiet_logs(settings)
    database = Database(settings.firestore.project, settings.firestore.database)
    mappings = load_mappings(settings.migration.mappings)
    hide_ids(settings, mappings)
    async with AsyncExitStack() as resources:
        if settings.postgresql.url is None and not needed:
            yield _Stores(database, None, None, {}, resources)
            return
        await probe_postgresql(settings.postgresql)
        lanes = await Lanes.open(settings.postgresql.dsn, size=LANES)
        resources.push_async_callback(lanes.close)
        postgres = PostgresStore(lanes, mappings, database)
        yield _Stores(database, postgres, lanes, await _snapshots(lanes), resources)


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
    from crossfade.stores.firestore import CHANNEL_OPTIONS, FirestoreStore, connect

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
        # A sidecar speaks Firestore's protocol, whichever store decides behind it.
        channel = sidecar_channel(address, CHANNEL_OPTIONS)
        opened = await stores.resources.enter_async_context(channel)
        return FirestoreStore(stores.database, opened), lambda: None
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
