"""What the admin API takes and gives, as JSON. Replies have the fields of crossfade.v1's
messages, under the same names; docs/admin-api.md shows them in use."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

StageName = Literal["off", "dual_write", "shadow", "live", "ramp_down", "complete"]
Outcome = Literal["pass", "hold", "fail"]
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL has none in texts, and nothing is found by it."""
Path = Annotated[str, Field(max_length=7_000)]
Who = Annotated[
    str,
    Field(
        max_length=100,
        pattern=NO_NUL,
        description="Who asks, for the audit trail.",
        examples=["ada@example.org"],
    ),
]
Reason = Annotated[
    str,
    Field(max_length=500, description="Why, for the audit trail.", examples=["all checks pass"]),
]
CollectionName = Annotated[
    str,
    Field(
        max_length=1_500,
        pattern=NO_NUL,
        description="A collection id; empty: the defaults of those without a setting of their own.",
        examples=["tasks"],
    ),
]
GroupName = Annotated[
    str,
    Field(max_length=200, description="A group of collections; empty: default.", examples=[""]),
]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Wait = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _no_number(value: Any) -> Any:
    """Seconds or milliseconds, of which zone: a number would be guessed at."""
    if isinstance(value, str) and value.lstrip("+-").replace(".", "", 1).isdigit():
        raise ValueError("write it as 2026-03-01T12:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_no_number)]


class Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# --- replies -----------------------------------------------------------------------------------


class Alive(Reply):
    status: Literal["alive"] = "alive"


class Ready(Reply):
    status: Literal["ready", "not ready"]
    stage: StageName | None = None
    reason: str | None = Field(default=None, description="Why it is not ready.")


class Check(Reply):
    name: str = Field(examples=["verdicts"])
    outcome: Outcome
    reason: str = Field(examples=["29,956 comparisons, none bad"])


class Traffic(Reply):
    collection: CollectionName
    read_percent: float = Field(description="The share of reads that PostgreSQL answers, 0..100.")
    shadow_rate: float = Field(description="The share of reads that are compared, 0..1.")
    group: str = Field(description="The group that the collection, or the defaults, are of.")


class VerdictCount(Reply):
    collection: str
    verdict: str = Field(examples=["match"])
    count: int


class StoreLatency(Reply):
    """Since the sidecar's start."""

    collection: str
    operation: str = Field(examples=["get"])
    store: str = Field(examples=["postgresql"])
    role: str = Field(description="answered, shadow or mirror", examples=["answered"])
    count: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class GroupStatus(Reply):
    """Where a group of collections stands. Of the default one no collections are named: it has
    all that others do not have."""

    group: str = Field(examples=["default"])
    collections: list[str]
    stage: StageName
    authority: Literal["firestore", "postgresql", "none"]
    epoch: int
    pending: int
    dead_letters: int
    copied: bool
    rollback_loses: int


class Status(Reply):
    """Where the migration stands, and one group in particular. Counts are this sidecar's, since
    its start; the backlog (pending, dead letters, what a rollback loses) is that of all of them."""

    stage: StageName
    authority: Literal["firestore", "postgresql", "none"] = Field(
        description="The store whose commit decides; none while that changes."
    )
    epoch: int
    pending: int = Field(description="Documents whose mirror copy may be behind.")
    oldest_pending_seconds: float
    copied: bool = Field(description="The first copy has ended.")
    rollback_loses: int = Field(description="Writes that a rollback would lose now.")
    forced_rollback_loses: int = Field(description="The same without asking PostgreSQL.")
    traffic: list[Traffic]
    verdicts: list[VerdictCount]
    latencies: list[StoreLatency]
    shadow_dropped: int
    fallback_reads: int
    dead_letters: int
    reads_by_store: dict[str, int] = Field(examples=[{"firestore": 120, "postgresql": 80}])
    commits: int
    backlog_unknown: str = Field(description="Why the backlog is not known; empty: it is.")
    gate_open: bool
    effective_percent: dict[str, float] = Field(
        description="What PostgreSQL really answered in the last minute, by collection.",
        examples=[{"tasks": 48.7}],
    )
    settings_problem: str
    group: str = Field(description="The one that stage, authority, epoch and backlog are of.")
    groups: list[GroupStatus]


class StageRules(Reply):
    name: StageName
    authority: str
    mirrored: bool
    shadowed: bool


class Stages(Reply):
    stage: StageName
    next: StageName | None = Field(description="The stage after this one.")
    stages: list[StageRules]


class StageAnswer(Reply):
    """What the checks said, and where the migration stands now."""

    changed: bool
    passed: bool = Field(description="Every check passes.")
    checks: list[Check]
    status: Status


class TrafficAnswer(Reply):
    """`checks`: what the collection's figures since the sidecars' start say."""

    changed: bool
    before: Traffic
    after: Traffic
    checks: list[Check]


class TrafficList(Reply):
    traffic: list[Traffic]


class Ramp(Reply):
    collection: CollectionName
    status: Literal["running", "done", "stopped"]
    percent: float
    steps: list[float] = Field(examples=[[1, 5, 25, 50, 100]])
    bake_seconds: float
    setbacks: int
    since: datetime
    reason: str
    who: str
    checks: list[Check]


class Ramps(Reply):
    ramps: list[Ramp]


class Held(Reply):
    """What a store was seen to hold. Times are microseconds since 1970."""

    exists: bool
    epoch: int
    time: int
    peer_time: int


class Shown(Reply):
    """A value: its type, and a hash in the place of what the settings do not allow to be shown."""

    type: str = Field(examples=["string"])
    length: int | None = None
    hash: str = ""
    value: str = ""


class Difference(Reply):
    field: str = Field(examples=["status"])
    kind: str = Field(examples=["value"])
    authority: Shown | None = None
    mirror: Shown | None = None


class Sample(Reply):
    path: str
    at: datetime
    trace_id: str
    stage: str
    epoch: int
    authority: str
    answered: str
    firestore: Held | None = None
    postgresql: Held | None = None
    differences: list[Difference]


class Mismatch(Reply):
    collection: str
    signature: str
    verdict: str = Field(examples=["wrong"])
    operation: str
    path: str = Field(examples=["tasks/1"])
    fields: list[str]
    count: int
    first: Sample
    latest: Sample
    given_up: bool


class Mismatches(Reply):
    mismatches: list[Mismatch]


class Explanation(Reply):
    path: str
    verdict: str
    authority: str
    firestore: Held | None = None
    postgresql: Held | None = None
    differences: list[Difference]
    given_up: bool


class DeadLetter(Reply):
    path: str
    collection: str
    reason: str = Field(examples=["commit"])
    cause: str = Field(examples=["FAILED_PRECONDITION"])
    attempts: int
    since: datetime
    epoch: int
    foreign: bool
    commits: int


class DeadLetters(Reply):
    letters: list[DeadLetter]
    more: bool


class Retried(Reply):
    retried: int = Field(description="Documents that are tried again.")


class AuditEntry(Reply):
    at: datetime
    who: str
    action: str = Field(examples=["stage"])
    collection: str
    before: str
    after: str
    checks: list[Check]
    reason: str


class Audit(Reply):
    entries: list[AuditEntry]


class Misfits(Reply):
    """Values that a column does not take, and that were kept beside it, since the start."""

    collection: str
    field: str
    cause: str
    count: int


class Drift(Reply):
    """What is not as the plan has it."""

    pending: int | None = Field(description="None: PostgreSQL cannot be asked.")
    oldest_pending_seconds: float | None
    dead_letters: int | None
    foreign: int | None = Field(description="Dead letters that somebody else wrote in Firestore.")
    followed: dict[str, int] = Field(
        description="Documents written around the sidecars, by collection, since the start.",
        examples=[{"tasks": 2}],
    )
    follower_lag_seconds: float | None = Field(description="None: nothing is followed.")
    misfits: list[Misfits]
    schema_differences: list[str] | None = Field(
        description="Lines of `crossfade schema check`; None: it was not asked for."
    )


class Quantiles(Reply):
    count: int
    errors: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class LatencyPoint(Reply):
    """An interval: what the reads of each store took, the shadow reads with them."""

    at: datetime
    firestore: Quantiles
    postgresql: Quantiles


class LatencyHistory(Reply):
    collection: str
    interval_seconds: float
    points: list[LatencyPoint]


class Times(Reply):
    p50_ms: float
    p95_ms: float
    p99_ms: float


class DifferenceBucket(Reply):
    to_ms: float = Field(description="Differences up to this, and above the bucket before.")
    count: int


class LatencyComparison(Reply):
    """Reads that one store answered and the other was compared with, each timed from its call to
    its reply in the same process."""

    collection: str
    operation: str = Field(examples=["get"])
    count: int
    firestore: Times
    postgresql: Times
    difference: Times = Field(description="PostgreSQL minus Firestore, of each read.")
    slower: float = Field(description="The share of the reads for which PostgreSQL took longer.")
    buckets: list[DifferenceBucket]


class LatencyMoment(Reply):
    """What is absent was not timed then."""

    at: datetime
    count: int
    firestore: Times | None = None
    postgresql: Times | None = None
    difference: Times | None = None


class Latency(Reply):
    comparisons: list[LatencyComparison]
    moments: list[LatencyMoment] = Field(description="Oldest first; with step_seconds.")


class JobCounts(Reply):
    collection: str
    counts: dict[str, int] = Field(examples=[{"copied": 120}])


class Job(Reply):
    """Work over all documents, whoever does it."""

    id: int
    kind: str = Field(examples=["backfill"])
    group: str
    collections: list[str]
    state: str = Field(description="running, paused, cancelled, done or failed")
    reason: str
    who: str
    begun_at: datetime
    ended_at: datetime | None = None
    partitions: int
    partitions_done: int
    processes: int
    estimate: int | None = Field(default=None, description="Documents there were, about.")
    documents: int
    letters: int
    counts: list[JobCounts]
    rate: float | None = Field(default=None, description="Documents a second, at most.")
    pages: int = Field(description="That its processes have done, about.")
    retries: dict[str, int] = Field(
        description="Pages that were read again, by the store's error.",
        examples=[{"RESOURCE_EXHAUSTED": 3}],
    )
    waited: dict[str, float] = Field(
        description="Seconds that its processes waited, by what for: budget, store, pause.",
        examples=[{"budget": 3600.0}],
    )


class Jobs(Reply):
    jobs: list[Job]


class Compared(Reply):
    """What a validation counted of a collection: documents in both stores, and by verdict."""

    collection: str = Field(examples=["tasks"])
    compared: int
    firestore: int
    postgresql: int
    match: int
    wrong: int
    stale: int
    missing: int = Field(description="That the mirror lacks.")
    extra: int = Field(description="That only the mirror has.")
    behind: int = Field(description="That moved at every look.")
    ruled_out: int = Field(description="That differ only where a rule lets them.")
    skipped: int = Field(description="Older than what was asked for.")
    repaired: int = Field(description="Queued for a recopy.")


class Validation(Reply):
    """The report of a validation without the documents: `crossfade validate` wrote those down."""

    job: int
    group: str
    mode: str = Field(description="full, quick (by version) or since")
    collections: list[str] = Field(description="Root collections; none: everything.")
    equal: bool
    ended_at: datetime
    age_seconds: float
    seconds: float = Field(description="How long it took.")
    certificate: bool = Field(description="The change to stage live goes by it.")
    why_not: str = Field(description="Why it is no certificate.", examples=["found differences"])
    by_collection: list[Compared]
    breaches: int = Field(description="Documents that violate the integrity of the mapping.")
    moving: int = Field(description="Documents that never stood still.")
    dead_letters: int = Field(description="Those of them that never will.")


class Validations(Reply):
    validations: list[Validation]


class Config(Reply):
    """The settings in force, with what is secret hidden, and what was set over them."""

    settings: dict[str, Any]
    problem: str = Field(description="Why the file is refused; empty: it is not.")
    traffic: list[Traffic]


# --- requests ----------------------------------------------------------------------------------


class SetStage(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"stage": "live", "dry_run": True}, {"stage": "live", "reason": "ready"}]
        }
    )

    stage: StageName
    group: GroupName = ""
    dry_run: bool = Field(default=False, description="Only says what the checks say.")
    force: bool = Field(
        default=False, description="Goes on against the checks; the audit trail has them."
    )
    timeout_seconds: Wait = Field(default=10.0, description="For so long writes may be held back.")
    who: Who = ""
    reason: Reason = ""


class RollBack(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "p99 of tasks"}]})

    group: GroupName = ""
    force: bool = Field(
        default=False, description="Although PostgreSQL, in charge, does not answer."
    )
    timeout_seconds: Wait = 30.0
    who: Who = ""
    reason: Reason = "rollback"


class SetTraffic(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"collection": "tasks", "read_percent": 5},
                {"collection": "tasks", "reset": True},
            ]
        }
    )

    collection: CollectionName = ""
    group: GroupName = Field(
        default="", description="Without a collection: the group whose defaults are set."
    )
    read_percent: Percent | None = None
    shadow_rate: Share | None = None
    reset: bool = Field(default=False, description="The settings file is in force again.")
    dry_run: bool = Field(
        default=False, description="Only says what would change, and what speaks for it."
    )
    who: Who = ""
    reason: Reason = ""


class StartRamp(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"collection": "tasks", "steps": [1, 5, 25, 50, 100], "bake_seconds": 600}]
        }
    )

    collection: CollectionName = ""
    steps: list[Percent] = Field(
        [], max_length=100, description="Rising; default 1, 5, 25, 50, 100."
    )
    bake_seconds: Annotated[float, Field(gt=0, le=604_800, allow_inf_nan=False)] = 600.0
    max_mismatch: Limit | None = None
    max_error_delta: Limit | None = None
    max_p99_ratio: Limit | None = None
    min_samples: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    who: Who = ""


class StopRamp(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"collection": "tasks"}]})

    collection: CollectionName = ""
    all: bool = False
    who: Who = ""


class ControlJob(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "it is the evening"}]})

    who: Who = ""
    reason: Reason = ""


class RetryDeadLetters(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "tasks/1"}]})

    path: Path = ""
    collection: Path = ""
    all: bool = False
    overwrite_foreign: bool = Field(
        False, description="PostgreSQL's document replaces the foreign one that was found."
    )
