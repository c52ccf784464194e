"""Jobs that outlive their processes, their parts, and what they could not store."""

from alembic import op

revision = "crossfade_0007"
down_revision = "crossfade_0006"
branch_labels = None
depends_on = None

STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS crossfade.jobs (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL,
    grp TEXT NOT NULL,
    collections TEXT[] NOT NULL,
    options JSONB NOT NULL,
    state TEXT NOT NULL,
    reason TEXT DEFAULT '' NOT NULL,
    who TEXT NOT NULL,
    token BIGINT NOT NULL,
    authority TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    estimate BIGINT,
    outcome JSONB DEFAULT '{}'::jsonb NOT NULL,
    begun_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id)
)""",
    """CREATE UNIQUE INDEX IF NOT EXISTS jobs_unfinished ON crossfade.jobs (kind, grp)
    WHERE state in ('running', 'paused')""",
    """CREATE TABLE IF NOT EXISTS crossfade.job_partitions (
    job BIGINT NOT NULL,
    number INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    collection_id TEXT COLLATE "C" NOT NULL,
    begins TEXT COLLATE "C",
    ends TEXT COLLATE "C",
    position TEXT COLLATE "C",
    counts JSONB DEFAULT '{}'::jsonb NOT NULL,
    done BOOLEAN DEFAULT false NOT NULL,
    claim TEXT,
    holder TEXT,
    lease_until TIMESTAMP WITH TIME ZONE,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (job, number)
)""",
    """CREATE TABLE IF NOT EXISTS crossfade.job_letters (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    job BIGINT NOT NULL,
    path TEXT COLLATE "C" NOT NULL,
    cause TEXT NOT NULL,
    document BYTEA NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id)
)""",
    "CREATE INDEX IF NOT EXISTS job_letters_job ON crossfade.job_letters (job, id)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
