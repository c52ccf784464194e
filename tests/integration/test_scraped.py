"""A real Prometheus fetches /metrics with a token, by the configuration of deploy/.

It comes with Debian's package `prometheus`, as promtool does.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from opentelemetry.sdk.trace import SpanProcessor

from crossfade.plan import Stage
from crossfade.settings import TelemetrySettings
from crossfade.telemetry import Telemetry
from tests.fault.processes import free_port
from tests.http_caller import call
from tests.sidecar import running

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy/prometheus"
TOKENS = "prometheus reader {0}, ops admin {1}"
READER, ADMIN = "reader-token-of-the-tests", "admin-token-of-the-tests"
PAIRS = "crossfade_paired_difference_seconds_bucket"
SECONDS = 20.0


@pytest.fixture(scope="module")
def binary() -> str:
    found = shutil.which("prometheus")
    if found is None:
        reason = "Prometheus is needed (Debian's package prometheus)"
        if os.environ.get("CROSSFADE_REQUIRE_PROMTOOL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def jobs(target: str) -> list[dict[str, Any]]:
    """The job of kubernetes.yml at a place that is known, and the same with a wrong token."""
    (job,) = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())["scrape_configs"]
    del job["kubernetes_sd_configs"], job["relabel_configs"]
    job |= {"static_configs": [{"targets": [target]}], "scrape_interval": "200ms"}
    job["scrape_timeout"] = "200ms"
    return [job, job | {"job_name": "stranger", "authorization": {"credentials": "x" * 20}}]


@contextmanager
def scraping(binary: str, directory: Path, target: str) -> Iterator[str]:
    """Its own HOST:PORT."""
    (directory / "secrets").mkdir()
    (directory / "secrets/crossfade-token").write_text(f"{READER}\n")
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": jobs(target)}))
    address = f"127.0.0.1:{free_port()}"
    with (directory / "said").open("w") as said:
        process = subprocess.Popen(
            [
                *(binary, f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"),
                *(f"--web.listen-address={address}", "--enable-feature=exemplar-storage"),
                "--scrape.discovery-reload-interval=100ms",
            ],
            stdout=said,
            stderr=said,
        )
    try:
        yield address
    finally:
        process.terminate()
        process.wait(SECONDS)


async def asked(address: str, path: str, query: str, **more: int) -> Any:
    """What Prometheus answers, once it has anything to say."""
    path = f"/api/v1/{path}?{urlencode({'query': query} | more)}"
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                data = json.loads((await call(address, path)).body)["data"]
                if found := data["result"] if isinstance(data, dict) else data:
                    return found
            except (OSError, ValueError, KeyError, IndexError):
                pass  # it starts
            await asyncio.sleep(0.1)


async def test_with_a_token_that_moves_nothing_and_with_exemplars(
    binary, postgres_database, tmp_path
):
    telemetry = Telemetry(TelemetrySettings(sample_ratio=1.0), span_processors=[SpanProcessor()])
    access = {
        "tokens": TOKENS.format(READER, ADMIN),
        "trust": ("loopback",),
        "trusted_role": "admin",
    }
    port = free_port()
    target = f"127.0.0.1:{port}"
    # Prometheus first: it looks for its targets five seconds after its start.
    with scraping(binary, tmp_path, target) as address:
        async with running(
            await postgres_database(),
            Stage.SHADOW,
            telemetry,
            http={"port": port},
            access=access,
            shadow_rate=1.0,
        ) as stack:
            await stack.copy()
            await stack.client.set("tasks/1", {"n": 1})
            await stack.settled()
            await stack.client.get("tasks/1")
            await stack.settled()
            (stage,) = await asked(address, "query", "crossfade_stage_ratio == 1")
            (stranger,) = await asked(address, "query", 'up{job="stranger"}')
            (pair,) = await asked(address, "query_exemplars", PAIRS, start=0, end=9_999_999_999)
    assert stage["metric"]["job"] == "crossfade"
    assert stage["metric"]["instance"] == target
    assert stage["metric"]["crossfade_stage"] == "shadow"
    assert stranger["value"][1] == "0", "a token that nobody gave"
    (exemplar,) = pair["exemplars"]
    assert len(exemplar["labels"]["trace_id"]) == 32
    assert pair["seriesLabels"]["db_collection_name"] == "tasks"
