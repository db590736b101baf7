"""Alembic's environment: runs on the connection that `inferbus_registry.migrate` hands over."""

from __future__ import annotations

from alembic import context

from inferbus_registry import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table_schema=tables.SCHEMA,
    include_schemas=True,
)
with context.begin_transaction():
    context.run_migrations()
