"""Settings that every process shares, read from `INFERBUS_*` once, by `load`.

In: the environment. Out: a frozen object, or one sentence that says which variable to mend.
"""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from inferbus_kit.errors import StartupError
from inferbus_schemas import names


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches what is bound there.

    Raises:
        ValueError: it is no address.
    """
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _bindable(host: str, info: ValidationInfo) -> str:
    """Refuse a bind that other machines can reach where callers need no key."""
    try:
        inside = is_loopback(host)
    except ValueError as error:
        raise ValueError("it must be an IP address or localhost") from error
    if not inside and info.data.get("auth") != "required":
        raise ValueError("only a loopback address may be bound where INFERBUS_AUTH is not required")
    return host


Host = Annotated[str, AfterValidator(_bindable)]
Port = Annotated[int, Field(ge=0, le=65535)]
Pool = Annotated[str, AfterValidator(names.check_pool)]


class Settings(BaseSettings):
    """What each process needs to know to run; services add their own."""

    model_config = SettingsConfigDict(env_prefix="INFERBUS_", frozen=True, extra="ignore")

    instance: str = Field(
        default_factory=lambda: f"process-{secrets.token_hex(4)}",
        pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$",
        description="Name of this process in heartbeats, records and metrics.",
    )
    kafka_bootstrap: str = Field(
        default="127.0.0.1:9092", description="Brokers as host:port, comma-separated."
    )
    state_dir: Path = Field(
        default=Path(".inferbus/run/process"), description="Private folder of this process."
    )
    auth: Literal["required", "local"] = Field(
        default="required",
        description="Who may call: required, holders of keys or tokens alone; local, also anyone "
        "on this machine, for inference and to read models.",
    )
    http_host: Host = Field(
        default="127.0.0.1",
        description="Address that all listeners of this process bind; beyond loopback only where "
        "INFERBUS_AUTH is required.",
    )
    metrics_port: Port = Field(
        default=0, description="Port of /livez, /readyz and /metrics; 0 takes a free one."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level of log lines that are written."
    )
    otlp_endpoint: str = Field(
        default="", description="Base URL of an OTLP/HTTP collector; empty: no spans are made."
    )
    trace_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of requests without a traceparent of their own that are sampled.",
    )


class TokenSettings(Settings):
    """What a process needs to know that takes tokens of an OpenID provider beside keys."""

    oidc_issuer: str = Field(
        default="", description="Issuer of tokens that are taken beside keys; empty: none are."
    )
    oidc_audience: str = Field(default="", description="Audience that tokens must name.")
    oidc_jwks_url: str = Field(default="", description="Where the issuer's public keys are.")
    oidc_tenant_claim: str = Field(
        default="tenant", description="Claim of a token that names its tenant."
    )
    oidc_scope_claim: str = Field(
        default="scope",
        description="Claim of a token that lists its scopes, as a list or separated by spaces.",
    )

    @property
    def takes_tokens(self) -> bool:
        """Whether a provider of tokens is set, be it in part."""
        return bool(self.oidc_issuer or self.oidc_audience or self.oidc_jwks_url)


S = TypeVar("S", bound=BaseSettings)


def load(kind: type[S]) -> S:
    """Read the settings of one process from the environment.

    Raises:
        StartupError: a variable is missing or has a value that cannot be used.
    """
    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        name = (
            str(kind.model_config.get("env_prefix"))
            + "_".join(str(part) for part in first["loc"]).upper()
        )
        message = first["msg"].removeprefix("Value error, ")
        raise StartupError(f"{name}: {message}") from None
