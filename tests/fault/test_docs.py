"""The table of docs/failure-semantics.md names tests that there are, and every fault has a row."""

import re

from tests.fault.processes import ROOT

TEXT = (ROOT / "docs/failure-semantics.md").read_text()
SOURCES = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


def test_every_row_names_a_test_that_exists():
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("| fault", "| | asked", "|---"))]
    assert len(rows) > 45
    for row in rows:
        last = row.rstrip("| ").rpartition("|")[2]
        files = re.findall(r"`(test_\w+\.py)`", last)
        names = re.findall(r"\b(test_\w+)(?!\w*\.py)\b", last)
        assert files or names, row
        assert all(file in SOURCES for file in files), row
        for name in set(names) - {file.removesuffix(".py") for file in files}:
            begin = f"def {name}"
            assert any(begin in source for source in SOURCES.values()), name


def test_every_test_that_the_protocol_asks_for_is_named():
    asked = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    assert asked == [str(number) for number in range(1, 15)]


def test_every_fault_of_the_tests_has_a_row():
    source = SOURCES["test_faults.py"]
    shortened = TEXT.replace("test_an_outage_under_load...", "test_an_outage_under_load_")
    for name in re.findall(r"^async def (test_\w+)\(", source, re.MULTILINE):
        assert name in shortened or name.startswith("test_an_outage_under_load"), name
