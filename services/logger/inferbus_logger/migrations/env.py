"""Runs the migrations on the connection that `inferbus_logger.migrate` hands over."""

from alembic import context
from sqlalchemy import Connection

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table="alembic_version",
    version_table_schema="log",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
