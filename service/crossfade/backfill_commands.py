"""The commands that copy: backfill, and what looks at jobs and stops them."""

import asyncio
import getpass
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, Parameter
from cyclopts.validators import Number

from crossfade.loading import load
from crossfade.probes import CannotStart
from crossfade.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from crossfade.apart import Apart
    from crossfade.jobs.forecast import Forecast
    from crossfade.stores.postgres.jobs import Job, Jobs

OK, FAILED = 0, 1
LOOK_SECONDS = 0.5
NICENESS = 10
"""Of a job's process; it counts where that shares its cores with somebody."""
SETTLE_SECONDS = 600.0
"""How long it is waited for what a job queued."""
MISSING = "apache_beam"

T = TypeVar("T")
Config = Annotated[
    Path | None,
    Parameter(help="TOML file. Default: CROSSFADE_CONFIG, or ./crossfade.toml if it is there."),
]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Amount = Annotated[float, Parameter(validator=Number(gt=0))]
Switch = Parameter(negative="", show_default=False)
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
Runner = Literal["DirectRunner", "FlinkRunner", "DataflowRunner", "PrismRunner"]

jobs = App(
    name="jobs",
    help="Work over all documents: backfills and validations. Read from the database of "
    "[postgresql], so no sidecar has to run.",
    help_format="markdown",
)


def backfill(
    *collections: str,
    config: Config = None,
    group: str = "default",
    rate: Amount | None = None,
    workers: Positive = 4,
    processes: Positive = 1,
    page: Positive | None = None,
    new: Annotated[bool, Switch] = False,
    dry_run: Annotated[bool, Switch] = False,
    ignore_budget: Annotated[bool, Switch] = False,
    patience: Amount = 60.0,
    runner: Runner | None = None,
    beam: str = "",
    json_: Json = False,
    join: Annotated[int | None, Parameter(show=False)] = None,
) -> int:
    """Copies the documents that are there from the store in charge to its mirror, while traffic
    runs: everything, or root collections with what lies below them.

    It may be killed at any moment and started again: it goes on where it was. Started several
    times, on one machine or on many, the processes share the work. Never overwrites a newer
    write, never brings a deleted document back. When everything is copied, and what the mirror
    has too much is queued for a look, PostgreSQL may answer reads.

    While PostgreSQL is in charge, what Firestore does not hold as it should is sent there; a
    document that somebody else wrote in Firestore is never overwritten.

    Ends with 0 when all is done; 1 when a document could not be stored (it is a dead letter:
    `crossfade dead-letters list`, whole in `crossfade jobs letters`), or the job was cancelled,
    or a store was away for longer than --patience; 2 when it could not start.

    Example: crossfade backfill --dry-run

    Example: crossfade backfill --rate 500

    Example: crossfade backfill users tasks --json

    :param collections: Root collections. None: everything, as the first copy has to be.
    :param group: The group of collections of [groups] to copy; each has its own stage, and is
        copied by itself.
    :param rate: Documents a second, at most, of all processes together. Given again, it changes
        the rate of a copy that runs.
    :param workers: Pages at a time, in each process.
    :param processes: On this machine; one per core is useful.
    :param page: Documents in a page, at most. Pages are sized by how long they take anyway.
    :param new: Begins anew, where an earlier copy was left unfinished.
    :param dry_run: Says what would be copied, what Firestore would bill, and, from a sample, what
        would not fit its columns. Changes nothing.
    :param ignore_budget: Spends more than [shadow] daily_reads has left of the day; without it
        the copy waits for the next day (UTC).
    :param patience: Seconds for which a store may be away.
    :param runner: Hands the parts to Apache Beam (pip install 'crossfade[beam]'); its workers read
        the same settings.
    :param beam: Options of the runner, as "--flink_master=HOST:8081 --parallelism=8".
    :param json_: Progress as JSON lines on stdout.
    :param join: Only helps with this job, of another process.
    """
    settings = load(config)

    async def run() -> int:
        from crossfade.apart import apart

        quiet_logs(settings)
        async with apart(settings, workers=workers, settles=join is None, group=group) as own:
            from crossfade.jobs.backfill import Asked

            asked = Asked(collections, rate, new, who())
            if dry_run:
                return await _forecast(own, asked, as_json=json_)
            if join is not None:
                job = await own.both.jobs.get(join)
            else:
                job = await _begin(own, asked)
            if runner is not None:
                await _on_beam(job, config, runner, beam)
            options = _Options(workers, page, patience, ignore_budget, json_)
            words = ["backfill", "--join", str(job.id), "--group", job.group, *options.words()]
            async with helped(words, processes - 1, config):
                return await _work(own, job, options)

    return run_until_told(run, gives_way=True)


class _Options:
    def __init__(
        self, workers: int, page: int | None, patience: float, ignore_budget: bool, as_json: bool
    ) -> None:
        self.workers = workers
        self.page = page
        self.patience = patience
        self.ignore_budget = ignore_budget
        self.as_json = as_json

    def words(self) -> list[str]:
        """As a child process is given them."""
        found = ["--workers", str(self.workers), "--patience", str(self.patience)]
        found += [] if self.page is None else ["--page", str(self.page)]
        return found + (["--ignore-budget"] if self.ignore_budget else [])


async def _begin(own: "Apart", asked: Any) -> "Job":
    from crossfade.errors import FailedPrecondition, InvalidArgument
    from crossfade.jobs.backfill import begin

    try:
        return await begin(own.both, asked)
    except (FailedPrecondition, InvalidArgument) as error:
        raise CannotStart(str(error)) from error


async def _work(own: "Apart", job: "Job", options: _Options) -> int:
    """Does this process's part, and shows all of it, to the end of the job."""
    from crossfade.job_display import JobLine
    from crossfade.jobs.backfill import work
    from crossfade.jobs.work import Pacing

    pacing = Pacing(options.workers, options.patience, options.page)
    budget = None if options.ignore_budget else own.budget
    doing = work(own.both, job, pacing=pacing, budget=budget, telemetry=own.telemetry)
    running = asyncio.create_task(doing.run())
    with JobLine(as_json=options.as_json) as line:
        try:
            while not running.done():
                line.update(await own.both.jobs.get(job.id), doing.waits_for)
                await asyncio.wait([running], timeout=LOOK_SECONDS)
            job = await running
            left, dead = await _settled(own, job, line)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        line.update(job)
    if not options.as_json:
        _conclude(job, left, dead)
    stored = not job.letters and not dead and not left
    return OK if job.state.value == "done" and stored else FAILED


async def _settled(own: "Apart", job: "Job", line: Any) -> tuple[int, int]:
    """Waits until what the job queued is settled: how many are not, and dead letters."""
    ends = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while True:
        left, dead = await own.both.jobs.pending(job)
        late = asyncio.get_running_loop().time() > ends
        if not left or late or job.state.value != "done":
            return left, dead
        line.update(job, f"{left} documents that are on their way")
        await asyncio.sleep(LOOK_SECONDS)


def _conclude(job: "Job", left: int, dead: int) -> None:
    from crossfade.display import print_table
    from crossfade.job_display import effort_text

    words = sorted({word for counts in job.counts.values() for word in counts})
    rows = [
        (name, *(f"{counts.get(word, 0):,}" for word in words))
        for name, counts in sorted(job.counts.items())
    ]
    if rows:
        print_table(("collection", *words), rows)
    parts = [f"job {job.id} {job.state.value}", f"{job.documents:,} documents", effort_text(job)]
    parts += [job.reason] if job.reason else []
    if swept := job.outcome.get("swept"):
        parts.append(f"{swept} that only the mirror had were looked at")
    if left:
        parts.append(f"{left} are still on their way")
    if job.letters or dead:
        parts.append(f"{job.letters or dead} could not be stored (crossfade dead-letters list)")
    print("; ".join(parts))


# --- dry run -----------------------------------------------------------------------------------


async def _forecast(own: "Apart", asked: Any, *, as_json: bool) -> int:
    from crossfade.errors import InvalidArgument
    from crossfade.jobs.forecast import forecast

    try:
        found = await forecast(own.both, asked)
    except InvalidArgument as error:
        raise CannotStart(str(error)) from error
    if as_json:
        print(json.dumps(_plain(found)))
    else:
        _show_forecast(found)
    return OK


def _plain(found: "Forecast") -> dict[str, Any]:
    return {
        "documents": found.documents,
        "billed_reads": found.reads,
        "partitions": found.partitions,
        "sample": {
            "billed_reads": found.spent,
            "documents": dict(found.sampled),
            "with_remainders": dict(found.beside),
            "fields": [
                {
                    "collection": each.collection,
                    "field": each.field,
                    "in_column": each.in_column,
                    "in_remainder": each.in_remainder,
                    "causes": {cause.value: count for cause, count in each.causes.items()},
                }
                for each in found.fields.values()
                if each.in_remainder
            ],
        },
    }


def _show_forecast(found: "Forecast") -> None:
    from crossfade.display import print_table

    print_table(
        ("root collection", "documents, with what lies below"),
        (
            (name or "(others)", "?" if count is None else f"{count:,}")
            for name, count in found.documents.items()
        ),
    )
    rows = [
        (
            each.collection,
            each.field,
            f"{each.in_remainder} of {each.seen}",
            ", ".join(f"{cause.value} {count}" for cause, count in each.causes.most_common()),
        )
        for each in sorted(found.fields.values(), key=lambda each: (each.collection, each.field))
        if each.in_remainder
    ]
    if rows:
        print_table(("collection", "field", "would be in remainders", "why"), rows)
    reads = "not known" if found.reads is None else f"{found.reads:,}"
    print(
        f"{found.partitions} parts; billed reads of the copy: {reads}; of this sample: "
        f"{found.spent}. References and uniques that would be refused are not in a sample."
    )


# --- several processes, and Beam ---------------------------------------------------------------


@asynccontextmanager
async def helped(words: list[str], count: int, config: Path | None) -> "AsyncIterator[None]":
    """Other processes that help with a job, by the command `words`; they end with it, or with
    this one."""
    command = [sys.executable, "-m", "crossfade", *words]
    command += [] if config is None else ["--config", str(config)]
    children = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for child in children:
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)
        for child in children:
            await child.wait()


async def _on_beam(job: "Job", config: Path | None, runner: str, options: str) -> None:
    try:
        from crossfade.pipeline import run
    except ModuleNotFoundError as error:
        if error.name != MISSING:
            raise
        raise CannotStart("Apache Beam is not installed: pip install 'crossfade[beam]'") from None
    file = None if config is None else str(config)
    numbers = range(job.partitions)
    words = shlex.split(options)
    await asyncio.to_thread(run, job.id, numbers, file, runner, words, job.group)


# --- jobs --------------------------------------------------------------------------------------


@jobs.default
def list_jobs(*, config: Config = None, limit: Positive = 20, json_: Json = False) -> int:
    """Lists them, the latest first.

    Example: crossfade jobs --json

    :param json_: JSON on stdout, no table.
    """

    async def work(table: "Jobs") -> int:
        from crossfade.display import print_table
        from crossfade.job_display import told

        found = await table.list(limit=limit)
        if json_:
            print(json.dumps([told(job, None, None, "") for job in found], indent=2))
            return OK
        rows = [
            (
                str(job.id),
                job.kind,
                ", ".join(job.collections) or "everything",
                job.state.value,
                f"{job.documents:,}",
                f"{job.partitions_done}/{job.partitions}",
                str(job.processes),
                str(job.letters),
                job.begun_at.isoformat(" ", "seconds"),
                job.reason,
            )
            for job in found
        ]
        headers = ("job", "kind", "of", "state", "documents", "parts", "processes", "not stored")
        print_table((*headers, "begun", "why"), rows)
        return OK

    return _with_table(config, work)


jobs.command(list_jobs, name="list")


@jobs.command
def pause(job: int, *, config: Config = None, reason: str = "") -> int:
    """No page is done from here on; the processes stay, and wait.

    Example: crossfade jobs pause 3 --reason "the nightly export runs"
    """
    return _control(config, lambda table: table.pause(job, _because(reason)))


@jobs.command
def resume(job: int, *, config: Config = None) -> int:
    """Goes on where it was paused. Where no process waits for it any more, start the command again.

    Example: crossfade jobs resume 3
    """
    return _control(config, lambda table: table.resume(job))


@jobs.command
def cancel(job: int, *, config: Config = None, reason: str = "") -> int:
    """Ends it where it is. What is copied stays; the mirror is not complete by it.

    Example: crossfade jobs cancel 3
    """
    return _control(config, lambda table: table.cancel(job, _because(reason)))


@jobs.command
def letters(
    job: int, *, config: Config = None, content: Annotated[bool, Switch] = False, after: int = 0
) -> int:
    """Lists the documents that a job could not store, as JSON lines. Ends with 1 if there are any.

    Example: crossfade jobs letters 3 --content > letters.jsonl

    :param content: With the whole documents, in the tagged encoding of docs/mapping.md.
    :param after: Only those behind this number.
    """
    settings = load(config)

    async def work(table: "Jobs") -> int:
        from crossfade.document import Database
        from crossfade.mapping import to_json
        from crossfade.redaction import present
        from crossfade.wire import parse_document

        database = Database(settings.firestore.project, settings.firestore.database)
        position = after
        while found := await table.letters(job, position):
            for letter in found:
                path = letter.path if content else present().path(letter.path)
                line = {"number": letter.id, "path": path, "cause": letter.cause}
                if content:
                    line["fields"] = to_json(parse_document(letter.document, database).fields)
                print(json.dumps(line))
            position = found[-1].id
        return FAILED if position > after else OK

    return _with_table(config, work)


def _control(config: Path | None, change: "Callable[[Jobs], Awaitable[Job]]") -> int:
    async def work(table: "Jobs") -> int:
        job = await change(table)
        print(f"job {job.id} {job.state.value}: {job.documents:,} documents are done")
        return OK

    return _with_table(config, work)


# --- what they share ---------------------------------------------------------------------------


def _with_table(config: Path | None, work: "Callable[[Jobs], Awaitable[int]]") -> int:
    settings = load(config)

    async def run() -> int:
        from crossfade.apart import table_of_jobs
        from crossfade.starting import hide_ids, load_mappings

        hide_ids(settings, load_mappings(settings.migration.mappings))
        async with table_of_jobs(settings) as table:
            return await work(table)

    return run_until_told(run)


def run_until_told(run: Callable[[], Awaitable[int]], *, gives_way: bool = False) -> int:
    """Runs it on uvloop; SIGTERM ends it as Ctrl-C does: what is claimed is given back.
    `gives_way`: on this machine whoever serves callers goes first."""
    import uvloop

    if gives_way:
        priority = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(priority, NICENESS))

    async def supervised() -> int:
        task = asyncio.ensure_future(run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return uvloop.run(supervised())


def quiet_logs(settings: Settings) -> None:
    from crossfade import logs

    logs.configure(settings.log.model_copy(update={"level": "warning"}))


def who() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _because(reason: str) -> str:
    return f"by {who()}" + (f": {reason}" if reason else "")
