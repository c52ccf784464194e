"""Validations for tests, in this process."""

from typing import Any

from pydantic import SecretStr

from crossfade.groups import DEFAULT
from crossfade.jobs import validating
from crossfade.jobs.validate import How
from crossfade.jobs.validating import Asked
from crossfade.settings import (
    FirestoreSettings,
    MigrationSettings,
    PostgresqlSettings,
    Settings,
    ShadowSettings,
)
from crossfade.validate_commands import opened
from tests.sidecar import DATABASE, Running


def settings_of(stack: Running, **sections: Any) -> Settings:
    return Settings(
        firestore=FirestoreSettings(
            project=DATABASE.project, emulator=stack.firestore_server.address
        ),
        postgresql=PostgresqlSettings(url=SecretStr(stack.url)),
        migration=MigrationSettings(mappings="violet"),
        **({"shadow": ShadowSettings(behind_bound=0.2)} | sections),
    )


async def validated(stack: Running, how: How | None = None, **options: Any) -> Any:
    """The report of a validation."""
    settings = options.pop("settings", None) or settings_of(stack)
    group = options.pop("group", DEFAULT)
    asked = Asked(how=how or How(), **options)
    async with opened(settings, group=group) as on:
        job = await validating.begin(on, asked)
        job = await validating.work(on, job).run()
        return await validating.report_of(on, job)
