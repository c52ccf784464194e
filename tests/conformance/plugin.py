"""The pytest plugin in the process of the system tests: takes skip marks off, writes the
documents that the vector searches look for, and records how every test ended."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.judge import LIFTED, Kind

RESULTS = "CROSSFADE_CONFORMANCE_RESULTS"
"""The variable with the file for the outcomes: {name: [kind, reason]}."""

_outcomes: dict[str, tuple[Kind, str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    found = set()
    for item in items:
        kept = []
        for mark in item.own_markers:
            word = lifted(mark)
            if word is None:
                kept.append(mark)
            else:
                found.add(word)
        item.own_markers[:] = kept
    if gone := set(LIFTED) - found:
        raise pytest.UsageError(f"no test bears a skip mark with {', '.join(sorted(gone))}")


def lifted(mark: pytest.Mark) -> str | None:
    """Which of the words takes this mark off."""
    reason = str(mark.kwargs.get("reason", "")) if mark.name == "skipif" else ""
    return next((word for word in LIFTED if word in reason), None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """The searches expect what the archive calls a manual step to have been done."""
    if not session.items:
        return
    script = session.items[0].path.parent / "util" / "bootstrap_vector_index.py"
    spec = importlib.util.spec_from_file_location("bootstrap_vector_index", script)
    if spec is None or spec.loader is None:
        raise pytest.UsageError(f"{script} cannot be loaded")
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    from google.cloud.firestore import Client

    client: Any = Client(project=os.environ["GCLOUD_PROJECT"])
    bootstrap.create_vector_documents(client, bootstrap.COLLECTION_ID)
    client.close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    record(_outcomes, report)


def record(outcomes: dict[str, tuple[Kind, str]], report: pytest.TestReport) -> None:
    """Adds what this phase of a test (setup, call, teardown) says about its outcome."""
    # Subtests report apart. Here they only compare with pipelines, and skip themselves.
    if isinstance(report, pytest.SubtestReport):
        return
    name = short_name(report.nodeid)
    if report.failed:
        # What failed first is the cause; a teardown may fail after it.
        before = outcomes.get(name)
        if before is None or before[0] != "failed":
            outcomes[name] = ("failed", reason(report))
    elif report.skipped:
        outcomes[name] = ("skipped", reason(report))
    elif report.when == "call":
        outcomes[name] = ("passed", "")


def short_name(nodeid: str) -> str:
    """file.py::test[parameters], wherever the file lies."""
    path, _, inner = nodeid.partition("::")
    return f"{Path(path).name}::{inner}"


def reason(report: pytest.TestReport) -> str:
    """One line: why it was skipped, or where it failed and with what."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return _first_line(str(report.longrepr))
    return f"{Path(crash.path).name}:{crash.lineno}: {_first_line(crash.message)}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def pytest_sessionfinish() -> None:
    Path(os.environ[RESULTS]).write_text(json.dumps(_outcomes, indent=1) + "\n")
