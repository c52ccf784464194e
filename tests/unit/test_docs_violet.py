"""docs/violet.md has every RPC, and the tests that it names are there; each RPC has a method."""

import re
from itertools import chain
from pathlib import Path

from crossfade_api.v1 import violet_pb2
from violet.operations.data import MAX_REQUEST_ID_BYTES, part_of
from violet.service import METHODS, snake

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "violet.md").read_text()
SERVICES = violet_pb2.DESCRIPTOR.services_by_name
MOST = 128
"""Bytes of a commit's request_id."""


def names() -> set[str]:
    return {method.name for service in SERVICES.values() for method in service.methods}


def test_every_rpc_is_in_the_tables_and_nothing_else():
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("|")]
    told = set(chain.from_iterable(re.findall(r"`([A-Z]\w+)`", row[2]) for row in rows))
    assert told == names()


def test_the_tests_that_it_names_are_there():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_violet*.py"))
    named = set(re.findall(r"`(test_(?!violet)\w+)`", PAGE))
    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_every_rpc_has_a_method():
    assert set(METHODS) == set(SERVICES)
    for name, service in SERVICES.items():
        for method in service.methods:
            assert callable(getattr(METHODS[name], snake(method.name)))


def test_everything_that_writes_takes_a_request_id():
    reads = ("Get", "List", "Count", "Pick", "UserExists")
    for service in SERVICES.values():
        for method in service.methods:
            takes = "request_id" in method.input_type.fields_by_name
            assert takes is not method.name.startswith(reads), method.full_name


def test_parts_of_the_longest_request_have_legal_ids():
    part = part_of("r" * MAX_REQUEST_ID_BYTES, "tasks/1")
    assert len(part.encode()) <= MOST
    assert part != part_of("r" * MAX_REQUEST_ID_BYTES, "tasks/2")
