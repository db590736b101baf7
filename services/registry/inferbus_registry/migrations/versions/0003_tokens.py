"""Limits of tokens."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE registry.keys ADD COLUMN tokens_per_min integer NOT NULL DEFAULT 0")


def downgrade() -> None:
    raise NotImplementedError("the events of the registry are kept; restore a backup instead")
