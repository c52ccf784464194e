"""The tables of violet's busiest collections. Declarations only.

Fields that are commonly there have columns; the rest of a document, and every value
that is not of its column's type, is in `remainder`. All other collections, also
`user_emails` and `api_keys`, are generic documents.
"""

from sqlalchemy import ARRAY, BigInteger, Boolean, Column, DateTime, Double, Index, MetaData, Table
from sqlalchemy.dialects.postgresql import JSONB

from crossfade.mapping import (
    CollectionMapping,
    Mappings,
    document_columns,
    misfit_index,
    text_column,
)

# A schema of its own: violet's earlier tables have the same names and other columns.
metadata = MetaData(schema="violet")


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


tasks = Table(
    "tasks",
    metadata,
    *document_columns(),
    text_column("task_id"),
    text_column("task_type"),
    text_column("status"),
    text_column("priority"),
    _time("created_at"),
    _time("updated_at"),
    Column("input_file", JSONB),
    Column("input_text", JSONB),
    text_column("input_file_id"),
    text_column("source_language"),
    text_column("target_language"),
    text_column("model_id"),
    text_column("voice_name"),
    text_column("speaker_wav_url"),
    Column("required_miner_count", BigInteger),
    Column("min_miner_count", BigInteger),
    Column("max_miner_count", BigInteger),
    Column("actual_miner_count", BigInteger),
    Column("assigned_miners", ARRAY(BigInteger)),
    Column("task_assignments", JSONB),
    _time("distributed_at"),
    # an array of maps, or (in the older model) a map
    Column("miner_responses", JSONB),
    Column("response_count", BigInteger),
    _time("last_response_at"),
    Column("best_response", JSONB),
    _time("completed_at"),
    _time("all_miners_completed_at"),
    Column("estimated_completion_time", BigInteger),
    text_column("callback_url"),
    Column("user_metadata", JSONB),
    text_column("user_id"),
    Column("evaluated_by", BigInteger),
    _time("evaluated_at"),
    Column("evaluation_data", JSONB),
    Index("tasks_status", "status", "created_at"),
    Index("tasks_task_type", "task_type", "status"),
    Index("tasks_created_at", "created_at"),
    Index("tasks_user_id", "user_id", "created_at"),
    Index("tasks_assigned_miners", "assigned_miners", postgresql_using="gin"),
)
misfit_index(tasks)

users = Table(
    "users",
    metadata,
    *document_columns(),
    text_column("user_id"),
    text_column("email"),
    text_column("role"),
    text_column("api_key"),
    _time("api_key_created_at"),
    _time("created_at"),
    _time("updated_at"),
    Column("is_active", Boolean),
    _time("last_login"),
    text_column("hotkey"),
    text_column("coldkey_address"),
    Column("uid", BigInteger),
    text_column("network"),
    Column("netuid", BigInteger),
    Index("users_email", "email"),
    Index("users_api_key", "api_key"),
    Index("users_role", "role", "uid"),
)
misfit_index(users)

miner_status = Table(
    "miner_status",
    metadata,
    *document_columns(),
    Column("uid", BigInteger),
    text_column("hotkey"),
    text_column("ip"),
    Column("port", BigInteger),
    text_column("external_ip"),
    Column("external_port", BigInteger),
    Column("is_serving", Boolean),
    Column("stake", Double),
    Column("performance_score", Double),
    Column("current_load", Double),
    Column("max_capacity", Double),
    # a map of statistics from every validator; words and lists are misfits or fit as they come
    Column("task_type_specialization", JSONB),
    Column("availability_score", Double),
    Column("assigned_task_count", BigInteger),
    _time("last_seen"),
    _time("last_updated"),
    _time("updated_at"),
    Column("reported_by_validators", JSONB),
    Column("reported_by_validator", BigInteger),
    Column("last_reported_by_validator", BigInteger),
    # the field "epoch"; the column of that name is the version's
    Column("reported_epoch", BigInteger, info={"field": "epoch"}),
    Column("validator_reports_count", BigInteger),
    Index("miner_status_is_serving", "is_serving"),
)
misfit_index(miner_status)

MAPPINGS = Mappings(CollectionMapping(table.name, table) for table in (tasks, users, miner_status))
