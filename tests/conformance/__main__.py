"""`python -m tests.conformance`: runs the system tests, prints the outcome and judges it."""

import argparse
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loadtests.stack import StackError, started
from tests.conformance.archive import system_tests
from tests.conformance.judge import FLOOR, ConformanceError, Outcome, judge, read_exceptions
from tests.conformance.plugin import RESULTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "conformance"
RUN_SECONDS = 900
_SIDECAR = ("exceptions.toml", "exceptions_sidecar.toml")
_POSTGRESQL = (*_SIDECAR, "exceptions_postgresql.toml")
STAGES: dict[str | None, tuple[tuple[str, ...], int]] = {
    None: (("exceptions.toml",), FLOOR),
    "off": (_SIDECAR, 216),
    "dual_write": (_SIDECAR, 216),
    "shadow": (_SIDECAR, 216),
    "live": (_POSTGRESQL, 198),
    "ramp_down": (_POSTGRESQL, 198),
    "complete": (_POSTGRESQL, 198),
}
"""Of a sidecar in a stage (None: of the embedded Firestore): the lists of what may fail, and how
many have to pass."""
# A developer's own settings would send the tests, or the server, elsewhere.
_FOREIGN = (
    *("CROSSFADE_", "DATABASE_", "MIGRATION_", "OTEL_"),
    *("ENTERPRISE_", "FIRESTORE_", "GCLOUD_", "GOOGLE_", "PYTEST_", "SYSTEM_TESTS_"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        lists, floor = STAGES[options.stage]
        exceptions: dict[str, str] = {}
        for name in lists:
            exceptions |= read_exceptions((HERE / name).read_text())
        tests = system_tests(BUILD, ROOT / "requirements.lock")
        outcomes = against(options.target, tests, options.stage)
    except (ConformanceError, StackError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    verdict = judge(outcomes, exceptions, floor)
    print("\n".join(verdict.lines()))
    return 1 if verdict.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="The Python client's own system tests against a server of Firestore's "
        "protocol, by default the embedded Firestore.",
        epilog="Exit codes: 0 only what the exceptions name has failed, and enough has passed; "
        "1 otherwise; 2 the tests could not be run.",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--target", metavar="HOST:PORT", help="a server that runs already")
    place.add_argument(
        "--stage",
        choices=[stage for stage in STAGES if stage is not None],
        help="a sidecar in this stage, started for it",
    )
    return parser


def against(target: str | None, tests: Path, stage: str | None = None) -> dict[str, Outcome]:
    """Without a target, against an embedded Firestore, or a sidecar, that is started for it."""
    # A project of its own: documents of an earlier run would be counted too.
    project = f"conformance-{secrets.token_hex(4)}"
    build = BUILD if stage is None else BUILD / stage
    build.mkdir(parents=True, exist_ok=True)
    with ExitStack() as resources:
        server = None
        errors = build / "server.txt"
        if target is None:
            command, ready = ["crossfade", "firestore", "--port", "0"], "firestore "
            if stage is not None:
                command, ready = ["tests.conformance.sidecar", stage, project], "sidecar "
            command = [sys.executable, "-m", *command]
            environment = _environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
            server, target = resources.enter_context(started(command, errors, ready, environment))
        outcomes = run(target, tests, build, project)
        if server is not None and server.poll() is not None:
            raise ConformanceError(f"the server ended with {server.returncode}: see {errors}")
    return outcomes


def run(target: str, tests: Path, build: Path, project: str) -> dict[str, Outcome]:
    """Test name -> outcome. pytest is a child, so that nothing of this project's own tests
    reaches it; what it says goes to a file. Raises ConformanceError."""
    results, output = build / "results.json", build / "output.txt"
    results.unlink(missing_ok=True)
    print(f"the system tests run against {target}; their output: {output}", flush=True)
    with output.open("w") as file:
        try:
            ended = subprocess.run(
                [
                    *(sys.executable, "-m", "pytest"),
                    *("-c", str(HERE / "pytest.ini"), "--rootdir", str(tests)),
                    *(str(tests / "test_system.py"), str(tests / "test_system_async.py")),
                ],
                cwd=ROOT,
                env=_environment()
                | {
                    "FIRESTORE_EMULATOR_HOST": target,
                    "GCLOUD_PROJECT": project,
                    "PYTHONPATH": os.pathsep.join([str(HERE / "shims"), *sys.path]),
                    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                    RESULTS: str(results),
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=RUN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConformanceError(f"not done in {RUN_SECONDS} s: see {output}") from None
    # 1: some test failed, which is judged. All else is no run.
    if ended.returncode not in (0, 1) or not results.exists():
        raise ConformanceError(f"pytest ended with {ended.returncode}: see {output}")
    return {name: Outcome(*outcome) for name, outcome in json.loads(results.read_text()).items()}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


if __name__ == "__main__":
    sys.exit(main())
