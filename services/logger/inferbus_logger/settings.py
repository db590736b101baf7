"""What a logger reads from the environment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from inferbus_kit.settings import Settings
from inferbus_schemas import names, topics

MIN_RETENTION_DAYS = 8
MAX_ANSWER_TENANTS = 200
"""Each may cost a connection to each broker."""


class LoggerSettings(Settings):
    """Settings of one logger process."""

    postgres_url: str = Field(
        description="Database of the log, as postgresql://user:password@host:port/name."
    )
    log_topic: str = Field(
        default_factory=lambda: topics.topic(topics.PREDICTIONS).name,
        description="Topic that is logged; another than the catalogue's only in tests.",
    )
    log_group: str = Field(
        default="logger.sink",
        description="Consumer group that shares the partitions among loggers.",
    )
    log_partitions: Annotated[tuple[int, ...] | None, NoDecode] = Field(
        default=None,
        description="Partitions to log without the group, as 0,1,2; empty: the group decides.",
    )
    log_connections: int = Field(
        default=2, ge=1, le=16, description="Transactions that may be under way at once."
    )
    log_retention_days: int = Field(
        default=0,
        ge=0,
        description="Days after which rows are taken out of log.predictions, as tables of their "
        f"own; 0 keeps all, else at least {MIN_RETENTION_DAYS}.",
    )

    answer_tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Tenants whose predictions are copied to topics that they may read, with "
        f"commas, {MAX_ANSWER_TENANTS} at most; empty: none.",
    )

    @field_validator("answer_tenants", mode="before")
    @classmethod
    def _tenants(cls, value: object) -> object:
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            if len(found := dict.fromkeys(map(names.check_tenant, parts))) > MAX_ANSWER_TENANTS:
                raise ValueError(f"at most {MAX_ANSWER_TENANTS} tenants")
            return tuple(found)
        return value

    @field_validator("log_partitions", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            if not all(part.isdigit() for part in parts):
                raise ValueError("write numbers with commas between them, such as 0,1,2")
            return tuple(int(part) for part in parts) or None
        return value

    @field_validator("log_retention_days")
    @classmethod
    def _longer_than_kafka(cls, value: int) -> int:
        if 0 < value < MIN_RETENTION_DAYS:
            # A redelivered record must still find its row.
            raise ValueError(f"must be 0 or at least {MIN_RETENTION_DAYS}, longer than Kafka keeps")
        return value


class PostgresSettings(Settings):
    """Settings of the commands that need the database only."""

    postgres_url: str = Field(
        description="Database of the log, as postgresql://user:password@host:port/name."
    )
    log_topic: str = Field(
        default_factory=lambda: topics.topic(topics.PREDICTIONS).name,
        description="Topic that is logged; another than the catalogue's only in tests.",
    )
