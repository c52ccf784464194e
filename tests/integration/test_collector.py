"""A collector that is not ours reads what we send: Rotel, over OTLP/gRPC.

`make collector` installs it. `CROSSFADE_REQUIRE_COLLECTOR=1` turns its absence from a skip into
a failure. What is sent in detail is asked of the receiver of test_tracing.py.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from crossfade.plan import Stage
from crossfade.settings import TelemetrySettings
from crossfade.telemetry import Telemetry
from tests.fault.processes import free_port
from tests.sidecar import eventually, running

SECONDS = 20.0
SPAN = re.compile(
    r"Trace ID +: (\w*)\n +Parent ID +: (\w*)\n +ID +: \w+\n +Name +: (.*)\n +Kind +: (\w+)"
)


@pytest.fixture(scope="module")
def binary() -> Path:
    found = find_spec("rotel")
    if found is None or found.origin is None:
        reason = "Rotel is needed (make collector)"
        if os.environ.get("CROSSFADE_REQUIRE_COLLECTOR") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found.origin).with_name("rotel-agent")


@contextmanager
def collecting(binary: Path, said: Path) -> Iterator[str]:
    """The endpoint of one that writes what it reads to `said`, and forgets it."""
    address = f"127.0.0.1:{free_port()}"
    with said.open("w") as output:
        process = subprocess.Popen(
            [
                *(binary, "start", "--exporter=blackhole"),
                *(
                    f"--otlp-grpc-endpoint={address}",
                    f"--otlp-http-endpoint=127.0.0.1:{free_port()}",
                ),
                *("--debug-log=traces", "--debug-log=metrics", "--debug-log-verbosity=detailed"),
            ],
            stdout=output,
            stderr=output,
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(SECONDS)


async def written(said: Path, text: str) -> None:
    async def is_there() -> bool:
        return text in await asyncio.to_thread(said.read_text)

    await eventually(is_there, SECONDS)


async def test_it_reads_traces_metrics_and_exemplars(binary, postgres_database, tmp_path):
    said = tmp_path / "said"
    with collecting(binary, said) as endpoint:
        await written(said, "Starting Rotel")
        telemetry = Telemetry(TelemetrySettings(otlp_endpoint=endpoint, sample_ratio=1.0))
        url = await postgres_database()
        async with running(url, Stage.SHADOW, telemetry, shadow_rate=1.0) as stack:
            await stack.copy()
            await stack.client.set("tasks/1", {"n": 1})
            await stack.settled()
            await stack.client.get("tasks/1")
            await stack.settled()
            await asyncio.to_thread(telemetry.close)
        await written(said, "crossfade.paired.difference")
    text = said.read_text()
    spans = {name: (trace, parent, kind) for trace, parent, name, kind in SPAN.findall(text)}
    call, read = spans["crossfade.v1.Crossfade/GetDocument"], spans["get tasks"]
    assert (call[0], call[2]) == (read[0], "SPAN_KIND_SERVER")
    assert read[1]
    assert not call[1]
    assert spans["shadow get tasks"][0] != call[0], "a trace of its own"
    assert "-> crossfade.verdict: Str(match)" in text
    assert re.search(r"Name: crossfade.commits\n(?: .*\n)*? +-> DataType: Sum", text)
    pairs = text.partition("Name: crossfade.paired.difference")[2]
    assert re.search(rf"Exemplars:(?:\n.*){{1,8}}{call[0]}", pairs)
