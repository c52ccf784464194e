"""What validations found, and their certificates."""

from alembic import op

revision = "crossfade_0008"
down_revision = "crossfade_0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS crossfade.findings (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    job BIGINT NOT NULL,
    collection_id TEXT COLLATE "C" NOT NULL,
    path TEXT COLLATE "C" NOT NULL,
    verdict TEXT NOT NULL,
    body JSONB NOT NULL,
    PRIMARY KEY (id)
)""",
    "CREATE INDEX IF NOT EXISTS findings_job ON crossfade.findings (job, verdict)",
    """CREATE TABLE IF NOT EXISTS crossfade.certificates (
    job BIGINT NOT NULL,
    grp TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    epoch BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    fingerprint TEXT NOT NULL,
    mode TEXT NOT NULL,
    collections TEXT[] NOT NULL,
    equal BOOLEAN NOT NULL,
    report JSON NOT NULL,
    PRIMARY KEY (job)
)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
