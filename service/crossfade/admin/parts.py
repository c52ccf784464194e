"""What the admin API is made of, given by the composition root."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crossfade.admin.calls import Method
from crossfade.certified import Certified
from crossfade.controls import Controls
from crossfade.errors import FailedPrecondition
from crossfade.ramp import Answer
from crossfade.settings import Settings
from crossfade.telemetry import Telemetry

Admit = Callable[[str | None], str]
"""An Authorization header to the caller's name ("": he did not have to say). Raises
Unauthenticated, PermissionDenied."""


async def nowhere() -> list[str]:
    raise FailedPrecondition("this sidecar runs without PostgreSQL; set DATABASE_URL")


async def none_made(_group: str | None, _limit: int) -> list[Certified]:
    raise FailedPrecondition("this sidecar runs without PostgreSQL, which keeps the reports")


@dataclass(frozen=True, slots=True)
class Parts:
    """`methods`: of the admin services, by name, from request bytes to reply bytes. `judge`: what
    a collection's figures say now. `settings`: those in force. `schema_drift`: a line for each
    difference. `admit_scraper`: who may fetch metrics. `validations`: the latest ones, of a group
    or of all. `hosts`: names of this server, beside localhost."""

    controls: Controls
    telemetry: Telemetry
    methods: Mapping[str, Method]
    judge: Callable[[str], Awaitable[Sequence[Answer]]]
    settings: Callable[[], Settings]
    admit: Admit
    admit_scraper: Admit
    settings_problem: Callable[[], str] = str
    schema_drift: Callable[[], Awaitable[list[str]]] = nowhere
    validations: Callable[[str | None, int], Awaitable[Sequence[Certified]]] = none_made
    hosts: Sequence[str] = field(default=())

    def redacted(self) -> dict[str, Any]:
        return self.settings().redacted()
