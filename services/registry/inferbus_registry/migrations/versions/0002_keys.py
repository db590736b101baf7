"""API keys by their digests, and events that are about a key instead of a model."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE registry.keys (
        id text NOT NULL,
        name text NOT NULL,
        tenant text NOT NULL,
        scopes text[] NOT NULL,
        sha256 bytea NOT NULL,
        requests_per_s double precision NOT NULL DEFAULT 0,
        burst integer NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL,
        created_by text NOT NULL,
        expires_at timestamptz,
        revoked_at timestamptz,
        replaced_by text,
        CONSTRAINT keys_pkey PRIMARY KEY (id),
        CONSTRAINT keys_sha256_check CHECK (length(sha256) = 32)
    )
    """,
    "CREATE INDEX keys_tenant_id_idx ON registry.keys (tenant, id)",
    "ALTER TABLE registry.events ALTER COLUMN model DROP NOT NULL",
    "ALTER TABLE registry.events ADD COLUMN key_id text",
    """
    ALTER TABLE registry.events ADD CONSTRAINT events_subject_check
        CHECK ((model IS NULL) <> (key_id IS NULL))
    """,
    "CREATE INDEX events_key_id_id_idx ON registry.events (key_id, id)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the events of the registry are kept; restore a backup instead")
