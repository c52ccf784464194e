"""The command that compares both stores and certifies what it found."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crossfade.asking import moment
from crossfade.backfill_commands import (
    LOOK_SECONDS,
    Amount,
    Config,
    Json,
    Positive,
    Switch,
    helped,
    quiet_logs,
    run_until_told,
    who,
)
from crossfade.groups import DEFAULT
from crossfade.loading import load
from crossfade.probes import CannotStart
from crossfade.settings import Settings, field_paths

if TYPE_CHECKING:
    from crossfade.jobs.validating import Stack
    from crossfade.jobs.work import Pacing
    from crossfade.stores.postgres.jobs import Job

EQUAL, DIFFERENT = 0, 1


def validate(
    *collections: str,
    quick: Annotated[bool, Switch] = False,
    since: str | None = None,
    repair: Annotated[bool, Switch] = False,
    rate: Amount | None = None,
    workers: Positive = 4,
    processes: Positive = 1,
    page: Positive | None = None,
    new: Annotated[bool, Switch] = False,
    group: str = DEFAULT,
    ignore_budget: Annotated[bool, Switch] = False,
    patience: Amount = 60.0,
    strict: Annotated[bool, Switch] = False,
    report: Path = Path("validation"),
    json_: Json = False,
    config: Config = None,
    join: Annotated[int | None, Parameter(show=False)] = None,
) -> int:
    """Compares every document of both stores, while traffic runs, and certifies the outcome.

    What differs is looked at again until it is known what that means; only what stands still
    and differs counts. Killed or interrupted, the same command goes on where it was; started
    several times, on one machine or on many, the processes share the work. The report is
    written as JSON and as one HTML page, and kept: the change to stage live asks for it.

    Ends with 0 if the stores are equal, 1 if they differ, 2 if it could not run.

    Example: crossfade validate

    Example: crossfade validate tasks users --rate 2000 --repair

    :param collections: Root collections, with all that lies below them. None: everything.
    :param quick: By version only: reads no contents. Does not find what was changed by hand.
    :param since: Only documents written or deleted since then: 90s, 10m, 2h, 7d, or a time
        such as 2026-03-01T12:00:00Z. Firestore bills all the same: it has no such index.
    :param repair: Queues a recopy of what differs. This process, or a sidecar, carries it out.
    :param rate: Documents a second, at most, of all processes together.
    :param workers: Pages at a time, in each process.
    :param processes: On this machine; one per core is useful.
    :param page: Documents in a page, at most.
    :param new: Begins anew, where an earlier validation was left unfinished.
    :param group: Of collections, if they are moved in groups. Each has its own certificate.
    :param ignore_budget: Spends more than [shadow] daily_reads has left of the day.
    :param patience: Seconds for which a store may be away.
    :param strict: Also ends with 1 where references dangle, unique values are held twice, or
        derived documents are not as their owners.
    :param report: Directory for the report: validation-JOB.json and .html.
    :param json_: Progress as JSON lines on stdout; the last one is the report.
    :param join: Only helps with this job, of another process.
    """
    settings = load(config)
    start = None if since is None else moment(since).replace(tzinfo=UTC)

    async def run() -> int:
        from crossfade.document import to_micros
        from crossfade.errors import CrossfadeError
        from crossfade.jobs import validating
        from crossfade.jobs.report import to_html
        from crossfade.jobs.validate import How
        from crossfade.jobs.validating import Asked
        from crossfade.jobs.work import Pacing

        how = How(quick, None if start is None else to_micros(start), repair)
        asked = Asked(collections, how, rate, new, who())
        quiet_logs(settings)
        try:
            async with opened(
                settings, workers=workers, limited=not ignore_budget, group=group
            ) as stack:
                size = validating.PAGE if page is None else page
                pacing = Pacing(workers, patience, size, target=validating.PAGE_SECONDS)
                if join is not None:
                    job = await stack.side.both.jobs.get(join)
                    await validating.work(stack, job, pacing=pacing).run()
                    return EQUAL
                job = await validating.begin(stack, asked)
                words = ["validate", "--join", str(job.id), "--group", group]
                words += ["--workers", str(workers), "--page", str(size)]
                words += ["--patience", str(patience)]
                words += ["--ignore-budget"] if ignore_budget else []
                async with helped(words, processes - 1, config):
                    found = await _run(stack, job, pacing, as_json=json_)
        except CrossfadeError as error:
            raise CannotStart(f"the validation did not end: {error} ({error.code})") from error
        shown = report / f"validation-{found['job']}.html"
        await asyncio.to_thread(_write, shown.with_suffix(".json"), json.dumps(found, indent=2))
        await asyncio.to_thread(_write, shown, to_html(found))
        if json_:
            print(json.dumps({"report": found}), flush=True)
        else:
            _show(found, shown)
        return EQUAL if found["equal"] and not (strict and found["integrity"]) else DIFFERENT

    return run_until_told(run, gives_way=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


async def _run(stack: "Stack", job: "Job", pacing: "Pacing", *, as_json: bool) -> Mapping[str, Any]:
    """The report, when the job is done."""
    from crossfade.job_display import JobLine, effort_text
    from crossfade.jobs import validating
    from crossfade.stores.postgres.jobs import JobState

    doing = validating.work(stack, job, pacing=pacing)
    running = asyncio.create_task(doing.run())
    jobs = stack.side.both.jobs
    with JobLine(as_json=as_json) as line:
        try:
            while not running.done():
                line.update(await jobs.get(job.id), doing.waits_for)
                await asyncio.wait([running], timeout=LOOK_SECONDS)
            job = await running
            while job.state is JobState.RUNNING:  # another process ends it
                await asyncio.sleep(LOOK_SECONDS)
                job = await jobs.get(job.id)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        line.update(job)
    if not as_json:
        print(f"job {job.id} {job.state.value}; {effort_text(job)}")
    return await validating.report_of(stack, job)


def _show(report: Mapping[str, Any], page: Path) -> None:
    from crossfade.display import print_table

    words = ("firestore", "postgresql", "match", "wrong", "stale", "missing", "extra", "behind")
    rows = [
        (each["collection"], *(f"{each[word]:,}" for word in words))
        for each in [*report["by_collection"], {"collection": "all", **report["totals"]}]
    ]
    print_table(("collection", *words), rows)
    for each in report["integrity"]:
        where = f"{each['collection']}.{each['field']}" if each["field"] else each["collection"]
        print(f"{where}: {each['count']}, {each['breach']}, e.g. {each['examples'][0]}")
    print(f"{'the stores are equal' if report['equal'] else 'the stores differ'}: {page}")


# --- what it runs on ---------------------------------------------------------------------------


@asynccontextmanager
async def opened(
    settings: Settings, *, workers: int = 4, limited: bool = True, group: str = DEFAULT
) -> AsyncIterator["Stack"]:
    """Both stores, as a process of its own has them. `limited`: by the day's budget of reads.
    Raises CannotStart."""
    from crossfade.apart import apart
    from crossfade.jobs.validate import Side
    from crossfade.jobs.validating import Stack
    from crossfade.samples import Redactor
    from crossfade.store import Stores
    from crossfade.stores.postgres.findings import Findings
    from crossfade.stores.postgres.store import PostgresStore
    from crossfade.verdict import Judge

    chosen = settings.shadow
    rules = {
        name: [each.rule() for each in one.rules] for name, one in settings.collections.items()
    }
    key = chosen.hash_key
    redactor = Redactor(
        secrets.token_bytes(32) if key is None else key.get_secret_value().encode(),
        {name: field_paths(one.clear) for name, one in settings.collections.items()},
    )
    async with apart(settings, workers=workers, settles=True, group=group) as own:
        both = own.both
        postgres = PostgresStore(own.lanes, both.mappings, both.database, both.group)
        stage = both.control.snapshot.stage.value
        yield Stack(
            Side(both, postgres.ranges, Findings(own.lanes), redactor, stage),
            own.lanes,
            Stores({both.firestore.name: both.firestore, postgres.name: postgres}),
            own.telemetry,
            lambda: Judge(both.database, rules, chosen.behind_bound),
            settings.migration.mappings,
            settings.postgresql.target,
            own.budget if limited else None,
        )
