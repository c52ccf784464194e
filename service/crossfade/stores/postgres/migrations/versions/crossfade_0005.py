"""How much of each day's budget of Firestore reads is given away."""

from alembic import op

revision = "crossfade_0005"
down_revision = "crossfade_0004"
branch_labels = None
depends_on = None

STATEMENTS = (
    """CREATE TABLE IF NOT EXISTS crossfade.budget (
    day DATE NOT NULL,
    reserved BIGINT NOT NULL,
    PRIMARY KEY (day)
)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
