"""How a sidecar starts: what its settings name, PostgreSQL at hand or not, and its workers."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

import grpc
import structlog

from crossfade import redaction
from crossfade.barrier import Coordinator
from crossfade.control import Control
from crossfade.controls import Controls
from crossfade.document import Database
from crossfade.errors import CrossfadeError, EpochChanged, InfrastructureError
from crossfade.groups import Groups
from crossfade.mapping import DerivedMapping, Mappings
from crossfade.migrator import Documents
from crossfade.plan import STAGES, Stage
from crossfade.rpc import admin as admin_rpc
from crossfade.rpc import server as rpc
from crossfade.settings import Settings, SettingsError
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
    migrator: Documents,
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


def hide_ids(settings: Settings, mappings: Mappings) -> None:
    """From here on this process tells no id that is a secret (redaction.py)."""
    key = settings.shadow.hash_key
    secret = {mapping.collection_id for mapping in mappings if mapping.secret_ids}
    secret |= {name for name, each in settings.collections.items() if each.secret_ids}
    redaction.install(secret, None if key is None else key.get_secret_value().encode())


def check_groups(groups: Groups, mappings: Mappings) -> None:
    """Refuses groups between which a document's content would have to be read: what is derived
    is held by its owner. Raises SettingsError."""
    for mapping in mappings:
        if not isinstance(mapping, DerivedMapping):
            continue
        ours, owners = groups.of(mapping.collection_id), groups.of(mapping.owner.collection_id)
        if ours != owners:
            raise SettingsError(
                f"[groups]: {mapping.collection_id} is derived from "
                f"{mapping.owner.collection_id}, so the two belong in one group; they are in "
                f"{ours} and {owners}"
            )


async def open_controls(controls: Controls, settings: Settings) -> dict[str, Stage]:
    """Seeds or follows the control state of every group. Returns the stages to move to, as
    the settings ask for them."""
    asked = settings.requested_stages()
    # All are looked at before any is seeded: what is refused leaves nothing behind.
    for name, control in controls.items():
        await control.check(asked.get(name) or Stage.OFF)
    wanted = {}
    for name, control in controls.items():
        stage = asked.get(name)
        to_request = await control.open(stage or Stage.OFF, explicit=stage is not None)
        if to_request is not None:
            wanted[name] = to_request
    return wanted


async def start_without_postgresql(controls: Controls, away: InfrastructureError) -> None:
    """The mirror's outage is not the application's, at a start either: Firestore's control
    documents say enough to go on with, through the outbox. A group of which that is not so is
    not served until PostgreSQL is back. Raises `away` where it is so of none."""
    served = [name for name, control in controls.items() if await _adopted(control)]
    if not served:
        raise away
    log.warning(
        "PostgreSQL is away: started by Firestore's control document",
        error=away.code,
        groups=served,
    )


async def _adopted(control: Control) -> bool:
    if control.lease is None:
        return False
    try:
        document = await control.lease.renew()
        if not document.update_time or not document.open:
            return False
        await control.adopt()
    except CrossfadeError:
        return False
    return True


async def open_later(
    open_postgresql: Callable[[], Awaitable[Mapping[str, Stage]]],
    carry_out: Callable[[Mapping[str, Stage]], Sequence[Awaitable[None]]],
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
        await asyncio.gather(*carry_out(to_request))
        return


async def settle_stage(coordinator: Coordinator) -> None:
    """Ends at once what the first start of all, or a sidecar that died, left to be done."""
    try:
        await coordinator.look()
    except CrossfadeError as error:
        log.info("the stage is settled later", reason=str(error))


async def carry_out(
    stage: Stage,
    *,
    control: Control,
    coordinator: Coordinator,
    backlog: Callable[[], Awaitable[admin_rpc.Backlog]],
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
            behind = await backlog() if moves else None
            if behind and behind.oldest_seconds > KEEPS_UP_SECONDS and not behind.dead:
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
