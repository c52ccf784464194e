"""The audit trail, the figures of all sidecars, and the ramps that are judged by them."""

from alembic import op

revision = "crossfade_0004"
down_revision = "crossfade_0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS crossfade.audit (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    collection_id TEXT COLLATE "C" NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    checks JSONB NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (id)
)""",
    """CREATE TABLE IF NOT EXISTS crossfade.figures (
    sidecar TEXT NOT NULL,
    collection_id TEXT COLLATE "C" NOT NULL,
    tally JSONB NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (sidecar, collection_id)
)""",
    """CREATE TABLE IF NOT EXISTS crossfade.ramps (
    collection_id TEXT COLLATE "C" NOT NULL,
    plan JSONB NOT NULL,
    state JSONB NOT NULL,
    baseline JSONB NOT NULL,
    reason TEXT NOT NULL,
    who TEXT NOT NULL,
    holder TEXT,
    lease_until TIMESTAMP WITH TIME ZONE,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (collection_id)
)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
