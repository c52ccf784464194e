"""The copy as an Apache Beam pipeline, on the DirectRunner."""

import asyncio
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from crossfade.plan import Stage
from crossfade.rehearse import load
from tests.sidecar import DATABASE, running
from violet import sample

ROOT = Path(__file__).resolve().parents[2]

if find_spec("apache_beam") is None and os.environ.get("CROSSFADE_REQUIRE_BEAM") != "1":
    pytest.skip("Apache Beam is not installed: make beam", allow_module_level=True)


async def _backfill(environment: dict[str, str], *more: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "crossfade", "backfill", *more]
    ended = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.timeout(240)
async def test_beam_copies_every_partition_once(postgres_database: Any):
    async with running(await postgres_database(), Stage.DUAL_WRITE) as made:
        documents = dict(sample.documents(5, 1_200))
        await load(made.direct, documents.items())
        environment = {
            "FIRESTORE_EMULATOR_HOST": made.firestore_server.address,
            "GOOGLE_CLOUD_PROJECT": DATABASE.project,
            "DATABASE_URL": made.url,
        }
        code, out, errors = await _backfill(environment, "--runner", "DirectRunner", "--json")
        assert code == 0, errors[-2000:]
        told = json.loads(out.splitlines()[-1])
        assert (told["state"], told["documents"]) == ("done", len(documents))
        assert told["partitions"] > 10
        holders = await made.sql.fetchval(
            "select count(distinct holder) from crossfade.job_partitions"
        )
        # Each element has a holder of its own: had Beam done nothing, there would be one.
        assert holders > 10
        assert await made.sql.fetchval("select count(*) from crossfade.versions where live") == len(
            documents
        )
        assert (await made.sidecar.status()).copied
