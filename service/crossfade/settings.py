"""All settings that there are, and what they may be.

`Settings(...)` takes its arguments alone, so that a throwaway stack never picks up a
developer's DATABASE_URL; `loading.load` reads them from a file and the environment.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from crossfade.diff import Kind
from crossfade.document import FieldPath, check_id, is_own, parse_field_path
from crossfade.errors import InvalidArgument
from crossfade.groups import DEFAULT, Groups
from crossfade.limits import Allowance
from crossfade.plan import Stage
from crossfade.ramp import Limits
from crossfade.rules import Rule

URL_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
HIDDEN = "***"


class SettingsError(Exception):
    """The settings cannot be used. The message says what to change and holds no password."""


Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Lanes = Annotated[int, Field(ge=1, le=1_000)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSettings(Section):
    """Where the sidecar listens: TCP (`tcp`), a unix-domain socket, or both. Port 0 takes a free
    one; `default_timeout` is seconds.

    `socket`: the path of the unix-domain socket, which gets the permissions `socket_mode`.
    `cert` and `key` (PEM) make TCP a TLS listener; with `client_ca` callers need a certificate
    that it signed. The three are read anew when they change. `insecure`: listen although a
    network could reach it without TLS, or without showing who calls.

    `stop_timeout`: seconds that calls under way, and after them puts, have to end in when the
    sidecar is told to stop.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 7600
    tcp: bool = True
    socket: Path | None = None
    socket_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "0600"
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False
    max_message_mb: Annotated[int, Field(ge=1, le=1_024)] = 11
    default_timeout: Seconds = 5.0
    stop_timeout: Seconds = 10.0

    @model_validator(mode="after")
    def _listens(self) -> "ServerSettings":
        if not self.tcp and self.socket is None:
            raise ValueError("tcp = false needs a socket to listen on instead")
        if (self.cert is None) is not (self.key is None):
            raise ValueError("cert and key belong together")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca needs cert and key")
        # A path of a socket has at most 107 bytes, and gRPC would cut it without a word.
        if self.socket is not None and len(os.fsencode(self.socket)) > 107:
            raise ValueError("the path of a socket has at most 107 bytes")
        return self


class AccessSettings(Section):
    """Who may call. Without tokens, everybody who reaches a listener.

    `tokens_file`: TOML, a table [[token]] for each; it is read anew when it changes. `tokens`:
    "NAME ROLE TOKEN" by commas, for the environment. `trust`: over these transports a caller
    needs no token, and has the role `trusted_role`.
    """

    tokens_file: Path | None = None
    tokens: SecretStr | None = None
    trust: tuple[Literal["unix", "loopback"], ...] = ()
    trusted_role: Literal["reader", "writer", "admin"] = "writer"


class LimitSettings(Section):
    """What callers may use, all together ([limits]) or one token; what is not set has no limit.

    `concurrency` calls at a time; `rate` calls in a second, after `burst` at once (a second's
    worth where it is not set); `message_kb` of a request; `documents` and `result_kb` of the
    answer to one call; `seconds` that a call may take.
    """

    concurrency: Count | None = None
    rate: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = None
    burst: Count | None = None
    message_kb: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    documents: Annotated[int, Field(ge=1, le=10**9)] | None = None
    result_kb: Annotated[int, Field(ge=1, le=10**9)] | None = None
    seconds: Seconds | None = None

    def allowance(self) -> Allowance:
        return Allowance(**self.model_dump())


class FirestoreSettings(Section):
    """Which Firestore. `emulator` is "host:port"; without it, Google's with its credentials."""

    project: Annotated[str, Field(min_length=1, pattern=r"^[^/\s]+$")] = "violet"
    database: Annotated[str, Field(min_length=1, pattern=r"^[^/\s]+$")] = "(default)"
    emulator: str | None = None
    timeout: Seconds = 5.0

    @field_validator("emulator")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            host, _, port = value.rpartition(":")
            if not host or "/" in host or not port.isdecimal() or int(port) > 65_535:
                raise ValueError('write it as "HOST:PORT", without http://')
        return value


class PostgresqlSettings(Section):
    """Which PostgreSQL, and how many connections for answers, shadows, mirror work, and for
    snapshots: each read-only transaction holds one while it is open, each listener while it
    reads."""

    url: SecretStr | None = None
    lanes: Lanes = 8
    shadow_lanes: Lanes = 2
    mirror_lanes: Lanes = 4
    snapshot_lanes: Lanes = 4
    timeout: Seconds = 5.0

    @field_validator("url")
    @classmethod
    def _usable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_url(value.get_secret_value())
        return value

    @property
    def dsn(self) -> str:
        """The URL as the driver takes it. Raises SettingsError when there is none."""
        if self.url is None:
            raise SettingsError(
                f"no PostgreSQL is configured: set DATABASE_URL or [postgresql] url to {URL_FORM}"
            )
        text = self.url.get_secret_value()
        return "postgresql://" + text.partition("://")[2]

    @property
    def target(self) -> str:
        """host:port/database, for messages."""
        parts = urlsplit(self.dsn)
        query = parse_qs(parts.query)
        host = parts.hostname or query.get("host", ["localhost"])[0]
        port = parts.port or query.get("port", ["5432"])[0]
        database = parts.path.removeprefix("/") or parts.username or "?"
        return f"{host}:{port}/{database}"


class MigrationSettings(Section):
    """The stage asked for (none: the control state stays as it is) and the defaults of reads.

    `request_window`: seconds for which a commit that is repeated with its request_id is done
    once; the intent documents in Firestore and the rows in PostgreSQL are kept as long.
    `constraints`: what a column or a constraint refuses is kept beside the table, or (enforce)
    an error in stage complete.
    `mirror`: an answer waits for the mirror's copy not at all (async), if it is quick
    (wait), or until it is there (required). `read_percent` None takes the stage's own.
    `fence`: what keeps a commit that a dead sidecar sent from being applied after its recopy: an
    intent document in the commit (one more write each), or the trust in `horizon`.
    `allow_pin`: callers may choose the store that answers a read (x-crossfade-store).
    `patience`: seconds that PostgreSQL has to take a commit's pending rows, before commits go
    past it. `slow_mirror`: they go past it when it is much slower than usual, too (around), or
    wait for it up to the patience (wait); with another `mirror` than async they always wait.
    `lease`: seconds for which a sidecar relies on what it read in Firestore's control document;
    a change of authority waits as long. `horizon`: seconds after which Firestore applies no
    commit any more that its sender has given up; the first copy waits as long.
    """

    stage: Stage | None = None
    mirror: Literal["async", "wait", "required"] = "async"
    mappings: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")] = "violet"
    constraints: Literal["keep", "enforce"] = "keep"
    read_percent: Percent | None = None
    shadow_rate: Rate = 0.01
    patience: Annotated[float, Field(ge=0.01, le=60, allow_inf_nan=False)] = 0.5
    slow_mirror: Literal["around", "wait"] = "around"
    fence: Literal["document", "horizon"] = "document"
    allow_pin: bool = False
    lease: Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False)] = 2.0
    horizon: Annotated[float, Field(ge=0.1, le=600, allow_inf_nan=False)] = 10.0
    request_window: Annotated[float, Field(ge=60, le=30 * 86_400, allow_inf_nan=False)] = 86_400.0

    @property
    def avoids_slow_mirror(self) -> bool:
        """Who asked for answers to wait for the mirror waits for a slow one."""
        return self.slow_mirror == "around" and self.mirror == "async"


def _field_path(text: str) -> str:
    try:
        parse_field_path(text, "field")
    except InvalidArgument as error:
        raise ValueError(str(error)) from None
    return text


def _collection_id(text: str) -> str:
    try:
        check_id(text, "collection", numeric=False)
    except InvalidArgument as error:
        raise ValueError(str(error)) from None
    if is_own(text):
        raise ValueError(f"{text} is Crossfade's own")
    return text


FieldName = Annotated[str, AfterValidator(_field_path)]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RuleSettings(Section):
    """A rule under which a difference does not count. `ignore`: at these fields and below
    them (`kinds`: only these kinds of difference). `tolerance`: numbers that differ by no more
    than `absolute` or the share `relative`, times by no more than `skew` seconds."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    fields: Annotated[tuple[FieldName, ...], Field(min_length=1)]
    kind: Literal["ignore", "tolerance"]
    kinds: tuple[Kind, ...] | None = None
    absolute: Bound | None = None
    relative: Rate | None = None
    skew: Bound | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "RuleSettings":
        bounded = [
            key for key in ("absolute", "relative", "skew") if getattr(self, key) is not None
        ]
        if self.kind == "ignore" and bounded:
            raise ValueError(f'{bounded[0]} belongs to kind = "tolerance"')
        if self.kind == "tolerance" and not bounded:
            raise ValueError("a tolerance needs absolute, relative or skew")
        if self.kind == "tolerance" and self.kinds is not None:
            raise ValueError('kinds belongs to kind = "ignore"')
        return self

    def rule(self) -> Rule:
        return Rule(
            self.name,
            field_paths(self.fields),
            None if self.kinds is None else frozenset(self.kinds),
            self.absolute,
            self.relative,
            self.skew,
        )


def field_paths(texts: Iterable[str]) -> tuple[FieldPath, ...]:
    return tuple(map(parse_field_path, texts))


class CollectionSettings(Section):
    """Reads of one collection and how they are compared; None takes the default of
    [migration]. `clear`: fields whose values samples of mismatches may show. `secret_ids`: the
    ids of its documents are secrets, also where the mapping does not say so."""

    read_percent: Percent | None = None
    shadow_rate: Rate | None = None
    salt: str | None = None
    secret_ids: bool = False
    clear: tuple[FieldName, ...] = ()
    rules: tuple[RuleSettings, ...] = ()

    @field_validator("rules")
    @classmethod
    def _named_once(cls, value: tuple[RuleSettings, ...]) -> tuple[RuleSettings, ...]:
        for name, count in Counter(rule.name for rule in value).items():
            if count > 1:
                raise ValueError(f'{count} rules bear the name "{name}"')
        return value

    @field_validator("salt")
    @classmethod
    def _short(cls, value: str | None) -> str | None:
        # The hash takes a key of 64 bytes; a longer salt would be cut without a word.
        if value is not None and len(value.encode()) > 64:
            raise ValueError("a salt has at most 64 bytes")
        return value


CollectionId = Annotated[str, AfterValidator(_collection_id)]
GroupName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]


class GroupSettings(Section):
    """A group of collections that is migrated for itself: their ids, wherever they lie, and the
    stage asked for, as that of [migration] is for all other collections."""

    collections: Annotated[tuple[CollectionId, ...], Field(min_length=1, max_length=1000)]
    stage: Stage | None = None


class ShadowSettings(Section):
    """Comparing, and its bounds. `queue` is a number of reads, `memory_mb` what they hold,
    `age` seconds for which one may wait, `rate` comparisons in a second; above `lag` seconds of
    lateness of the event loop nothing is compared. `behind_bound`: seconds a mirror may lag
    unremarked.

    `on_mismatch`: count it, or (test suites) raise it to the caller, who waits for it.
    `daily_reads`: billed reads of Firestore that comparing may cost in a day (UTC), all sidecars
    together; none: without a limit.

    `repairs_in_a_row` of one document, then it is only reported. `samples` of mismatches are
    kept of each collection; `hash_key` is the key of the hashes that stand for values in
    them: without one, each process has its own.
    """

    queue: Count = 1000
    memory_mb: Count = 64
    age: Seconds = 10.0
    rate: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 1000.0
    lag: Seconds = 0.1
    workers: Lanes = 2
    behind_bound: Seconds = 5.0
    on_mismatch: Literal["count", "raise"] = "count"
    repair: bool = True
    repairs_in_a_row: Count = 5
    daily_reads: Annotated[int, Field(ge=1, le=10**12)] | None = None
    samples: Count = 200
    hash_key: SecretStr | None = None

    @field_validator("hash_key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not 16 <= len(value.get_secret_value().encode()) <= 64:
            raise ValueError("a key has 16 to 64 bytes")
        return value


class RampSettings(Section):
    """What the checks of a change of stage, a ramp and the guard judge by: `max_mismatch` and
    `max_error_delta` are shares, `max_p99_ratio` is PostgreSQL's over Firestore's, `min_samples`
    reads and comparisons are needed, and figures count with a `confidence` in their bounds. A
    validation counts for `certificate_age` seconds.

    `guard`: watches the last `window` seconds also outside a ramp, and takes the reads of a
    collection away from PostgreSQL when a figure fails.
    """

    guard: bool = False
    window: Annotated[float, Field(ge=5, le=3600, allow_inf_nan=False)] = 60.0
    max_mismatch: Rate = 0.0001
    max_error_delta: Rate = 0.001
    max_p99_ratio: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.5
    min_samples: Count = 1000
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    certificate_age: Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)] = 86_400.0

    def limits(self) -> Limits:
        return Limits(
            self.max_mismatch,
            self.max_error_delta,
            self.max_p99_ratio,
            self.min_samples,
            self.confidence,
        )


class RecopySettings(Section):
    """How pending paths are repaired: every `interval`, `batch` at a time, under `lease`.

    `prune_interval`: seconds between two looks for tombstones and rows that nothing needs.
    """

    interval: Seconds = 0.2
    batch: Count = 100
    lease: Seconds = 10.0
    attempts: Count = 10
    prune_interval: Seconds = 60.0


class FollowerSettings(Section):
    """Whether Firestore's change stream is followed, for writers that use no sidecar yet.

    `collections` by id, wherever they lie; none: all that are mapped. `settle`: seconds after
    which a change is compared with the mirror.
    """

    enabled: bool = False
    collections: tuple[str, ...] = ()
    settle: Seconds = 1.0


class TelemetrySettings(Section):
    """Where metrics and traces go (OTLP over gRPC); without an endpoint, nowhere.

    `sample_ratio`: the share of the calls that is traced, of those whose caller says nothing of
    it. Those that fail, take `slow` seconds or find the stores to differ are, in any case.
    `push_metrics`: False where Prometheus fetches them, and the endpoint is for traces alone.
    """

    otlp_endpoint: str | None = None
    push_metrics: bool = True
    sample_ratio: Rate = 0.01
    slow: Seconds = 1.0
    service_name: Annotated[str, Field(min_length=1)] = "crossfade"

    @field_validator("otlp_endpoint")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError('write it as "http://HOST:4317" (https for TLS)')
        return value


class AdminSettings(Section):
    """The admin API and the dashboard, over HTTP; without a port they are not served.

    `hosts`: names that browsers and Prometheus reach it by, beside localhost and addresses.
    `insecure`: open without tokens also where others than this machine reach it.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    hosts: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...] = ()
    insecure: bool = False


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Settings(Section):
    """Everything Crossfade can be told. Frozen; made by `load`, or from arguments alone."""

    server: ServerSettings = ServerSettings()
    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    firestore: FirestoreSettings = FirestoreSettings()
    postgresql: PostgresqlSettings = PostgresqlSettings()
    migration: MigrationSettings = MigrationSettings()
    groups: dict[GroupName, GroupSettings] = {}
    collections: dict[str, CollectionSettings] = {}
    shadow: ShadowSettings = ShadowSettings()
    ramp: RampSettings = RampSettings()
    recopy: RecopySettings = RecopySettings()
    follower: FollowerSettings = FollowerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    admin: AdminSettings = AdminSettings()
    log: LogSettings = LogSettings()

    @property
    def certified(self) -> bool:
        """Whether callers show who they are: by a token or a certificate."""
        return (
            self.access.tokens is not None
            or self.access.tokens_file is not None
            or self.server.client_ca is not None
        )

    @field_validator("groups")
    @classmethod
    def _of_one_group(cls, value: dict[str, GroupSettings]) -> dict[str, GroupSettings]:
        if DEFAULT in value:
            raise ValueError(
                f"{DEFAULT} has the collections that no other has, and its stage is that of "
                f"[migration]"
            )
        for name, count in Counter(c for each in value.values() for c in each.collections).items():
            if count > 1:
                raise ValueError(f"collection {name} is named {count} times; it is of one group")
        return value

    def requested_stage(self) -> Stage | None:
        """The stage that the file or the seed variables ask for; None: no request."""
        return self.migration.stage

    def requested_stages(self) -> dict[str, Stage]:
        """The same by group; without a request, nothing."""
        asked = {DEFAULT: self.requested_stage()}
        asked |= {name: group.stage for name, group in self.groups.items()}
        return {name: stage for name, stage in asked.items() if stage is not None}

    def grouping(self) -> Groups:
        return Groups({name: group.collections for name, group in self.groups.items()})

    def redacted(self) -> dict[str, Any]:
        """Plain data for display, in the order of the sections; never a password."""
        shown: dict[str, Any] = self.model_dump(mode="json")
        if self.postgresql.url is not None:
            shown["postgresql"]["url"] = _redacted_url(self.postgresql.url.get_secret_value())
        if self.telemetry.otlp_endpoint is not None:
            shown["telemetry"]["otlp_endpoint"] = _redacted_url(self.telemetry.otlp_endpoint)
        return shown


# --- URLs --------------------------------------------------------------------------------------


def _check_url(text: str) -> None:
    """Raises ValueError, with a text that quotes nothing but the scheme."""
    scheme, separator, _ = text.partition("://")
    if scheme not in {"postgresql", "postgresql+asyncpg"}:
        found = f'"{scheme}://"' if separator and scheme.isidentifier() else "something else"
        raise ValueError(f"the URL begins with {found}; write it as {URL_FORM}")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        parts = None
    # A "/" in a password ends the host part early, and the rest would be shown as a path.
    if parts is None or "@" in parts.path + parts.query or parts.fragment:
        raise ValueError(
            f"the URL cannot be read; write it as {URL_FORM}, "
            f'with "/", "?", "#" and "@" of the password percent-encoded'
        )


def _redacted_url(text: str) -> str:
    parts = urlsplit(text)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    netloc = f"{name}{colon}{HIDDEN if password else ''}{at}{host}"
    query = "&".join(
        f"{key}={HIDDEN}" if "pass" in key.lower() else f"{key}={value}"
        for key, value in (item.partition("=")[::2] for item in parts.query.split("&") if item)
    )
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()
