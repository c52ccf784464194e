"""Reads the settings: one TOML file, CROSSFADE_ variables over it, and the seed variables.

The seed variables are those of the application's own migration plan (DATABASE_TYPE,
MIGRATION_READ_PRIMARY, MIGRATION_DUAL_WRITE, DATABASE_URL). They ask for a stage:
what an empty control state begins with, and a request ever after (protocol H28).
"""

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from crossfade.plan import STAGES, Stage, StoreName
from crossfade.settings import URL_FORM, Section, Settings, SettingsError

PREFIX = "CROSSFADE_"
CONFIG_VARIABLE = "CROSSFADE_CONFIG"
DEFAULT_FILE = Path("crossfade.toml")
# What stands in for the application's own variables, by section and key.
SEEDED = {
    ("postgresql", "url"): "DATABASE_URL",
    ("firestore", "emulator"): "FIRESTORE_EMULATOR_HOST",
    ("firestore", "project"): "GOOGLE_CLOUD_PROJECT",
}


class _Loaded(Settings, BaseSettings):
    """`Settings` with the environment over the values it is given."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        seeded: dict[str, Any] = {}
        for (section, key), variable in SEEDED.items():
            if os.environ.get(variable):
                seeded.setdefault(section, {})[key] = os.environ[variable]
        return env_settings, InitSettingsSource(settings_cls, seeded), init_settings


def file_of(config: Path | None = None) -> Path:
    """The file that `load` reads, whether it is there or not."""
    variable = os.environ.get(CONFIG_VARIABLE)
    return config or (Path(variable) if variable else DEFAULT_FILE)


def load(config: Path | None = None) -> Settings:
    """The settings of this process. Raises SettingsError.

    `config`: the TOML file; else CROSSFADE_CONFIG; else ./crossfade.toml, if it is there.
    """
    file, values = _read_file(config)
    _check_variables()
    try:
        settings = _Loaded(**values)
    except ValidationError as error:
        raise SettingsError(explain(error, file)) from None
    except SourceError as error:
        raise SettingsError(f"{error}: a variable of a whole section holds JSON") from None
    stage = _resolve_stage(settings)
    migration = settings.migration.model_copy(update={"stage": stage})
    return settings.model_copy(update={"migration": migration})


# --- the file and the variables ----------------------------------------------------------------


def _read_file(config: Path | None) -> tuple[Path | None, dict[str, Any]]:
    named = config or (Path(value) if (value := os.environ.get(CONFIG_VARIABLE)) else None)
    file = named or DEFAULT_FILE
    try:
        values = tomllib.loads(file.read_text())
    except FileNotFoundError:
        if named is None:
            return None, {}
        option = "--config" if config else CONFIG_VARIABLE
        raise SettingsError(f"{option}: there is no file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{file} cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not TOML: {error}") from None
    for section in values:
        if section not in Settings.model_fields:
            raise SettingsError(
                f"[{section}] in {file} is not a section" + _nearest(section, Settings.model_fields)
            )
    return file, values


def _check_variables() -> None:
    """Refuses variables that look like settings and are none; the library skips them silently."""
    sections = Settings.model_fields
    nearly = {
        f"{PREFIX}{section}_{key}".upper(): f"{PREFIX}{section}__{key}".upper()
        for section, info in sections.items()
        for key in _keys(info.annotation)
    }
    for variable, value in os.environ.items():
        section, separator, _ = variable.upper().removeprefix(PREFIX).lower().partition("__")
        if not variable.upper().startswith(PREFIX):
            continue
        if separator and section not in sections:
            raise SettingsError(
                f"{variable}: [{section}] is not a section" + _nearest(section, sections)
            )
        # Kubernetes sets NAME_PORT=tcp://... for every service beside the pod.
        if variable.upper() in nearly and not value.startswith("tcp://"):
            raise SettingsError(
                f"{variable} is not a setting; write {nearly[variable.upper()]}, "
                f"with two underscores between section and key"
            )
    direct, seed = os.environ.get(f"{PREFIX}POSTGRESQL__URL"), os.environ.get("DATABASE_URL")
    if direct and seed and direct != seed:
        raise SettingsError(
            f"DATABASE_URL and {PREFIX}POSTGRESQL__URL name different databases; unset one"
        )


def _keys(annotation: Any) -> Mapping[str, Any]:
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation.model_fields if is_section else {}


def _items(annotation: Any) -> Any:
    """The section that a table or a list holds."""
    held = [item for item in get_args(annotation) if isinstance(item, type)]
    return next((item for item in held if issubclass(item, Section)), None)


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else f"; known are {', '.join(known)}"


def explain(error: ValidationError, file: Path | None = None) -> str:
    """What is wrong with values that were refused, and where they were written."""
    return "; ".join(_sentence(detail, file) for detail in error.errors(include_url=False))


def _sentence(error: ErrorDetails, file: Path | None) -> str:
    """One validation error as a sentence that names the place where it was written."""
    parts = tuple(str(part) for part in error["loc"])
    where = _origin(parts, file)
    if error["type"] == "extra_forbidden":
        annotation: Any = Settings
        for part in parts[:-1]:
            known = _keys(annotation)
            annotation = known[part].annotation if part in known else _items(annotation)
        return f"{where} is not a setting" + _nearest(parts[-1], _keys(annotation))
    text = error["msg"].removeprefix("Value error, ")
    return f"{where}: {text[0].lower()}{text[1:]}"


def _origin(parts: tuple[str, ...], file: Path | None) -> str:
    variable = PREFIX + "__".join(parts).upper()
    seed = SEEDED.get(parts[:2])  # type: ignore[arg-type]
    for name in os.environ:
        if name.upper() == variable:
            return name
    if seed and os.environ.get(seed):
        return seed
    written = f"[{'.'.join(parts[:-1])}] {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{written} in {file}" if file else written


# --- the stage that is asked for ---------------------------------------------------------------


def _resolve_stage(settings: Settings) -> Stage | None:
    """The stage of the file and of the seed variables. Raises SettingsError when they differ."""
    shadowed = settings.migration.shadow_rate > 0 or any(
        (collection.shadow_rate or 0) > 0 for collection in settings.collections.values()
    )
    seeded, asked = _seeded_stage(shadowed), settings.migration.stage
    if seeded is not None and asked is not None and seeded is not asked:
        raise SettingsError(
            f"the settings ask for stage {asked} and the variables "
            f"(DATABASE_TYPE={os.environ['DATABASE_TYPE']}) for stage {seeded}; "
            f"remove [migration] stage or make the two agree"
        )
    stage = asked or seeded
    for name, group in settings.groups.items():
        if group.stage not in {None, Stage.OFF} and settings.postgresql.url is None:
            raise SettingsError(
                f"[groups.{name}] stage needs PostgreSQL: set DATABASE_URL to {URL_FORM}"
            )
    if stage not in {None, Stage.OFF} and settings.postgresql.url is None:
        reason = "DATABASE_TYPE=" + os.environ["DATABASE_TYPE"] if seeded else f"stage {stage}"
        raise SettingsError(f"{reason} needs PostgreSQL: set DATABASE_URL to {URL_FORM}")
    return stage


def _seeded_stage(shadowed: bool) -> Stage | None:
    """The row of the stage table that the seed variables name."""
    kind = _word("DATABASE_TYPE", ("firestore", "postgresql", "dual"))
    primary = _word("MIGRATION_READ_PRIMARY", tuple(StoreName))
    dual_write = _switch("MIGRATION_DUAL_WRITE")
    if kind is None:
        if primary == StoreName.POSTGRESQL:
            raise SettingsError(
                "MIGRATION_READ_PRIMARY=postgresql without DATABASE_TYPE; set DATABASE_TYPE=dual"
            )
        return None
    if kind != "dual":
        # DATABASE_TYPE=firestore beside a leftover MIGRATION_DUAL_WRITE=true is the rollback of
        # the migration plan. The other way it would be an end without a way back, so it is asked.
        if primary is not None and primary != kind:
            raise SettingsError(
                f"DATABASE_TYPE={kind} contradicts MIGRATION_READ_PRIMARY={primary}; set "
                f"DATABASE_TYPE=dual, or MIGRATION_READ_PRIMARY={kind}"
            )
        if kind == StoreName.POSTGRESQL and dual_write:
            raise SettingsError(
                "DATABASE_TYPE=postgresql contradicts MIGRATION_DUAL_WRITE=true: Firestore is no "
                "longer written; set DATABASE_TYPE=dual, or MIGRATION_DUAL_WRITE=false"
            )
        return Stage.OFF if kind == StoreName.FIRESTORE else Stage.COMPLETE
    if dual_write is False:
        raise SettingsError(
            "DATABASE_TYPE=dual contradicts MIGRATION_DUAL_WRITE=false; set it to true, or "
            "DATABASE_TYPE to firestore or postgresql"
        )
    authority = StoreName(primary or StoreName.FIRESTORE)
    return next(
        stage
        for stage, rules in STAGES.items()
        if rules.mirrored and rules.authority is authority and rules.shadowed is shadowed
    )


def _word(variable: str, words: tuple[str, ...]) -> str | None:
    value = os.environ.get(variable, "").strip().lower()
    if value and value not in words:
        raise SettingsError(f"{variable}: unknown word; it is one of {', '.join(words)}")
    return value or None


def _switch(variable: str) -> bool | None:
    value = os.environ.get(variable, "").strip().lower()
    if value in {"true", "1", "yes", "on"}:
        return True
    if value in {"false", "0", "no", "off"}:
        return False
    if value:
        raise SettingsError(f"{variable}: unknown word; it is true or false")
    return None
