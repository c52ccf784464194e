"""Indexes that find a value among those that no column took."""

from alembic import op

revision = "violet_0002"
down_revision = "violet_0001"
branch_labels = None
depends_on = None

TABLES = (
    *("archived_tasks", "audio_chunks", "evaluations", "files", "final_results"),
    *("miner_consensus", "miner_status", "miners", "system_metrics", "task_assignments"),
    *("task_metrics", "tasks", "text_content", "users", "validator_reports", "validators"),
    "voices",
)


def upgrade() -> None:
    for table in TABLES:
        op.execute(
            f"create index if not exists {table}_remainder on violet.{table} "
            "using gin (remainder jsonb_path_ops) where misfits is not null"
        )
