"""The samples of mismatches that shadow reads found."""

from alembic import op

revision = "crossfade_0003"
down_revision = "crossfade_0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS crossfade.mismatches (
    collection_id TEXT COLLATE "C" NOT NULL,
    signature TEXT NOT NULL,
    verdict TEXT NOT NULL,
    operation TEXT NOT NULL,
    path TEXT COLLATE "C" NOT NULL,
    fields TEXT[] NOT NULL,
    first JSONB NOT NULL,
    latest JSONB NOT NULL,
    count BIGINT NOT NULL,
    first_at BIGINT NOT NULL,
    latest_at BIGINT NOT NULL,
    given_up BOOLEAN NOT NULL,
    PRIMARY KEY (collection_id, signature)
)""",
    "CREATE INDEX IF NOT EXISTS mismatches_latest_at ON crossfade.mismatches (latest_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
