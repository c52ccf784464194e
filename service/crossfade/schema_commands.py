"""The commands about PostgreSQL's schema, and about what does not fit it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from crossfade.loading import load
from crossfade.probes import CannotStart, probe_postgresql
from crossfade.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossfade.mapping import Mappings
    from crossfade.stores.postgres.evolve import Evolution
    from crossfade.stores.postgres.lanes import Lanes

OK, FAILED = 0, 1
TIMEOUT = 3_600.0
"""Seconds that a statement over a whole table may take."""
Config = Annotated[
    Path | None,
    Parameter(help="TOML file. Default: CROSSFADE_CONFIG, or ./crossfade.toml if it is there."),
]

schema = App(
    name="schema",
    help="PostgreSQL's side: the tables of the mapping and Crossfade's own. "
    "Which mapping is set by [migration] mappings, which database by DATABASE_URL.",
    help_epilogue="The usual order: `create` once; `upgrade` with every new version, before its "
    "sidecars start; `check` whenever in doubt; `finalize` before "
    '[migration] constraints = "enforce"; `drop` when nothing of it is wanted any more.',
    help_format="markdown",
)


@schema.command
def create(*, config: Config = None) -> int:
    """Creates the tables in an empty database, by running every migration.

    A sidecar creates what is missing at its start, too; this is for those whose sidecar's
    role may not. Does nothing, and says so, where the schema is there.

    Example: DATABASE_URL=postgresql://... crossfade schema create
    """

    async def work(settings: Settings, mappings: "Mappings", lanes: "Lanes") -> int:
        at = await _evolution(settings, mappings).current()
        if at:
            print(f"the schema is there, at {_listed(at)}; crossfade schema upgrade brings it on")
            return OK
        return await _upgrade(settings, mappings, lanes)

    return _run(config, work)


@schema.command
def upgrade(*, config: Config = None) -> int:
    """Brings the database to the models and the mapping of this version.

    Moves documents of collections that have no mapping any more to the generic table, and
    values of columns that the mapping no longer has beside the columns. Then runs the
    migrations that are missing, makes the triggers anew where they changed, moves documents
    of collections that have a table by now into it, and values that have a column by now into
    that. Nothing is lost and no document changes; it may be interrupted and repeated.
    Sidecars with the former mapping must have ended: they would go on writing to where it
    pointed. Run it again if one had not.

    Example: crossfade schema upgrade --config crossfade.toml
    """
    return _run(config, _upgrade)


@schema.command
def check(*, config: Config = None) -> int:
    """Compares models, database and mapping, and says what differs, a line each.

    Tables, columns, types, nulls, enums, references, uniques, indexes, triggers, revisions,
    and documents that are in another table than the mapping says. Ends with 1 if anything
    differs. Changes nothing.

    Example: crossfade schema check && crossfade serve
    """

    async def work(settings: Settings, mappings: "Mappings", lanes: "Lanes") -> int:
        from crossfade.stores.postgres.drift import schema_drift

        evolution = _evolution(settings, mappings)
        found = await schema_drift(evolution, lanes, mappings, timeout=TIMEOUT)
        for line in found:
            print(line)
        if not found:
            print("the database is as the models and the mapping say")
        return FAILED if found else OK

    return _run(config, work)


@schema.command
def finalize(*, config: Config = None) -> int:
    """Lists the values that a type or a constraint refused and that are still in remainders.

    Ends with 0 if there are none: then `[migration] constraints = "enforce"` changes nothing
    about the documents that are there, and in stage complete such a write is an error.
    Fields without a column and explicit nulls are not refused; `crossfade drift` shows them.

    Example: crossfade schema finalize
    """

    async def work(_: Settings, mappings: "Mappings", lanes: "Lanes") -> int:
        from crossfade.jobs.census import census
        from crossfade.mapping import REFUSED

        refused = 0
        async for one in census(lanes, mappings, timeout=TIMEOUT):
            refused += one.refused
            for cause in sorted(set(one.causes) & REFUSED):
                print(
                    f"{one.collection}.{one.field}: {one.causes[cause]} by {cause}, "
                    f"e.g. {one.example}; {one.suggestion()}"
                )
        if refused:
            print(f"{refused} values are still beside their columns")
            return FAILED
        print('every value is in its column; [migration] constraints = "enforce" may be set')
        return OK

    return _run(config, work)


@schema.command
def drop(
    *,
    yes: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    config: Config = None,
) -> int:
    """Drops Crossfade's tables and the mapping's, with every document in them.

    Needs --yes. Refuses where a stage other than off says that they are in use, unless --force.

    Example: crossfade schema drop --yes

    :param yes: That this is meant.
    :param force: Also in a stage that uses them.
    """

    async def work(_: Settings, mappings: "Mappings", lanes: "Lanes") -> int:
        from crossfade.stores.postgres.schema import drop_schema

        there = await lanes.fetchval("select to_regclass('crossfade.control')::text", timeout=10)
        stage = there and await lanes.fetchval(
            "select stage from crossfade.control where stage <> 'off' limit 1", timeout=10
        )
        if stage and not force:
            raise CannotStart(f"the stage is {stage}, so the tables are in use; --force drops them")
        if not yes:
            raise CannotStart("this drops every document in PostgreSQL; say --yes if that is meant")
        await drop_schema(lanes, mappings, timeout=TIMEOUT)
        print("dropped")
        return OK

    return _run(config, work)


def drift(
    *,
    words: Annotated[bool, Parameter(negative="")] = False,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    config: Config = None,
) -> int:
    """Shows how the documents have drifted from the schema: by collection and field, how many
    documents have it, how many values are in its column and how many beside it, why, where
    for example, and which change of the schema would help.

    Reads every remainder: minutes for millions of documents. Changes nothing.

    Example: crossfade drift --words

    :param words: Also shows the words that enums do not have. They are contents of documents.
    :param every: Also fields whose values are all in their column.
    """

    async def work(_: Settings, mappings: "Mappings", lanes: "Lanes") -> int:
        from crossfade.display import print_table
        from crossfade.jobs.census import census

        lines = []
        async for one in census(lanes, mappings, timeout=TIMEOUT):
            if one.causes or (every and one.seen):
                why = ", ".join(f"{count} {cause}" for cause, count in one.causes.most_common())
                advice = one.suggestion(words=words)
                counts = (str(one.seen), str(one.in_column))
                lines.append((one.collection, one.field, *counts, why, one.example or "", advice))
        headers = ("collection", "field", "seen", "in column", "beside", "example", "suggestion")
        print_table(headers, lines)
        beside = sum(1 for line in lines if line[4])
        print(f"{beside} fields have values beside their columns")
        return OK

    return _run(config, work)


# --- what they share -----------------------------------------------------------------------------


def _run(config: Path | None, work: "Callable[[Settings, Mappings, Lanes], Awaitable[int]]") -> int:
    from crossfade.starting import hide_ids, load_mappings

    settings = load(config)
    mappings = load_mappings(settings.migration.mappings)
    hide_ids(settings, mappings)

    async def connected() -> int:
        async with _lanes(settings) as lanes:
            return await work(settings, mappings, lanes)

    return asyncio.run(connected())


@asynccontextmanager
async def _lanes(settings: Settings) -> "AsyncIterator[Lanes]":
    from crossfade.stores.postgres.lanes import Lanes

    await probe_postgresql(settings.postgresql)
    lanes = await Lanes.open(settings.postgresql.dsn, size=2)
    try:
        yield lanes
    finally:
        await lanes.close()


def _evolution(settings: Settings, mappings: "Mappings") -> "Evolution":
    from crossfade.stores.postgres.evolve import Evolution

    return Evolution(settings.postgresql.dsn, mappings, settings.migration.mappings)


async def _upgrade(settings: Settings, mappings: "Mappings", _: "Lanes") -> int:
    from crossfade.document import Database
    from crossfade.stores.postgres.evolve import bring_on

    database = Database(settings.firestore.project, settings.firestore.database)
    package = settings.migration.mappings
    done = await bring_on(settings.postgresql.dsn, mappings, package, database, timeout=TIMEOUT)
    print(f"migrations: {_listed(done.reached) or 'nothing was missing'}")
    if done.given_back:
        print(f"documents given back by tables and columns without a mapping: {done.given_back}")
    print(
        f"documents moved to their tables: {done.moved}; "
        f"with values moved to columns: {done.promoted}"
    )
    return OK


def _listed(names: "Iterable[str]") -> str:
    return ", ".join(sorted(names))
