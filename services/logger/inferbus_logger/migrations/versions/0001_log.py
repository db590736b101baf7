"""The prediction log: rows, offsets, batches, quarantine."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE log.predictions (
        request_id uuid NOT NULL,
        k_partition int NOT NULL,
        k_offset bigint NOT NULL,
        ts timestamptz NOT NULL,
        tenant text NOT NULL,
        model text NOT NULL,
        version bigint NOT NULL,
        artifact_sha256 bytea,
        experiment text,
        variant text,
        outcome text NOT NULL,
        served_by text NOT NULL,
        degraded boolean NOT NULL,
        attempt bigint NOT NULL,
        latency_us bigint NOT NULL,
        queue_us bigint NOT NULL,
        batch_size bigint NOT NULL,
        input_sha256 bytea,
        output_sha256 bytea,
        input bytea,
        output bytea,
        policy_version bigint,
        client_request_id text,
        batch_id bytea,
        batch_row bigint NOT NULL,
        idem_key text,
        principal text,
        engine_us bigint NOT NULL,
        error_code text,
        error_message text,
        k_era int NOT NULL,
        PRIMARY KEY (request_id)
    ) PARTITION BY RANGE (request_id)
    """,
    "CREATE INDEX predictions_place ON log.predictions (k_partition, k_offset)",
    # Digests, tensors and compressed blobs do not shrink; trying costs CPU on every row.
    "ALTER TABLE log.predictions ALTER COLUMN input SET STORAGE EXTERNAL",
    "ALTER TABLE log.predictions ALTER COLUMN output SET STORAGE EXTERNAL",
    "CREATE TABLE log.predictions_default (LIKE log.predictions INCLUDING ALL)",
    "ALTER TABLE log.predictions ATTACH PARTITION log.predictions_default DEFAULT",
    """
    CREATE TABLE log.sink_offsets (
        topic text NOT NULL,
        topic_id bytea NOT NULL,
        part int NOT NULL,
        era int NOT NULL,
        start_offset bigint NOT NULL,
        next_offset bigint NOT NULL CHECK (next_offset >= start_offset),
        last_id bytea NOT NULL,
        chain bytea NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (topic, part)
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE log.log_batches (
        topic text NOT NULL,
        part int NOT NULL,
        era int NOT NULL,
        base_offset bigint NOT NULL,
        last_offset bigint NOT NULL,
        n_rows bigint NOT NULL,
        n_dups bigint NOT NULL,
        n_quarantined bigint NOT NULL,
        n_nonterminal bigint NOT NULL,
        kind text NOT NULL CHECK (kind IN ('data', 'control', 'gap')),
        sha256 bytea NOT NULL,
        prev bytea NOT NULL,
        written_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (topic, part, era, base_offset),
        CHECK (last_offset >= base_offset),
        CHECK (
            n_rows + n_dups + n_quarantined + n_nonterminal
            = CASE kind WHEN 'data' THEN last_offset - base_offset + 1 ELSE 0 END
        )
    )
    """,
    """
    CREATE TABLE log.predictions_quarantine (
        topic text NOT NULL,
        k_partition int NOT NULL,
        k_era int NOT NULL,
        k_offset bigint NOT NULL,
        ts timestamptz NOT NULL DEFAULT now(),
        has_row boolean NOT NULL,
        error text NOT NULL,
        raw bytea NOT NULL,
        PRIMARY KEY (topic, k_partition, k_era, k_offset)
    )
    """,
    # Days whose rows were taken out of log.predictions; see inferbus_logger.partitions.
    """
    CREATE TABLE log.retired_days (
        day date NOT NULL PRIMARY KEY,
        table_name text NOT NULL,
        retired_at timestamptz NOT NULL DEFAULT now()
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the log is never taken back; restore a backup instead")
