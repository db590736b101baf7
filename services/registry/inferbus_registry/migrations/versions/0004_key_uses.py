"""When keys were last used."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE registry.keys ADD COLUMN last_used_at timestamptz")


def downgrade() -> None:
    raise NotImplementedError("the events of the registry are kept; restore a backup instead")
