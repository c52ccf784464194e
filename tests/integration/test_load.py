"""The load test ends with 0 on right answers, with 1 on wrong ones, with 2 on no target."""

import asyncio
import re
import sys

import pytest

from crossfade.document import Document
from tests.fake_sidecar import FakeSidecar
from violet import sample


@pytest.fixture
async def sidecar():
    fake = FakeSidecar(page=50)
    fake.documents = {
        path: Document(path, fields, 1, 1) for path, fields in sample.documents(1, 30)
    }
    await fake.start()
    yield fake
    await fake.stop()


async def load(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtests.load", "--users", "2", "--seconds", "2"),
        *("--tasks", "30", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_right_answers_end_with_0_and_a_report(sidecar, tmp_path):
    code, output = await load("--target", sidecar.target, "--output", str(tmp_path))
    assert code == 0, output
    assert sidecar.calls["GetDocument"] > 10
    operations = int(re.findall(r"^(\d+) operations, 0 failed", output, re.MULTILINE)[0])
    assert 10 < operations <= sidecar.calls.total()
    assert "PollTasks" in (tmp_path / "report.html").read_text()
    assert "GetTask" in (tmp_path / "statistics.csv").read_text()


async def test_wrong_answers_end_with_1(sidecar, tmp_path):
    for path in list(sidecar.documents):
        if path.startswith("users/"):
            del sidecar.documents[path]
    code, output = await load("--target", sidecar.target, "--output", str(tmp_path))
    assert code == 1, output
    assert "the user of an index is missing" in (tmp_path / "failures.csv").read_text()


async def test_a_target_without_the_sample_is_refused_or_filled(tmp_path):
    fake = FakeSidecar(page=50)
    await fake.start()
    code, output = await load("--target", fake.target, "--output", str(tmp_path))
    assert code == 2
    assert "does not hold the sample of 30 tasks" in output
    arguments = ("--write-sample", "--output", str(tmp_path))
    code, output = await load("--target", fake.target, *arguments)
    assert code == 0, output
    await fake.stop()


async def test_no_sidecar_at_all_ends_with_2(tmp_path):
    code, output = await load("--target", "127.0.0.1:1", "--output", str(tmp_path))
    assert code == 2
    assert "UNAVAILABLE" in output
