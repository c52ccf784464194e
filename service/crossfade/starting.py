"""How a sidecar starts: what its settings name, PostgreSQL at hand or not, and its workers."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping

import grpc
import structlog

from crossfade.barrier import Coordinator
from crossfade.control import Control
from crossfade.document import Database
from crossfade.errors import CrossfadeError, EpochChanged, InfrastructureError
from crossfade.lease import Lease
from crossfade.mapping import Mappings
from crossfade.migrator import Migrator
from crossfade.plan import STAGES, Stage
from crossfade.rpc import admin as admin_rpc
from crossfade.rpc import server as rpc
from crossfade.settings import SettingsError
from crossfade.transactions import Transactions

log = structlog.get_logger(__name__)

KEEPS_UP_SECONDS = 2.0
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


def load_mappings(module: str) -> Mappings:
    """The declarations of a mapping package: its `mapping.MAPPINGS`."""
    name = f"{module}.mapping"
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SettingsError(f"[migration] mappings: there is no module {name}") from error
    mappings = getattr(found, "MAPPINGS", None)
    if not isinstance(mappings, Mappings):
        raise SettingsError(f"[migration] mappings: {name} has no MAPPINGS")
    return mappings


def load_services(
    module: str,
    migrator: Migrator,
    transactions: Transactions,
    database: Database,
    wrap: rpc.Wrapper,
) -> Mapping[str, grpc.GenericRpcHandler]:
    """What a mapping package serves besides: by its `service.handlers`, if it has one."""
    name = f"{module}.service"
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return {}
    handlers: Mapping[str, grpc.GenericRpcHandler] = found.handlers(
        migrator, transactions, database, wrap
    )
    return handlers


async def start_without_postgresql(
    control: Control, lease: Lease | None, away: InfrastructureError
) -> None:
    """The mirror's outage is not the application's, at a start either: Firestore's control
    document says enough to go on with, through the outbox. Raises `away` where it does not."""
    if lease is None:
        raise away
    try:
        document = await lease.renew()
    except CrossfadeError:
        raise away from None
    if not document.update_time or not document.open:
        raise away
    await control.adopt()
    log.warning("PostgreSQL is away: started by Firestore's control document", error=away.code)


async def open_later(
    open_postgresql: Callable[[], Awaitable[Stage | None]],
    carry_out: Callable[[Stage], Awaitable[None]],
) -> None:
    """What a start does in PostgreSQL, once it is back."""
    pause = RETRY_SECONDS
    while True:
        await asyncio.sleep(pause)
        try:
            to_request = await open_postgresql()
        except InfrastructureError:
            continue
        except CrossfadeError as error:
            log.error("PostgreSQL is back and not as it should be", reason=str(error))  # noqa: TRY400
            pause = min(2 * pause, MAX_RETRY_SECONDS)
            continue
        if to_request is not None:
            await carry_out(to_request)
        return


async def settle_stage(coordinator: Coordinator) -> None:
    """Ends at once what the first start of all, or a sidecar that died, left to be done."""
    try:
        await coordinator.look()
    except CrossfadeError as error:
        log.info("the stage is settled later", reason=str(error))


async def carry_out(
    stage: Stage, *, control: Control, coordinator: Coordinator, admin: admin_rpc.Admin
) -> None:
    """Moves to the stage that the settings ask for; a refusal leaves the old one.

    A change of authority waits until the mirror keeps up (after a crash that may take a
    lease): a barrier that could not end in time would hold back writes for nothing.
    """
    pause, waits = RETRY_SECONDS, False
    while control.request is stage:
        snapshot = control.snapshot
        try:
            moves = STAGES[stage].authority is not snapshot.authority
            backlog = await admin.backlog() if moves else None
            if backlog and backlog.oldest_seconds > KEEPS_UP_SECONDS and not backlog.dead:
                if not waits:
                    log.info("a change of stage waits for the mirror", asked=stage.value)
                waits = True
                await asyncio.sleep(RETRY_SECONDS)
                continue
            await coordinator.set_stage(stage)
        except (InfrastructureError, EpochChanged) as error:
            _not_reached(stage, snapshot.stage, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)
        except CrossfadeError as error:
            _not_reached(stage, snapshot.stage, error)
            return


def _not_reached(asked: Stage, stands: Stage, error: CrossfadeError) -> None:
    log.warning(
        "the stage that the settings ask for was not reached",
        asked=asked.value,
        stands=stands.value,
        reason=str(error),
    )


def supervise(name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Keeps a worker running: its defect is logged and costs it a second, not its life."""

    async def supervised() -> None:
        while True:
            try:
                await run()
            except Exception:
                log.exception("a worker failed and starts again", worker=name)
            await asyncio.sleep(1.0)

    return asyncio.create_task(supervised(), name=name)
