"""The proxy server's tables. Declarations only.

Keys are texts, as ids are in Firestore (`_init`, `sample_task_001`). Fields that
documents commonly have are columns; the rest of a document, and every value that is not
of its column's type, is in `remainder`. An enum has the words that some writer of the
proxy server stores; free text is what the others are.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    LargeBinary,
    MetaData,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from crossfade.mapping import (
    derived_table,
    document_table,
    nested_table,
    reference_column,
    text_column,
    unique_column,
    word_column,
)

# A schema of its own: violet's earlier tables have the same names and other columns.
metadata = MetaData(schema="violet")

TASK_STATUSES = (
    *("pending", "assigned", "in_progress", "completed", "approved", "failed", "cancelled"),
    # Outside the proxy server's own enum, and stored all the same.
    *("processing", "ready_for_evaluation", "done", "distributed"),
)
OPEN_STATUSES = ("pending", "assigned", "in_progress", "processing", "distributed")
PRIORITIES = ("low", "normal", "high", "urgent")
ROLES = ("client", "miner", "validator", "admin")
STORAGE = ("local", "firestore", "cloud_storage", "r2", "database", "database_chunked")


def _time(name: str) -> Column[Any]:
    return Column(name, DateTime(timezone=True))


def _int(name: str, field: str | None = None) -> Column[int]:
    return Column(name, BigInteger, info={} if field is None else {"field": field})


def _double(name: str) -> Column[float]:
    return Column(name, Double)


def _bool(name: str) -> Column[bool]:
    return Column(name, Boolean)


def _json(name: str) -> Column[Any]:
    return Column(name, JSONB)


def _task_columns() -> list[Column[Any]]:
    """What a task and its archived copy have in common."""
    columns: list[Column[Any]] = [
        text_column("task_id"),
        text_column("task_type"),
        word_column("status", *TASK_STATUSES),
        word_column("priority", *PRIORITIES),
        _time("created_at"),
        _time("updated_at"),
        _json("input_file"),
        _json("input_text"),
        text_column("source_language"),
        text_column("target_language"),
        text_column("model_id"),
        text_column("speaker_wav_url"),
        _int("required_miner_count"),
        _int("min_miner_count"),
        _int("max_miner_count"),
        _int("actual_miner_count"),
        Column("assigned_miners", ARRAY(BigInteger)),
        _json("task_assignments"),
        _time("distributed_at"),
        # an array of maps, or (in the older model) a map
        _json("miner_responses"),
        _int("response_count"),
        _time("last_response_at"),
        _json("best_response"),
        _time("completed_at"),
        _time("all_miners_completed_at"),
        _int("estimated_completion_time"),
        text_column("callback_url"),
        _json("user_metadata"),
        _int("evaluated_by"),
        _time("evaluated_at"),
        _json("evaluation_data"),
    ]
    return columns


files = document_table(
    "files",
    metadata,
    text_column("file_id"),
    # Five shapes, by the era of the writer: a field has the column of its own name.
    text_column("file_name"),
    text_column("original_filename"),
    text_column("safe_filename"),
    text_column("content_type"),
    text_column("file_type"),
    _int("size"),
    _int("file_size"),
    text_column("checksum"),
    text_column("file_hash"),
    word_column("storage_location", *STORAGE),
    text_column("file_path"),
    text_column("local_path"),
    text_column("cloud_path"),
    text_column("file_url"),
    text_column("public_url"),
    text_column("bucket_name"),
    text_column("r2_bucket"),
    text_column("r2_key"),
    _bool("stored_locally"),
    _bool("stored_in_cloud"),
    # base64 of small files
    text_column("content"),
    text_column("status"),
    _time("uploaded_at"),
    _time("created_at"),
    _time("updated_at"),
    Index("files_file_type", "file_type"),
    Index("files_original_filename", "original_filename"),
    Index("files_uploaded_at", "uploaded_at"),
    Index("files_stored_in_cloud", "stored_in_cloud"),
)

voices = document_table(
    "voices",
    metadata,
    text_column("voice_name"),
    text_column("display_name"),
    text_column("language"),
    reference_column("file_id", files),
    text_column("r2_key"),
    text_column("public_url"),
    text_column("file_name"),
    _int("file_size"),
    text_column("file_type"),
    _time("created_at"),
    _time("updated_at"),
)

users = document_table(
    "users",
    metadata,
    text_column("user_id"),
    unique_column("email"),
    word_column("role", *ROLES),
    unique_column("api_key"),
    _time("api_key_created_at"),
    _time("created_at"),
    _time("updated_at"),
    _bool("is_active"),
    _time("last_login"),
    text_column("hotkey"),
    text_column("coldkey_address"),
    _int("uid"),
    text_column("network"),
    _int("netuid"),
    Index("users_role", "role", "uid"),
    Index("users_hotkey", "hotkey", "coldkey_address"),
    Index("users_is_active", "is_active"),
)

tasks = document_table(
    "tasks",
    metadata,
    *_task_columns(),
    reference_column("input_file_id", files),
    reference_column("user_id", users),
    reference_column("voice_name", voices),
    Index("tasks_status", "status", "created_at"),
    # The first so many of a status: a limit is in the order of ids.
    Index("tasks_status_id", "status", "id"),
    Index("tasks_task_type", "task_type", "status"),
    Index("tasks_created_at", "created_at"),
    Index("tasks_user_id", "user_id", "created_at"),
    Index("tasks_assigned_miners", "assigned_miners", postgresql_using="gin"),
    # A miner's poll asks for open tasks: among all that it was ever given it would read longer
    # with every month.
    Index(
        "tasks_open_miners",
        "assigned_miners",
        postgresql_using="gin",
        postgresql_where=text(f"status in {OPEN_STATUSES}"),
    ),
)

archived_tasks = document_table(
    "archived_tasks",
    metadata,
    *_task_columns(),
    # What an archived task refers to may be long gone.
    text_column("input_file_id"),
    text_column("user_id"),
    text_column("voice_name"),
    Index("archived_tasks_created_at", "created_at"),
)

text_content = document_table(
    "text_content",
    metadata,
    text_column("content_id"),
    text_column("text"),
    text_column("source_language"),
    text_column("detected_language"),
    _double("language_confidence"),
    _int("text_length"),
    _int("word_count"),
    _json("metadata"),
    _time("created_at"),
    _time("updated_at"),
)

miners = document_table(
    "miners",
    metadata,
    _int("uid"),
    text_column("hotkey"),
    text_column("ip"),
    _int("port"),
    text_column("external_ip"),
    _int("external_port"),
    _bool("is_serving"),
    _double("stake"),
    _double("performance_score"),
    _double("current_load"),
    _double("max_capacity"),
    text_column("task_type_specialization"),
    _time("registered_at"),
    _time("last_seen"),
    _time("updated_at"),
    Index("miners_is_serving", "is_serving", "task_type_specialization"),
)

miner_status = document_table(
    "miner_status",
    metadata,
    _int("uid"),
    text_column("hotkey"),
    text_column("ip"),
    _int("port"),
    text_column("external_ip"),
    _int("external_port"),
    _bool("is_serving"),
    _double("stake"),
    _double("performance_score"),
    _double("current_load"),
    _double("max_capacity"),
    # a map of statistics from every validator; words and lists are misfits or fit as they come
    _json("task_type_specialization"),
    _double("availability_score"),
    _int("assigned_task_count"),
    _time("last_seen"),
    _time("last_updated"),
    _time("updated_at"),
    _json("reported_by_validators"),
    _int("reported_by_validator"),
    _int("last_reported_by_validator"),
    # the field "epoch"; the column of that name is the version's
    _int("reported_epoch", field="epoch"),
    _int("validator_reports_count"),
    Index("miner_status_is_serving", "is_serving"),
)

task_assignments = document_table(
    "task_assignments",
    metadata,
    text_column("assignment_id"),
    reference_column("task_id", tasks),
    _int("miner_uid"),
    text_column("status"),
    _time("assigned_at"),
    _time("completed_at"),
    _double("processing_time"),
    _double("accuracy_score"),
    _double("speed_score"),
    Index("task_assignments_miner_uid", "miner_uid", "status"),
)

validators = document_table(
    "validators",
    metadata,
    _int("validator_uid"),
    # the key of those that register
    _int("uid"),
    text_column("status"),
    _int("last_epoch"),
    _int("total_evaluations"),
    _double("average_evaluation_time"),
    _time("last_seen"),
    _time("last_active"),
    _time("registered_at"),
    _time("created_at"),
    _time("updated_at"),
    Index("validators_status", "status"),
)

validator_reports = document_table(
    "validator_reports",
    metadata,
    _int("validator_uid"),
    _int("miner_uid"),
    _time("timestamp"),
    _int("reported_epoch", field="epoch"),
    _json("miner_status"),
    _double("confidence_score"),
    Index("validator_reports_miner_uid", "miner_uid", "timestamp"),
    Index("validator_reports_timestamp", "timestamp"),
)

miner_consensus = document_table(
    "miner_consensus",
    metadata,
    _int("miner_uid"),
    _json("consensus_status"),
    _time("last_consensus"),
    _int("validator_reports_count"),
    _double("consensus_confidence"),
)

evaluations = document_table(
    "evaluations",
    metadata,
    reference_column("task_id", tasks),
    _int("validator_uid"),
    text_column("task_type"),
    _json("evaluation_data"),
    _json("miner_rewards"),
    _double("overall_score"),
    _time("evaluated_at"),
    Index("evaluations_validator_uid", "validator_uid", "evaluated_at"),
)

final_results = document_table(
    "final_results",
    metadata,
    reference_column("task_id", tasks),
    text_column("status"),
    _json("final_response"),
    _double("validator_accuracy_score"),
    _json("miner_rewards"),
    _time("completed_at"),
)

system_metrics = document_table(
    "system_metrics",
    metadata,
    text_column("metric_name"),
    _double("metric_value"),
    _json("metric_data"),
    _time("recorded_at"),
    Index("system_metrics_metric_name", "metric_name", "recorded_at"),
)

task_metrics = document_table(
    "task_metrics",
    metadata,
    _int("count"),
    _json("by_type"),
    _time("recorded_at"),
)

audio_chunks = nested_table(
    "audio_chunks",
    metadata,
    tasks,
    # What chunks hold is not known: only what deletes them is. These are the likely ones.
    _int("index"),
    Column("data", LargeBinary),
    _int("size"),
    _time("created_at"),
)

miner_responses = derived_table("miner_responses", metadata, tasks)
user_emails = derived_table("user_emails", metadata, users)
api_keys = derived_table("api_keys", metadata, users)
