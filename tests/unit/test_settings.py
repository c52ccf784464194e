import os
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from crossfade.diff import Kind
from crossfade.loading import load
from crossfade.plan import STAGES, Stage, StoreName
from crossfade.rules import Rule
from crossfade.settings import (
    CollectionSettings,
    GroupSettings,
    MigrationSettings,
    PostgresqlSettings,
    RuleSettings,
    Section,
    Settings,
    SettingsError,
)

URL = "postgresql://u:s3cret@db.example:5433/violet"
DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """No settings but the test's own: neither the environment's nor a file's."""
    seeds = ("DATABASE_", "MIGRATION_", "FIRESTORE_", "GOOGLE_CLOUD_", "CROSSFADE_")
    for name in os.environ:
        if name.startswith(seeds):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def environment(monkeypatch):
    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


def write(text: str) -> Path:
    path = Path("test.toml")
    path.write_text(text)
    return path


DUAL = {"DATABASE_TYPE": "dual", "DATABASE_URL": URL}
NO_SHADOW = {"CROSSFADE_MIGRATION__SHADOW_RATE": "0"}

# Each row of the design's stage table, and the seed variables that ask for it.
TABLE: list[tuple[dict[str, str], Stage]] = [
    ({"DATABASE_TYPE": "firestore"}, Stage.OFF),
    (
        {
            **DUAL,
            "MIGRATION_READ_PRIMARY": "firestore",
            "MIGRATION_DUAL_WRITE": "true",
            **NO_SHADOW,
        },
        Stage.DUAL_WRITE,
    ),
    (
        {
            **DUAL,
            "MIGRATION_READ_PRIMARY": "firestore",
            "MIGRATION_DUAL_WRITE": "true",
            "CROSSFADE_MIGRATION__SHADOW_RATE": "0.5",
        },
        Stage.SHADOW,
    ),
    ({**DUAL, "MIGRATION_READ_PRIMARY": "postgresql"}, Stage.LIVE),
    ({**DUAL, "MIGRATION_READ_PRIMARY": "postgresql", **NO_SHADOW}, Stage.RAMP_DOWN),
    ({"DATABASE_TYPE": "postgresql", "DATABASE_URL": URL}, Stage.COMPLETE),
]


@pytest.mark.parametrize(("variables", "stage"), TABLE, ids=[row[1].value for row in TABLE])
def test_the_seed_variables_ask_for_a_row_of_the_stage_table(
    environment, variables: dict[str, str], stage: Stage
):
    environment(**variables)

    settings = load()

    assert settings.requested_stages() == {"default": stage}
    kind = variables["DATABASE_TYPE"]
    assert STAGES[stage].mirrored is (kind == "dual")
    primary = variables.get("MIGRATION_READ_PRIMARY", kind)
    assert STAGES[stage].authority is StoreName(primary)


def test_every_stage_has_a_row():
    assert {stage for _, stage in TABLE} == set(Stage)


def test_dual_alone_reads_firestore_and_compares(environment):
    environment(**DUAL)

    assert load().requested_stages() == {"default": Stage.SHADOW}


def test_a_shadow_rate_of_one_collection_is_a_shadow_rate(environment):
    environment(**DUAL, **NO_SHADOW)
    file = write("[collections.tasks]\nshadow_rate = 1")

    assert load(file).requested_stages() == {"default": Stage.SHADOW}


def test_without_a_word_there_is_no_request():
    assert load().requested_stages() == {}


def test_the_rollback_of_the_migration_plan_is_no_contradiction(environment):
    environment(
        DATABASE_TYPE="firestore",
        DATABASE_URL=URL,
        MIGRATION_READ_PRIMARY="firestore",
        MIGRATION_DUAL_WRITE="true",
    )

    assert load().requested_stages() == {"default": Stage.OFF}


@pytest.mark.parametrize("word", ["TRUE", "1", "Yes", "on"])
def test_switches_and_words_are_read_in_any_case(environment, word):
    environment(**{**DUAL, "DATABASE_TYPE": "DUAL"}, MIGRATION_DUAL_WRITE=word)

    assert load().requested_stages() == {"default": Stage.SHADOW}


# variables, file, words that the one sentence must hold
CONTRADICTIONS = [
    pytest.param(
        {**DUAL, "MIGRATION_DUAL_WRITE": "false"},
        "",
        ["DATABASE_TYPE=dual", "MIGRATION_DUAL_WRITE=false", "set it to true"],
        id="dual without dual write",
    ),
    pytest.param(
        {"DATABASE_TYPE": "firestore", "MIGRATION_READ_PRIMARY": "postgresql"},
        "",
        ["DATABASE_TYPE=firestore", "MIGRATION_READ_PRIMARY=postgresql", "DATABASE_TYPE=dual"],
        id="primary that is not written",
    ),
    pytest.param(
        {
            "DATABASE_TYPE": "postgresql",
            "DATABASE_URL": URL,
            "MIGRATION_READ_PRIMARY": "firestore",
        },
        "",
        ["DATABASE_TYPE=postgresql", "MIGRATION_READ_PRIMARY=firestore"],
        id="firestore primary, but postgresql alone",
    ),
    pytest.param(
        {"DATABASE_TYPE": "postgresql", "DATABASE_URL": URL, "MIGRATION_DUAL_WRITE": "true"},
        "",
        ["DATABASE_TYPE=postgresql", "MIGRATION_DUAL_WRITE=true", "Firestore is no longer written"],
        id="dual write, but postgresql alone",
    ),
    pytest.param(
        {"MIGRATION_READ_PRIMARY": "postgresql"},
        "",
        ["MIGRATION_READ_PRIMARY=postgresql", "set DATABASE_TYPE=dual"],
        id="primary without type",
    ),
    pytest.param(
        {"DATABASE_TYPE": "dual"},
        "",
        ["DATABASE_TYPE=dual", "set DATABASE_URL"],
        id="dual without url",
    ),
    pytest.param(
        {"DATABASE_TYPE": "postgresql"}, "", ["set DATABASE_URL"], id="postgresql without url"
    ),
    pytest.param(
        {}, "[migration]\nstage = 'live'", ["stage live", "set DATABASE_URL"], id="stage, no url"
    ),
    pytest.param(
        DUAL,
        "[migration]\nstage = 'live'",
        ["stage live", "stage shadow", "remove [migration] stage"],
        id="another stage in the file",
    ),
    pytest.param(
        {"DATABASE_TYPE": "mysql"}, "", ["DATABASE_TYPE", "firestore, postgresql, dual"], id="type"
    ),
    pytest.param(
        {**DUAL, "MIGRATION_READ_PRIMARY": "postgres"},
        "",
        ["MIGRATION_READ_PRIMARY", "firestore, postgresql"],
        id="unknown primary",
    ),
    pytest.param(
        {**DUAL, "MIGRATION_DUAL_WRITE": "maybe"},
        "",
        ["MIGRATION_DUAL_WRITE", "true or false"],
        id="unknown switch",
    ),
    pytest.param(
        {"DATABASE_URL": "mysql://u:s3cret@h/d"},
        "",
        ["DATABASE_URL", '"mysql://"', "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"],
        id="scheme",
    ),
    pytest.param(
        {"DATABASE_URL": "s3cret"}, "", ["DATABASE_URL", "write it as postgresql://"], id="no url"
    ),
    pytest.param(
        {"DATABASE_URL": "postgresql://u:s3cret/x@h/d"},
        "",
        ["DATABASE_URL", "percent-encoded"],
        id="slash in the password",
    ),
    pytest.param(
        {"DATABASE_URL": "postgresql://u:12?s3cret@h/d"},
        "",
        ["DATABASE_URL", "percent-encoded"],
        id="question mark in the password",
    ),
    pytest.param(
        {"DATABASE_URL": URL, "CROSSFADE_POSTGRESQL__URL": "postgresql://u:s3cret@other/d"},
        "",
        ["DATABASE_URL", "CROSSFADE_POSTGRESQL__URL", "unset one"],
        id="two databases",
    ),
    pytest.param(
        {},
        "[collections.tasks]\nread_percent = 101",
        ["[collections.tasks] read_percent in test.toml", "less than or equal to 100"],
        id="percent over 100",
    ),
    pytest.param(
        {"CROSSFADE_MIGRATION__READ_PERCENT": "-1"},
        "",
        ["CROSSFADE_MIGRATION__READ_PERCENT", "greater than or equal to 0"],
        id="percent below 0",
    ),
    pytest.param(
        {"CROSSFADE_MIGRATION__READ_PERCENT": "nan"},
        "",
        ["CROSSFADE_MIGRATION__READ_PERCENT"],
        id="percent not a number",
    ),
    pytest.param(
        {},
        "[migration]\nstage = 'shaddow'",
        ["[migration] stage", "'shadow'", "'ramp_down'"],
        id="unknown stage",
    ),
    pytest.param(
        {"FIRESTORE_EMULATOR_HOST": "http://localhost:8080"},
        "",
        ["FIRESTORE_EMULATOR_HOST", '"HOST:PORT"'],
        id="emulator as a url",
    ),
    pytest.param(
        {"CROSSFADE_TELEMETRY__OTLP_ENDPOINT": "collector:4317"},
        "",
        ["CROSSFADE_TELEMETRY__OTLP_ENDPOINT", "http://HOST:4317"],
        id="endpoint without scheme",
    ),
    pytest.param(
        {},
        f"[collections.tasks]\nsalt = '{'ä' * 33}'",
        ["[collections.tasks] salt", "64 bytes"],
        id="salt",
    ),
    pytest.param(
        {}, "[server]\nprot = 1", ["[server] prot", 'did you mean "port"?'], id="unknown key"
    ),
    pytest.param(
        {},
        "[collections.tasks]\nread_percnt = 1",
        ["[collections.tasks] read_percnt", 'did you mean "read_percent"?'],
        id="unknown key of a collection",
    ),
    pytest.param(
        {}, "[posgresql]\nlanes = 1", ["[posgresql]", 'did you mean "postgresql"?'], id="section"
    ),
    pytest.param(
        {"CROSSFADE_SERVER__PROT": "1"},
        "",
        ["CROSSFADE_SERVER__PROT", 'did you mean "port"?'],
        id="unknown variable",
    ),
    pytest.param(
        {"CROSSFADE_SEVER__PORT": "1"},
        "",
        ["CROSSFADE_SEVER__PORT", 'did you mean "server"?'],
        id="variable of an unknown section",
    ),
    pytest.param(
        {"CROSSFADE_POSTGRESQL_URL": URL},
        "",
        ["CROSSFADE_POSTGRESQL_URL", "CROSSFADE_POSTGRESQL__URL"],
        id="one underscore",
    ),
    pytest.param({"CROSSFADE_SERVER": "x"}, "", ["JSON"], id="section that is not JSON"),
    pytest.param({"CROSSFADE_CONFIG": "nowhere.toml"}, "", ["nowhere.toml"], id="no file"),
    pytest.param({}, "[server", ["test.toml", "not TOML"], id="not TOML"),
]


@pytest.mark.parametrize(("variables", "text", "words"), CONTRADICTIONS)
def test_what_cannot_be_meant_is_refused_in_one_sentence(environment, variables, text, words):
    environment(**variables)
    file = write(text) if text else None

    with pytest.raises(SettingsError) as refused:
        load(file)

    sentence = str(refused.value)
    assert all(word in sentence for word in words), sentence
    assert "s3cret" not in sentence
    assert "\n" not in sentence
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_all_errors_are_named_at_once():
    file = write("[server]\nport = -1\n[shadow]\nqueue = 0")

    with pytest.raises(SettingsError, match=r"\[server\] port.*; .*\[shadow\] queue"):
        load(file)


def test_kubernetes_service_variables_are_no_settings(environment):
    environment(CROSSFADE_SERVER_PORT="tcp://10.0.0.7:7600", CROSSFADE_PORT="tcp://10.0.0.7:7600")

    assert load().server.port == 7600


def test_the_environment_wins_over_the_file(environment):
    file = write(
        "[server]\nhost = '0.0.0.0'\nport = 1\n"
        "[postgresql]\nurl = 'postgresql://file/d'\n[firestore]\nproject = 'file'\n"
        "[collections.tasks]\nread_percent = 5\nsalt = 'x'"
    )
    environment(
        CROSSFADE_SERVER__PORT="2",
        CROSSFADE_COLLECTIONS__TASKS__READ_PERCENT="7.5",
        DATABASE_URL=URL,
        GOOGLE_CLOUD_PROJECT="cloud",
        FIRESTORE_EMULATOR_HOST="localhost:8080",
    )

    settings = load(file)

    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 2)
    assert settings.collections == {"tasks": CollectionSettings(read_percent=7.5, salt="x")}
    assert settings.postgresql.dsn == URL
    assert settings.firestore.project == "cloud"
    assert settings.firestore.emulator == "localhost:8080"


def test_crossfade_variables_win_over_the_seeds(environment):
    environment(GOOGLE_CLOUD_PROJECT="cloud", CROSSFADE_FIRESTORE__PROJECT="own")

    assert load().firestore.project == "own"


def test_empty_variables_are_no_settings(environment):
    environment(CROSSFADE_SERVER__PORT="", DATABASE_URL="", DATABASE_TYPE="")

    assert load() == load()
    assert load().postgresql.url is None


def test_where_the_file_is_found(environment):
    Path("crossfade.toml").write_text("[server]\nport = 1")
    assert load().server.port == 1

    Path("other.toml").write_text("[server]\nport = 2")
    environment(CROSSFADE_CONFIG="other.toml")
    assert load().server.port == 2

    assert load(write("[server]\nport = 3")).server.port == 3


def test_arguments_alone_make_settings_without_the_environment(environment):
    environment(**DUAL, CROSSFADE_SERVER__PORT="1", FIRESTORE_EMULATOR_HOST="prod:1")

    assert Settings() == Settings.model_validate({"server": {"port": 7600}})
    assert Settings().postgresql.url is None
    assert Settings().firestore.emulator is None


@pytest.mark.parametrize(
    ("url", "dsn", "target"),
    [
        (URL, URL, "db.example:5433/violet"),
        ("postgresql+asyncpg://u@h/d", "postgresql://u@h/d", "h:5432/d"),
        (
            "postgresql://postgres:@/d?host=/tmp/x",
            "postgresql://postgres:@/d?host=/tmp/x",
            "/tmp/x:5432/d",
        ),
        ("postgresql://h", "postgresql://h", "h:5432/?"),
    ],
)
def test_urls_as_the_driver_and_as_messages_have_them(url, dsn, target):
    postgresql = PostgresqlSettings.model_validate({"url": url})

    assert (postgresql.dsn, postgresql.target) == (dsn, target)


def test_a_url_that_is_not_there_is_asked_for():
    with pytest.raises(SettingsError, match="set DATABASE_URL"):
        _ = Settings().postgresql.dsn


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "postgresql://u:***@db.example:5433/violet"),
        ("postgresql://u@h/d?password=s3cret&ssl=on", "postgresql://u@h/d?password=***&ssl=on"),
        ("postgresql://h/d?sslpassword=s3cret", "postgresql://h/d?sslpassword=***"),
    ],
)
def test_no_password_is_ever_shown(url, shown):
    settings = Settings.model_validate(
        {
            "postgresql": {"url": url},
            "telemetry": {"otlp_endpoint": "http://me:s3cret@collector:4317"},
        }
    )

    redacted = settings.redacted()

    assert redacted["postgresql"]["url"] == shown
    assert redacted["telemetry"]["otlp_endpoint"] == "http://me:***@collector:4317"
    assert "s3cret" not in str(redacted) + repr(settings.postgresql)


def test_validation_errors_hold_no_values():
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"postgresql": {"url": URL, "lanes": "s3cret"}})

    assert "s3cret" not in str(refused.value)


def keys(model: type[Section]) -> list[str]:
    return list(model.model_fields)


RULE = """
[[collections.tasks.rules]]
name = "rounding"
fields = ["score", "items.price"]
kind = "tolerance"
relative = 1e-9
"""


def test_rules_of_a_collection():
    second = (
        "[[collections.tasks.rules]]\nname='set'\nfields=['tags']\nkind='ignore'\nkinds=['order']"
    )

    rules = [each.rule() for each in load(write(RULE + second)).collections["tasks"].rules]

    assert rules == [
        Rule("rounding", (("score",), ("items", "price")), relative=1e-9),
        Rule("set", (("tags",),), kinds=frozenset({Kind.ORDER})),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("colour = 1", ["[collections.tasks.rules.0] colour", "is not a setting"]),
        ("relativ = 0.1", ["rules.0] relativ", 'did you mean "relative"?']),
        ("kinds = ['order']", ["rules] 0", 'kinds belongs to kind = "ignore"']),
        ("skew = -1", ["rules.0] skew", "greater than or equal to 0"]),
        ("absolute = inf", ["rules.0] absolute", "finite"]),
        (RULE, ["tasks] rules", '2 rules bear the name "rounding"']),
        (RULE.replace("items.price", "items[0]"), ["rules.1.fields] 1", "Invalid property path"]),
        (RULE.replace('"tolerance"', '"ignore"'), ['relative belongs to kind = "tolerance"']),
        (RULE.replace("relative", "# "), ["a tolerance needs absolute, relative or skew"]),
        (RULE.replace("fields", "# "), ["rules.1] fields", "required"]),
        ("[collections.users]\nclear = ['']", ["collections.users.clear] 0", "empty property"]),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_by_name(line, words):
    with pytest.raises(SettingsError) as refused:
        load(write(RULE + line))

    assert all(word in str(refused.value) for word in [*words, "test.toml"]), str(refused.value)


def test_the_documentation_names_every_setting_and_its_default():
    text = DOCS.read_text()
    missing = []
    for section, field in Settings.model_fields.items():
        if section == "collections":
            known = keys(CollectionSettings) + keys(RuleSettings)
            missing += [key for key in known if f"`{key}`" not in text]
            continue
        if section == "groups":
            missing += [key for key in keys(GroupSettings) if f"| `{key}` |" not in text]
            continue
        chapter = text.partition(f"## [{section}]")[2].partition("\n## ")[0]
        for key, value in field.default.model_dump(mode="json").items():
            default = "none" if value is None else str(value).lower()
            if f"| `{key}` | {default} |" not in chapter:
                missing.append(f"{section}.{key} = {default}")
    assert not missing


def test_the_example_of_the_documentation_loads(environment):
    example = DOCS.read_text().partition("```toml\n")[2].partition("```")[0]
    file = write(example)

    settings = load(file)

    assert tomllib.loads(example)["migration"]["stage"] == "shadow"
    assert settings.requested_stages() == {"default": Stage.SHADOW}
    assert settings.migration == MigrationSettings(stage=Stage.SHADOW, read_percent=5)
