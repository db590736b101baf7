"""The tables of the gateway's README are what the code says.

`python -m tests.gateway.test_gateway_readme` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from inferbus_gateway import errors
from inferbus_gateway.settings import GatewaySettings
from inferbus_kit.metrics import gateway_metrics
from inferbus_kit.settings import Settings

README = Path(__file__).resolve().parents[2] / "services" / "gateway" / "README.md"


def _errors() -> list[str]:
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    out = []
    for kind in sorted(kinds, key=lambda kind: (kind.http_status, kind.code)):
        if kind is errors.InferbusError:
            when = "A fault of ours."
        else:
            when = (kind.__doc__ or "").split("\n")[0]
        again = "yes" if kind.retryable else ""
        out.append(
            f"| `{kind.code}` | {kind.http_status} | {kind.grpc_status} | {again} | {when} |"
        )
    return out


def _settings() -> list[str]:
    own = {
        name: field
        for name, field in GatewaySettings.model_fields.items()
        if name not in Settings.model_fields
    }
    return [
        f"| `INFERBUS_{name.upper()}` | {_shown(name, field.default)} | {field.description} |"
        for name, field in own.items()
    ]


def _shown(name: str, default: object) -> str:
    """Return a default as the table writes it; that of a port has no comma."""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, tuple):
        return ",".join(default)
    return str(default) if isinstance(default, str) or name.endswith("_port") else f"{default:,}"


def _metrics() -> list[str]:
    registry = CollectorRegistry()
    made = gateway_metrics(registry)
    out = []
    for name in made.__slots__:
        metric = getattr(made, name)
        (family,) = metric.describe()
        suffix = "_total" if family.type == "counter" else ""
        labels = ", ".join(metric._labelnames)
        out.append(f"| `{family.name}{suffix}` | {labels} | {family.documentation} |")
    return out


TABLES = {"errors": _errors, "settings": _settings, "metrics": _metrics}


def _parts(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n\|.*\n\|[-|]+\n)((?:\|.*\n)*)(<!-- /{name} -->)")


@pytest.mark.parametrize("name", TABLES)
def test_the_table_is_what_the_code_says(name: str) -> None:
    found = _parts(name).search(README.read_text())
    assert found is not None
    assert found[2].splitlines() == TABLES[name](), (
        "run: python -m tests.gateway.test_gateway_readme"
    )


def test_each_error_has_a_code_of_its_own() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(re.fullmatch(r"[a-z_]+", kind.code) for kind in kinds)
    defined = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.InferbusError)
    }
    assert defined == set(kinds)


if __name__ == "__main__":
    text = README.read_text()
    for each, table in TABLES.items():
        rows = "".join(f"{line}\n" for line in table())
        head, old, tail = _parts(each).split(text)[1:4]
        text = text.replace(f"{head}{old}{tail}", f"{head}{rows}{tail}")
    README.write_text(text)
