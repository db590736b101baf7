"""Settings of the registry, read from `INFERBUS_*`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from inferbus_kit import settings
from inferbus_schemas import access, names

Tenant = Annotated[str, AfterValidator(names.check_tenant)]


class RegistrySettings(settings.TokenSettings):
    """What a registry needs to know beyond what every process does."""

    http_port: settings.Port = Field(
        default=8083, description="Port of the control plane; 0 takes a free one."
    )
    postgres_url: str = Field(
        default="postgresql://postgres@127.0.0.1:5432/inferbus",
        pattern=r"^postgres(ql)?://",
        description="Database, as postgresql://user:password@host:port/name.",
    )
    object_store_url: str = Field(
        default="file:///var/lib/inferbus/objects",
        description="Where artifacts lie: file:///folder, s3://bucket/prefix, gs://..., az://...",
    )
    pool: settings.Pool = Field(default="default", description="Pool that models are placed in.")
    min_ready: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="READY workers that a new version needs before gateways pin it.",
    )
    max_blob_bytes: int = Field(
        default=8 << 30, ge=1, description="Largest file of a model version."
    )
    blob_stall_s: float = Field(
        default=20.0, gt=0, description="Longest silence in the middle of an upload."
    )
    operator_tenant: Tenant = Field(
        default=access.LOCAL_TENANT,
        description="Tenant whose admins manage the keys of every tenant.",
    )
    max_tenant_keys: int = Field(
        default=10_000,
        ge=1,
        le=10_000_000,
        description="Keys of one tenant, with those that ended within thirty days.",
    )
    admin_key: SecretStr = Field(
        default=SecretStr(""),
        description="Key that `admin-key` makes sure of; empty: it makes one and prints it.",
    )
    outbox_check_s: float = Field(
        default=15.0,
        gt=0,
        description="How often the leader looks whether its topics still hold what it published.",
    )
