"""The way back's memory of its attempts, copies under way, and what pruning needs."""

from alembic import op

revision = "crossfade_0002"
down_revision = "crossfade_0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS crossfade.attempts (
    intent TEXT NOT NULL,
    path TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT,
    epoch BIGINT,
    time BIGINT,
    inserted_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (intent, path)
)""",
    "CREATE INDEX IF NOT EXISTS attempts_path ON crossfade.attempts (path)",
    """CREATE TABLE IF NOT EXISTS crossfade.pages (
    token BIGINT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (token)
)""",
    "CREATE INDEX IF NOT EXISTS versions_tombstones ON crossfade.versions (path) WHERE NOT live",
    """ALTER TABLE crossfade.control
    ADD COLUMN IF NOT EXISTS copy_after TIMESTAMP WITH TIME ZONE""",
    """ALTER TABLE crossfade.pending
    ADD COLUMN IF NOT EXISTS foreign_time BIGINT,
    ADD COLUMN IF NOT EXISTS overwrite BOOLEAN DEFAULT false NOT NULL""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
