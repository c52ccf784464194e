"""The conformance runner's own logic: what it fetches, what it takes off, how it judges."""

import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conformance.__main__ import HERE, ROOT, run
from tests.conformance.archive import PACKAGE, pinned, unpack
from tests.conformance.judge import (
    LIFTED,
    ConformanceError,
    Kind,
    Outcome,
    judge,
    read_exceptions,
)

BOTH = {"a": Outcome("passed"), "b": Outcome("failed", "x.py:3: assert False")}


# --- judging -------------------------------------------------------------------------------------


def test_only_excused_failures_conform():
    verdict = judge({**BOTH, "c": Outcome("skipped", "not here")}, {"b": "no such type"}, floor=1)
    assert verdict.faults == ()
    assert verdict.lines() == [
        "passed 1, failed 1, skipped 1",
        "may fail: no such type",
        "    b: x.py:3: assert False",
    ]


def test_an_unexcused_failure_is_a_fault_and_is_named():
    verdict = judge(BOTH, {}, floor=1)
    assert verdict.faults == ("1 failed that may not",)
    assert verdict.lines()[1:] == [
        "may not fail:",
        "    b: x.py:3: assert False",
        "conformance: 1 failed that may not",
    ]


@pytest.mark.parametrize(
    ("kind", "said"), [("passed", "passed"), ("skipped", "did not run"), (None, "did not run")]
)
def test_an_exception_that_does_not_fail_is_a_fault(kind: Kind | None, said: str):
    outcomes = {"a": Outcome("passed")} | ({"b": Outcome(kind)} if kind else {})
    verdict = judge(outcomes, {"b": "no such type"}, floor=1)
    assert verdict.faults == (f"b {said}: it is no exception any more",)


@pytest.mark.parametrize(("passed", "faults"), [(3, 0), (2, 1)])
def test_enough_have_to_pass(passed, faults):
    outcomes = {str(number): Outcome("passed") for number in range(passed)}
    verdict = judge(outcomes, {}, floor=3)
    assert len(verdict.faults) == faults
    assert all("at least 3" in fault for fault in verdict.faults)


# --- exceptions ----------------------------------------------------------------------------------


def test_the_exceptions_of_the_project_can_be_read():
    exceptions = read_exceptions((HERE / "exceptions.toml").read_text())
    assert len(exceptions) <= 7, "259 can run, 252 have to pass"
    assert all("::" in name for name in exceptions)


def test_exceptions_name_a_reason_for_each_test():
    first = '[[exception]]\nreason = "r"\ntests = ["a", "b"]\n'
    second = '[[exception]]\nreason = "s"\ntests = ["c"]\n'
    assert read_exceptions(first + second) == {"a": "r", "b": "r", "c": "s"}
    assert read_exceptions("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[exception]]\ntests = ["a"]', "has a reason"),
        ('[[exception]]\nreason = " "\ntests = ["a"]', "has a reason"),
        ('[[exception]]\nreason = "r"', "has a reason"),
        ('[[exception]]\nreason = "r"\ntests = []\ntest = "a"', "has a reason"),
        ('[[exception]]\nreason = "r"\ntests = ["a", "a"]', "a is excused twice"),
        ('[[exceptions]]\nreason = "r"\ntests = ["a"]', "not an exception: exceptions"),
        ("[[exception", "cannot be read"),
    ],
)
def test_what_is_no_exception_is_refused(text, said):
    with pytest.raises(ConformanceError, match=said):
        read_exceptions(text)


# --- the archive ---------------------------------------------------------------------------------


def test_the_installed_client_is_in_the_lock_with_its_hashes():
    pin = pinned((ROOT / "requirements.lock").read_text(), version(PACKAGE))
    assert pin.startswith(f"{PACKAGE}==")
    assert "--hash=sha256:" in pin


def test_another_version_than_the_locked_one_is_refused():
    with pytest.raises(ConformanceError, match=r"9\.9\.9 is installed"):
        pinned((ROOT / "requirements.lock").read_text(), "9.9.9")


def test_only_the_system_tests_are_unpacked(tmp_path: Path):
    source = tmp_path / "source"
    for name in ("setup.py", "tests/unit/test_a.py", "tests/system/util/b.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "client-1.0")
    unpack(archive, tmp_path / "to")
    files = [path for path in (tmp_path / "to").rglob("*") if path.is_file()]
    assert [path.relative_to(tmp_path / "to").as_posix() for path in files] == [
        "tests/system/util/b.py"
    ]


def test_an_archive_without_system_tests_is_refused(tmp_path: Path):
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(HERE / "exceptions.toml", "client-1.0/setup.py")
    with pytest.raises(ConformanceError, match="no tests/system"):
        unpack(archive, tmp_path / "to")


# --- a run ---------------------------------------------------------------------------------------

MARKED = """
import os
import pytest

@pytest.mark.skipif(True, reason="{reason}")
def test_lifted_{number}():
    pass
"""
TESTS = """
import mock
from test_utils.system import EmulatorCreds, unique_resource_id

def test_environment():
    assert os.environ["FIRESTORE_EMULATOR_HOST"] == "127.0.0.1:1"
    assert os.environ["GCLOUD_PROJECT"].startswith("conformance-")
    assert "FIRESTORE_APPLICATION_CREDENTIALS" not in os.environ
    assert unique_resource_id("-") != unique_resource_id("-")
    assert not EmulatorCreds().expired
    assert mock.Mock()

@pytest.mark.skipif(True, reason="Query profile")
def test_other_mark():
    pass

@pytest.mark.parametrize("n", [1, 2])
def test_fails(n):
    assert n == 1

@pytest.fixture
def broken():
    yield
    raise RuntimeError("in the teardown")

def test_fails_afterwards(broken):
    pass

def test_fails_twice(broken):
    raise ValueError("first")

def test_subtests(subtests):
    with subtests.test(msg="verify_pipeline"):
        pytest.skip("no pipelines")
"""
BOOTSTRAP = """
COLLECTION_ID = "vector_search"

def create_vector_documents(client, collection):
    assert collection == COLLECTION_ID
    with open(__file__ + ".called", "w") as file:
        file.write(client.project)
"""


def system(directory: Path, marks: tuple[str, ...] = LIFTED) -> Path:
    """Stands in for the archive's tests/system."""
    tests = directory / "tests" / "system"
    (tests / "util").mkdir(parents=True)
    marked = (MARKED.format(reason=f"{mark} 1", number=n) for n, mark in enumerate(marks))
    (tests / "test_system.py").write_text("".join(marked) + TESTS)
    (tests / "test_system_async.py").write_text("")
    (tests / "util" / "bootstrap_vector_index.py").write_text(BOOTSTRAP)
    return tests


def test_a_run_gives_every_test_its_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FIRESTORE_APPLICATION_CREDENTIALS", "/a/developer's/own")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    tests = system(tmp_path)
    outcomes = run("127.0.0.1:1", tests, tmp_path, "conformance-1")
    assert {name: outcome.kind for name, outcome in outcomes.items()} == {
        "test_system.py::test_lifted_0": "passed",
        "test_system.py::test_lifted_1": "passed",
        "test_system.py::test_lifted_2": "passed",
        "test_system.py::test_environment": "passed",
        "test_system.py::test_other_mark": "skipped",
        "test_system.py::test_fails[1]": "passed",
        "test_system.py::test_fails[2]": "failed",
        "test_system.py::test_fails_afterwards": "failed",
        "test_system.py::test_fails_twice": "failed",
        "test_system.py::test_subtests": "passed",
    }
    reasons = {name.partition("::")[2]: outcome.reason for name, outcome in outcomes.items()}
    assert reasons["test_fails[2]"].endswith(": assert 2 == 1")
    assert reasons["test_fails_afterwards"].endswith(": RuntimeError: in the teardown")
    assert reasons["test_fails_twice"].endswith(": ValueError: first")
    assert "Query profile" in reasons["test_other_mark"]
    called = tests / "util" / "bootstrap_vector_index.py.called"
    assert called.read_text().startswith("conformance-"), "the seed documents are written"


def test_marks_that_are_gone_are_noticed(tmp_path: Path):
    with pytest.raises(ConformanceError, match="pytest ended with 4"):
        run("127.0.0.1:1", system(tmp_path, LIFTED[1:]), tmp_path, "conformance-1")
    assert f"no test bears a skip mark with {LIFTED[0]}" in (tmp_path / "output.txt").read_text()


def test_tests_that_cannot_be_collected_are_no_run(tmp_path: Path):
    tests = system(tmp_path)
    (tests / "test_system_async.py").write_text("import no_such_module")
    with pytest.raises(ConformanceError, match="pytest ended with 2"):
        run("127.0.0.1:1", tests, tmp_path, "conformance-1")
