"""How this process's clients reach the brokers: over TLS or not, as whom; and how they leave.

In: `INFERBUS_KAFKA_*` of the environment. Out: options that every aiokafka client takes. Who may do
what is Kafka's to decide, by ACLs on the principal named here.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog
from aiokafka.errors import KafkaError
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from inferbus_kit.errors import StartupError
from inferbus_kit.settings import load

_log = structlog.get_logger("kafka")


class KafkaSecurity(BaseSettings):
    """How a process proves to the brokers who it is, and they to it.

    Invariants: with SASL there are a name and a password; files are those of TLS alone.
    """

    model_config = SettingsConfigDict(env_prefix="INFERBUS_KAFKA_", frozen=True, extra="ignore")

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="As the brokers' listener has it."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="With SASL: how the password is shown."
    )
    sasl_username: str = Field(default="", description="With SASL: the principal's name.")
    sasl_password: SecretStr = Field(
        default=SecretStr(""),
        validate_default=True,
        description="With SASL: the principal's password.",
    )
    ca_file: Path | None = Field(
        default=None, description="With SSL: PEM of who signs the brokers; else the system's."
    )
    cert_file: Path | None = Field(
        default=None, description="With SSL: PEM of this process's certificate and private key."
    )

    @field_validator("sasl_password")
    @classmethod
    def _named(cls, password: SecretStr, info: ValidationInfo) -> SecretStr:
        sasl = str(info.data.get("security_protocol")).startswith("SASL")
        if sasl and not (info.data.get("sasl_username") and password.get_secret_value()):
            raise ValueError("SASL needs it, and INFERBUS_KAFKA_SASL_USERNAME")
        return password


def client_options(bootstrap: str) -> dict[str, Any]:
    """Return what any aiokafka client needs to reach the brokers; read once a process.

    Raises:
        StartupError: a variable or a file cannot be used.
    """
    return {"bootstrap_servers": bootstrap, **_security()}


class Client(Protocol):
    """Any client of aiokafka."""

    async def stop(self) -> None: ...


async def stop_client(client: Client, timeout_s: float = 3.0) -> None:
    """Stop a client; bounded, since its own stop may hang.

    That may also end by a cancellation within the client: not the caller's, which is heard.
    """
    stopping = asyncio.ensure_future(client.stop())
    # Or asyncio complains of an error that comes when nobody waits any longer.
    stopping.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        await asyncio.wait([stopping], timeout=timeout_s)
    finally:
        stopping.cancel()
    if not stopping.done():
        _log.warning("client_not_stopped", client=type(client).__name__)
    elif not stopping.cancelled() and (error := stopping.exception()) is not None:
        if not isinstance(error, (OSError, KafkaError)):
            raise error
        _log.warning("client_not_stopped", client=type(client).__name__, error=repr(error))


@cache
def _security() -> dict[str, Any]:
    said = load(KafkaSecurity)
    options: dict[str, Any] = {"security_protocol": said.security_protocol}
    if said.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = said.sasl_mechanism
        options["sasl_plain_username"] = said.sasl_username
        options["sasl_plain_password"] = said.sasl_password.get_secret_value()
    if said.security_protocol.endswith("SSL"):
        try:
            context = ssl.create_default_context(cafile=said.ca_file)
            if said.cert_file is not None:
                context.load_cert_chain(said.cert_file)
        except OSError as error:
            raise StartupError(
                "INFERBUS_KAFKA_CA_FILE, INFERBUS_KAFKA_CERT_FILE: they must be PEM files that "
                f"this process can read ({type(error).__name__})"
            ) from None
        options["ssl_context"] = context
    return options
