"""Crossfade's own tables and the generic table of documents."""

from alembic import op

revision = "crossfade_0001"
down_revision = None
branch_labels = ("crossfade",)
depends_on = None

STATEMENTS = (
    "CREATE SCHEMA IF NOT EXISTS crossfade",
    """CREATE TABLE IF NOT EXISTS crossfade.applied (
    name TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (name)
)""",
    """CREATE TABLE IF NOT EXISTS crossfade.control (
    grp TEXT NOT NULL,
    stage TEXT NOT NULL,
    authority TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    barrier JSONB,
    requested TEXT,
    traffic JSONB DEFAULT '{}'::jsonb NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (grp)
)""",
    """CREATE TABLE IF NOT EXISTS crossfade.documents (
    path TEXT COLLATE "C" NOT NULL,
    collection_path TEXT COLLATE "C" NOT NULL,
    collection_id TEXT COLLATE "C" NOT NULL,
    fields JSONB NOT NULL,
    epoch BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    PRIMARY KEY (path)
)""",
    """CREATE INDEX IF NOT EXISTS documents_collection_id ON crossfade.documents (collection_id,
        path)""",
    """CREATE INDEX IF NOT EXISTS documents_collection_path ON crossfade.documents
        (collection_path, path)""",
    """CREATE INDEX IF NOT EXISTS documents_odd ON crossfade.documents (collection_path) WHERE
        fields ? '$m'""",
    """CREATE TABLE IF NOT EXISTS crossfade.pending (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    intent TEXT NOT NULL,
    path TEXT COLLATE "C" NOT NULL,
    collection_path TEXT COLLATE "C" NOT NULL,
    collection_id TEXT COLLATE "C" NOT NULL,
    epoch BIGINT NOT NULL,
    claim TEXT,
    lease_until TIMESTAMP WITH TIME ZONE NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    failure TEXT,
    dead BOOLEAN DEFAULT false NOT NULL,
    inserted_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id)
)""",
    "CREATE INDEX IF NOT EXISTS pending_claim ON crossfade.pending (claim)",
    "CREATE INDEX IF NOT EXISTS pending_collection_id ON crossfade.pending (collection_id)",
    "CREATE INDEX IF NOT EXISTS pending_collection_path ON crossfade.pending (collection_path)",
    "CREATE UNIQUE INDEX IF NOT EXISTS pending_intent_path ON crossfade.pending (intent, path)",
    "CREATE INDEX IF NOT EXISTS pending_path ON crossfade.pending (path)",
    """CREATE TABLE IF NOT EXISTS crossfade.requests (
    intent TEXT NOT NULL,
    commit_time BIGINT NOT NULL,
    update_times BIGINT[] NOT NULL,
    inserted_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (intent)
)""",
    """CREATE TABLE IF NOT EXISTS crossfade.versions (
    path TEXT COLLATE "C" NOT NULL,
    epoch BIGINT NOT NULL,
    time BIGINT NOT NULL,
    live BOOLEAN NOT NULL,
    peer_time BIGINT,
    peer_epoch BIGINT,
    peer_version BIGINT,
    seen BIGINT,
    PRIMARY KEY (path)
)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
