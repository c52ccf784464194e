"""The command that compares both stores and certifies what it found."""

import asyncio
import getpass
import json
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from crossfade.probes import CannotStart, probe_firestore, probe_postgresql
from crossfade.settings import Settings, field_paths, load
from crossfade.stage_commands import moment

if TYPE_CHECKING:
    from crossfade.jobs.validating import Stack
    from crossfade.stores.postgres.jobs import Job

EQUAL, DIFFERENT, CANNOT = 0, 1, 2
LANES = 6
TIMEOUT = 30.0
PROGRESS_SECONDS = 1.0
PLAIN_SECONDS = 5.0

Config = Annotated[
    Path | None,
    Parameter(help="TOML file. Default: CROSSFADE_CONFIG, or ./crossfade.toml if it is there."),
]
Switch = Parameter(negative="", show_default=False)


def validate(
    *collections: str,
    quick: Annotated[bool, Switch] = False,
    since: str | None = None,
    repair: Annotated[bool, Switch] = False,
    rate: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    workers: Annotated[int, Parameter(validator=Number(gte=1, lte=64))] = 4,
    new: Annotated[bool, Switch] = False,
    strict: Annotated[bool, Switch] = False,
    report: Path = Path("validation"),
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    html_file: Annotated[Path | None, Parameter(name="--html")] = None,
    json_lines: Annotated[bool, Switch] = False,
    config: Config = None,
) -> int:
    """Compares every document of both stores, while traffic runs, and certifies the outcome.

    What differs is looked at again until it is known what that means; only what stands still
    and differs counts. Ends with 0 if the stores are equal, 1 if they differ, 2 if it could
    not run. Interrupted or killed, the same command goes on where it was; started several
    times at once, they share the work. The report is written as JSON and as one HTML page,
    and kept: the change to stage live asks for it.

    Example: crossfade validate

    Example: crossfade validate tasks users --rate 2000 --repair

    :param collections: Root collections, with all that lies below them. Default: everything.
    :param quick: By version only: reads no contents. Does not find what was changed by hand.
    :param since: Only documents written or deleted since then: 90s, 10m, 2h, 7d, or a time
        such as 2026-03-01T12:00:00Z. Firestore bills all the same: it has no such index.
    :param repair: Queues a recopy of what differs; a running sidecar carries it out.
    :param rate: Documents a second at most, all processes together.
    :param workers: Pages that this process has under way at a time.
    :param new: Does not go on with an unfinished validation.
    :param strict: Also ends with 1 where references dangle, unique values are held twice, or
        derived documents are not as their owners.
    :param report: Directory for the report: validation-JOB.json and .html.
    :param json_file: Where the report goes as JSON instead.
    :param html_file: Where the report goes as HTML instead.
    :param json_lines: Prints progress and, last, the report as JSON on stdout, a line each.
    """
    from crossfade.document import to_micros
    from crossfade.errors import CrossfadeError
    from crossfade.jobs.validate import How
    from crossfade.jobs.validating import Asked

    settings = load(config)
    start = None if since is None else to_micros(moment(since).replace(tzinfo=UTC))
    asked = Asked(
        collections=collections,
        how=How(quick=quick, since=start, repair=repair),
        rate=rate,
        fresh=new,
        who=f"{getpass.getuser()}@{socket.gethostname()}",
    )

    async def run() -> int:
        try:
            async with opened(settings) as stack:
                found = await _run(stack, asked, workers, json_lines=json_lines)
        except CrossfadeError as error:
            raise CannotStart(f"{error} ({error.code})") from error
        name = f"validation-{found['job']}"
        _write(json_file or report / f"{name}.json", json.dumps(found, indent=2) + "\n")
        from crossfade.jobs.report import to_html

        page = html_file or report / f"{name}.html"
        _write(page, to_html(found))
        if json_lines:
            print(json.dumps({"report": found}), flush=True)
        else:
            _show(found, page)
        return EQUAL if found["equal"] and not (strict and found["integrity"]) else DIFFERENT

    return asyncio.run(run())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


async def _run(stack: "Stack", asked: Any, workers: int, *, json_lines: bool) -> Any:
    """The report, when the job is done."""
    from crossfade.jobs import validating
    from crossfade.jobs.work import Pacing
    from crossfade.stores.postgres.jobs import JobState

    job = await validating.begin(stack, asked)
    pacing = Pacing(workers=workers, page=validating.PAGE)
    working = validating.work(stack, job, pacing=pacing)
    progress = _Progress(stack, job, working, json_lines=json_lines)
    refilling = None if stack.budget is None else asyncio.create_task(stack.budget.run())
    telling = asyncio.create_task(progress.run())
    try:
        job = await working.run()
        while job.state is JobState.RUNNING:  # others hold what is left of it
            await asyncio.sleep(PROGRESS_SECONDS)
            job = await stack.side.both.jobs.get(job.id)
    finally:
        for task in (telling, refilling):
            if task is not None:
                task.cancel()
        await asyncio.gather(*filter(None, (telling, refilling)), return_exceptions=True)
        progress.close()
    return await validating.report_of(stack, job)


class _Progress:
    """A line that keeps itself current, plain lines off a terminal, or JSON lines."""

    def __init__(self, stack: "Stack", job: "Job", working: Any, *, json_lines: bool) -> None:
        from rich.live import Live

        from crossfade.display import console

        self._jobs = stack.side.both.jobs
        self._job = job
        self._working = working
        self._json_lines = json_lines
        self._console = console()
        self._live = None
        if self._console.is_terminal and not json_lines:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._began = time.monotonic()
        self._first: int | None = None

    async def run(self) -> None:
        pause = PROGRESS_SECONDS if self._live is not None else PLAIN_SECONDS
        while True:
            await asyncio.sleep(pause)
            self._tell(await self._jobs.get(self._job.id))

    def _tell(self, job: "Job") -> None:
        from rich.text import Text

        from crossfade.jobs.tally import SKIPPED, Tally

        tally = Tally(job.counts)
        done = tally.total("match") + tally.total(SKIPPED) + tally.total("behind") + tally.bad
        self._first = done if self._first is None else self._first
        seconds = max(time.monotonic() - self._began, 1e-3)
        rate = (done - self._first) / seconds
        left = None if job.estimate is None or not rate else max(0, job.estimate - done) / rate
        if self._json_lines:
            line = {
                "job": job.id,
                "documents": done,
                "estimate": job.estimate,
                "rate": round(rate, 1),
                "eta_seconds": None if left is None else round(left),
                "different": tally.bad,
                "behind": tally.total("behind"),
                "partitions": job.partitions,
                "partitions_done": job.partitions_done,
                "processes": job.processes,
                "waits_for": self._working.waits_for,
            }
            print(json.dumps(line), flush=True)
            return
        parts = [
            f"validation {job.id}",
            f"{done:,}" + ("" if job.estimate is None else f" of {job.estimate:,} documents"),
            f"{rate:,.0f}/s",
            *([] if left is None else [f"{left:,.0f} s left"]),
            f"{tally.bad:,} different",
            f"{job.partitions_done} of {job.partitions} parts",
        ]
        if self._working.waits_for:
            parts.append(f"waits for {self._working.waits_for}")
        text = " | ".join(parts)
        if self._live is not None:
            self._live.update(Text(text, overflow="fold"), refresh=True)
        else:
            self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def _show(report: Any, page: Path) -> None:
    from crossfade.display import print_table

    words = ("firestore", "postgresql", "match", "wrong", "stale", "missing", "extra", "behind")
    rows = [
        (each["collection"], *(str(each[word]) for word in words))
        for each in [*report["by_collection"], {"collection": "all", **report["totals"]}]
    ]
    print_table(("collection", *words), rows)
    for each in report["integrity"]:
        where = f"{each['collection']}.{each['field']}" if each["field"] else each["collection"]
        print(f"{where}: {each['count']} × {each['breach']}, e.g. {each['examples'][0]}")  # noqa: RUF001
    print(f"{'the stores are equal' if report['equal'] else 'the stores differ'}: {page}")


# --- what it runs on ---------------------------------------------------------------------------


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator["Stack"]:
    """Both stores, as a process of its own has them. Raises CannotStart, CrossfadeError."""
    from crossfade import logs
    from crossfade.budget import Budget
    from crossfade.control import GROUP, Control
    from crossfade.document import Database
    from crossfade.jobs.both import Both
    from crossfade.jobs.validate import Side
    from crossfade.jobs.validating import Stack
    from crossfade.samples import Redactor
    from crossfade.starting import load_mappings
    from crossfade.store import Stores
    from crossfade.stores.firestore import connect
    from crossfade.stores.postgres.budget import BudgetTable
    from crossfade.stores.postgres.findings import Findings
    from crossfade.stores.postgres.held import HeldPages
    from crossfade.stores.postgres.jobs import Jobs
    from crossfade.stores.postgres.lanes import Lanes
    from crossfade.stores.postgres.mirror import Mirror
    from crossfade.stores.postgres.store import PostgresStore
    from crossfade.telemetry import Telemetry
    from crossfade.verdict import Judge

    logs.configure(settings.log, sys.stderr)
    database = Database(settings.firestore.project, settings.firestore.database)
    mappings = load_mappings(settings.migration.mappings)
    await probe_postgresql(settings.postgresql)
    if settings.firestore.emulator is not None:
        await probe_firestore(settings.firestore.emulator)
    async with AsyncExitStack() as resources:
        lanes = await Lanes.open(settings.postgresql.dsn, size=LANES)
        resources.push_async_callback(lanes.close)
        firestore = connect(database, settings.firestore.emulator)
        resources.push_async_callback(firestore.close)
        telemetry = Telemetry(settings.telemetry)
        resources.callback(telemetry.close)
        control = Control(lanes, None, {}, TIMEOUT)
        await control.refresh()
        postgres = PostgresStore(lanes, mappings, database)
        mirror = Mirror(lanes, mappings, database)
        rules = {
            name: [each.rule() for each in one.rules] for name, one in settings.collections.items()
        }
        key = settings.shadow.hash_key
        redactor = Redactor(
            secrets.token_bytes(32) if key is None else key.get_secret_value().encode(),
            {name: field_paths(one.clear) for name, one in settings.collections.items()},
        )
        both = Both(
            control, firestore, mirror, HeldPages(lanes, GROUP), Jobs(lanes), mappings, database
        )
        daily = settings.shadow.daily_reads
        yield Stack(
            Side(both, postgres.ranges, Findings(lanes), redactor, control.snapshot.stage.value),
            lanes,
            Stores({firestore.name: firestore, postgres.name: postgres}),
            telemetry,
            lambda: Judge(database, rules, settings.shadow.behind_bound),
            settings.migration.mappings,
            settings.postgresql.target,
            None if daily is None else Budget(daily, BudgetTable(lanes)),
        )
