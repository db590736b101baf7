"""Models, versions, aliases, pools, their events, the outbox."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    "CREATE SEQUENCE registry.generation AS bigint",
    """
    CREATE TABLE registry.models (
        model text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT models_pkey PRIMARY KEY (model)
    )
    """,
    """
    CREATE TABLE registry.versions (
        model text NOT NULL,
        version integer NOT NULL,
        version_sha256 text NOT NULL,
        manifest bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT versions_pkey PRIMARY KEY (model, version),
        CONSTRAINT versions_model_fkey FOREIGN KEY (model) REFERENCES registry.models (model),
        CONSTRAINT versions_model_version_sha256_key UNIQUE (model, version_sha256),
        CONSTRAINT versions_version_check CHECK (version > 0)
    )
    """,
    """
    CREATE TABLE registry.aliases (
        model text NOT NULL,
        alias text NOT NULL,
        wanted integer NOT NULL,
        serving integer NOT NULL DEFAULT 0,
        CONSTRAINT aliases_pkey PRIMARY KEY (model, alias),
        CONSTRAINT aliases_model_wanted_fkey FOREIGN KEY (model, wanted)
            REFERENCES registry.versions (model, version)
    )
    """,
    """
    CREATE TABLE registry.pools (
        model text NOT NULL,
        pool text NOT NULL,
        versions integer[] NOT NULL,
        min_ready integer NOT NULL,
        CONSTRAINT pools_pkey PRIMARY KEY (model, pool),
        CONSTRAINT pools_model_fkey FOREIGN KEY (model) REFERENCES registry.models (model)
    )
    """,
    """
    CREATE TABLE registry.events (
        id bigint GENERATED ALWAYS AS IDENTITY,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        who text NOT NULL,
        what text NOT NULL,
        model text NOT NULL,
        before jsonb,
        after jsonb,
        generation bigint NOT NULL,
        request_id text NOT NULL,
        CONSTRAINT events_pkey PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX events_model_id_idx ON registry.events (model, id)",
    """
    CREATE FUNCTION registry.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'registry.events is append-only';
    END
    $$
    """,
    """
    CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON registry.events
        FOR EACH STATEMENT EXECUTE FUNCTION registry.refuse_change()
    """,
    """
    CREATE TABLE registry.state (
        topic text NOT NULL,
        key text NOT NULL,
        generation bigint NOT NULL,
        message bytea NOT NULL,
        outbox_id bigint NOT NULL,
        CONSTRAINT state_pkey PRIMARY KEY (topic, key)
    )
    """,
    """
    CREATE TABLE registry.outbox (
        id bigint GENERATED ALWAYS AS IDENTITY,
        topic text NOT NULL,
        key text NOT NULL,
        message bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT outbox_pkey PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE registry.outbox_cursor (
        one integer NOT NULL,
        published_id bigint NOT NULL,
        CONSTRAINT outbox_cursor_pkey PRIMARY KEY (one),
        CONSTRAINT outbox_cursor_one_check CHECK (one = 1)
    )
    """,
    "INSERT INTO registry.outbox_cursor (one, published_id) VALUES (1, 0)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the events of the registry are kept; restore a backup instead")
