"""The tables of schema `registry`, as SQLAlchemy sees them; `migrations/` makes them."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "registry"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    },
)

_now = func.now()

generation = Sequence("generation", metadata=metadata, data_type=BigInteger)
"""Numbers every message of desired state; never restarts."""

models = Table(
    "models",
    metadata,
    Column("model", Text, primary_key=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
)

versions = Table(
    "versions",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("version_sha256", Text, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    ForeignKeyConstraint(["model"], ["registry.models.model"]),
    UniqueConstraint("model", "version_sha256"),
    CheckConstraint("version > 0", name="version"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("wanted", Integer, nullable=False),
    Column("serving", Integer, nullable=False, server_default="0"),
    ForeignKeyConstraint(
        ["model", "wanted"], ["registry.versions.model", "registry.versions.version"]
    ),
)

pools = Table(
    "pools",
    metadata,
    Column("model", Text, primary_key=True),
    Column("pool", Text, primary_key=True),
    Column("versions", ARRAY(Integer), nullable=False),
    Column("min_ready", Integer, nullable=False),
    ForeignKeyConstraint(["model"], ["registry.models.model"]),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("who", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("model", Text),
    Column("before", JSONB),
    Column("after", JSONB),
    Column("generation", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("key_id", Text),
    CheckConstraint("(model IS NULL) <> (key_id IS NULL)", name="subject"),
    Index(None, "model", "id"),
    Index(None, "key_id", "id"),
)
"""Append-only: a trigger refuses update, delete and truncate. Each is about a model or a key."""

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("requests_per_s", Double, nullable=False, server_default="0"),
    Column("burst", Integer, nullable=False, server_default="0"),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("replaced_by", Text),
    Column("tokens_per_min", Integer, nullable=False, server_default="0"),
    Column("last_used_at", DateTime(timezone=True)),
    CheckConstraint("length(sha256) = 32", name="sha256"),
    Index(None, "tenant", "id"),
)
"""Keys by their digests; a key itself is stored nowhere."""

state = Table(
    "state",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("outbox_id", BigInteger, nullable=False),
)
"""The last message of each key: what the topics must hold once the outbox is empty."""

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("topic", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
)

outbox_cursor = Table(
    "outbox_cursor",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("published_id", BigInteger, nullable=False),
    CheckConstraint("one = 1", name="one"),
)
"""One row: every outbox row up to this id is acknowledged by Kafka."""
