"""Which groups of collections the control state is for."""

from alembic import op

revision = "crossfade_0006"
down_revision = "crossfade_0005"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE crossfade.control ADD COLUMN IF NOT EXISTS groups TEXT DEFAULT '' NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
