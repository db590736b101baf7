"""What a gateway is told, from `INFERBUS_*`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from inferbus_gateway.control.jobs.origins import Origins
from inferbus_gateway.hot.fit import MAX_ROWS
from inferbus_kit.settings import Port, TokenSettings
from inferbus_schemas import access, names
from inferbus_schemas.access import LEAST_RATE_PER_S


def _split(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",") if one.strip())


class GatewaySettings(TokenSettings):
    """A gateway's settings beside those that every process has."""

    http_port: Port = Field(
        default=8080, description="Port of the HTTP listener; 0 takes a free one."
    )
    grpc_port: Port = Field(
        default=8081, description="Port of the gRPC listener; 0 takes a free one."
    )
    registry_url: str = Field(
        default="http://127.0.0.1:8083",
        description="Where load and unload are handed on to; nothing else asks the registry.",
    )
    max_body_bytes: int = Field(
        default=4 << 20, gt=0, le=7 << 20, description="Largest request body, also uncompressed."
    )
    max_rows: int = Field(
        default=MAX_ROWS, gt=0, description="Most rows of one request; a job takes more."
    )
    max_pending: int = Field(
        default=20_000, gt=0, description="Unanswered requests past which new ones get 503."
    )
    max_pending_bytes: int = Field(
        default=256 << 20, gt=0, description="Their bytes past which new ones get 503."
    )
    max_connections: int = Field(
        default=4096, gt=0, description="Open connections and requests past which new ones get 503."
    )
    valkey_url: SecretStr = Field(
        default=SecretStr(""),
        description="Where all gateways count requests together, as redis://:password@host:port/0; "
        "empty: each counts its share alone.",
    )
    tenant_requests_per_s: float = Field(
        default=0.0, ge=0, description="Requests a second that one tenant may start; 0: no limit."
    )
    tenant_burst: int = Field(
        default=0,
        ge=0,
        description="Requests that a tenant may start at once after a pause; 0: a second's worth.",
    )
    tenant_tokens_per_min: int = Field(
        default=0,
        ge=0,
        description="Tokens of prompts, answers and texts that become vectors that a tenant may "
        "use a minute, and as many in jobs and batches; 0: no limit.",
    )
    tenant_max_pending: int = Field(
        default=5_000,
        gt=0,
        description="Unanswered requests of one tenant on this gateway past which it gets 429.",
    )
    drain_timeout_s: float = Field(
        default=25.0, gt=0, description="Longest time to finish what is in flight at a stop."
    )
    grace_s: float = Field(
        default=0.5,
        ge=0,
        description="At a stop, time between not ready and closing the listener.",
    )
    submission_tenants: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(access.LOCAL_TENANT,),
        description="Tenants whose topics of submissions are read, with commas; empty: none.",
    )

    job_uri_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Where jobs may read their input from when a URI names it, with commas: "
        "https://host, https://host:port, s3://bucket; empty: nowhere.",
    )
    job_uri_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Networks whose addresses such hosts may have although they are not public, as "
        "10.1.0.0/16, with commas.",
    )

    @field_validator("tenant_requests_per_s")
    @classmethod
    def _is_counted(cls, rate_per_s: float) -> float:
        if 0 < rate_per_s < LEAST_RATE_PER_S:
            raise ValueError("must be 0, for no limit, or at least a request an hour (0.000278)")
        return rate_per_s

    @field_validator("submission_tenants", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(map(names.check_tenant, _split(value))) if isinstance(value, str) else value

    @field_validator("job_uri_sources", "job_uri_networks", mode="before")
    @classmethod
    def _parts(cls, value: object) -> object:
        return _split(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _origins(self) -> Self:
        # A wrong entry is told at the start, not to the first client.
        Origins(self.job_uri_sources, self.job_uri_networks)
        return self

    object_store_url: str = Field(
        default="",
        description="Where inputs and results of jobs are, such as file:///path or s3://bucket; "
        "the same as the workers' and the registry's. Empty: this gateway takes no jobs.",
    )
    max_job_rows: int = Field(default=10_000_000, gt=0, description="Most rows of one job.")
    tenant_max_jobs: int = Field(
        default=1000, gt=0, description="Unfinished jobs of one tenant past which it gets 429."
    )
    tenant_max_job_rows: int = Field(
        default=50_000_000,
        gt=0,
        description="Rows left in the unfinished jobs of one tenant past which it gets 429.",
    )
    max_job_bytes: int = Field(
        default=8 << 30, gt=0, description="Largest input of one job, in bytes."
    )
    max_parquet_bytes: int = Field(
        default=1 << 30,
        gt=0,
        description="Largest Parquet file of one job, in or out; it stands in the folder for "
        "temporary files while it is read or fetched.",
    )
    max_file_bytes: int = Field(
        default=200 << 20, gt=0, description="Largest file of a batch, in bytes."
    )
