"""The command that changes the groups of collections: `crossfade groups`."""

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from crossfade.loading import load
from crossfade.probes import probe_postgresql

OK = 0
Config = Annotated[
    Path | None,
    Parameter(help="TOML file. Default: CROSSFADE_CONFIG, or ./crossfade.toml if it is there."),
]

groups = App(
    name="groups",
    help="Groups of collections, each with a stage of its own: [groups.NAME] in the settings.",
    help_format="markdown",
)


@groups.command
def apply(
    *,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    config: Config = None,
) -> int:
    """Makes the groups of the settings those of the migration. The sidecars are stopped meanwhile.

    A collection may go to a group that is in the same stage; a new group begins in the stage of
    the one that its collections come from. It may be interrupted and repeated.

    Example: crossfade groups apply --dry-run

    :param dry_run: Only says what would be done, and whether it can be.
    """
    return asyncio.run(_apply(config, dry_run=dry_run))


async def _apply(config: Path | None, *, dry_run: bool) -> int:
    from crossfade.document import Database
    from crossfade.groups import shown
    from crossfade.jobs import regroup
    from crossfade.plan import Stage
    from crossfade.stores.firestore import connect
    from crossfade.stores.postgres.lanes import Lanes

    settings = load(config)
    await probe_postgresql(settings.postgresql)
    lanes = await Lanes.open(settings.postgresql.dsn, size=2)
    try:
        change = await regroup.prepare(lanes, settings.grouping())
        if change is None:
            print("the migration has these groups already")
            return OK
        print(f"from: {shown(change.before.layout)}")
        print(f"to:   {shown(change.after.layout)}")
        for group in change.after.all:
            print(f"  {group.name}: stage {change.stage(group.name)}")
        if dry_run:
            return OK
        stages = {standing.stage for standing in change.standings.values()}
        firestore = None
        if stages != {Stage.COMPLETE} or settings.firestore.emulator is not None:
            database = Database(settings.firestore.project, settings.firestore.database)
            firestore = connect(database, settings.firestore.emulator)
        try:
            await regroup.apply(change, lanes, firestore)
        finally:
            if firestore is not None:
                await firestore.close()
        print("done; start the sidecars with these settings")
        return OK
    finally:
        await lanes.close()
