"""The admin API does what its OpenAPI says: schemathesis makes requests up, good ones and bad
ones, and no answer is a 500 or has another shape than promised.

In a process of its own thread's client against a whole sidecar. CROSSFADE_SCHEMA_EXAMPLES makes
it look longer.
"""

import asyncio
import json
import os
from typing import Any
from urllib.request import urlopen

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from crossfade.plan import Stage
from tests.sidecar import running

EXAMPLES = int(os.environ.get("CROSSFADE_SCHEMA_EXAMPLES", "6"))
ENDLESS = "/api/v1/events"
CHECKS = (
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.unsupported_method,
)


def look(address: str) -> dict[str, int]:
    """Asks every operation; returns how many answers each gave."""
    with urlopen(f"http://{address}/api/v1/openapi.json", timeout=30) as answer:
        described = json.load(answer)
    for methods in described["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)  # this sidecar has no tokens; others test them
    schema: Any = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=f"http://{address}")
    asked: dict[str, int] = {}
    for found in schema.exclude(path=ENDLESS).get_all_operations():
        operation = found.ok()
        asked[operation.label] = 0

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=_cases(operation))
        def answered_as_promised(case: Any) -> None:
            asked[case.operation.label] += 1
            case.call_and_validate(checks=CHECKS, timeout=30)

        answered_as_promised()
    return asked


def _cases(operation: Any) -> Any:
    """Requests that the schema allows, and some that it does not, where there are any."""
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not operation.body and not operation.query:
        return good
    return good | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


@pytest.mark.timeout(300)
async def test_no_request_is_answered_otherwise_than_the_schema_says(postgres_database):
    async with running(await postgres_database(), Stage.SHADOW, http={}) as stack:
        await stack.copy()
        await stack.client.set("tasks/1", {"n": 1})
        asked = await asyncio.to_thread(look, stack.sidecar.web.address)
    assert len(asked) >= 20
    assert all(asked.values()), asked
