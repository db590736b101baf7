"""The tables of the gateway's and the logger's README are what the code says.

`python -m tests.gateway.test_gateway_readme` writes them anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from inferbus_gateway import errors
from inferbus_gateway.settings import GatewaySettings
from inferbus_kit.metrics import gateway_metrics, logger_metrics
from inferbus_kit.settings import Settings

SERVICES = Path(__file__).resolve().parents[2] / "services"


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
    fields = GatewaySettings.model_fields
    return _variables({name: fields[name] for name in fields if name not in Settings.model_fields})


def _settings_of_all() -> list[str]:
    return _variables(Settings.model_fields)


def _variables(fields: dict[str, FieldInfo]) -> list[str]:
    return [
        f"| `INFERBUS_{name.upper()}` | {_shown(name, field.default)} | {field.description} |"
        for name, field in fields.items()
    ]


def _shown(name: str, default: object) -> str:
    """Return a default as the table writes it; that of a port has no comma."""
    if default is PydanticUndefined:
        return "of its own"
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, tuple):
        return ",".join(default)
    return (
        str(default)
        if isinstance(default, str | Path) or name.endswith("_port")
        else f"{default:,}"
    )


def _metrics_of(make: Callable[[CollectorRegistry], Any]) -> list[str]:
    made = make(CollectorRegistry())
    out = []
    for name in made.__slots__:
        metric = getattr(made, name)
        (family,) = metric.describe()
        suffix = "_total" if family.type == "counter" else ""
        labels = ", ".join(metric._labelnames)
        out.append(f"| `{family.name}{suffix}` | {labels} | {family.documentation} |")
    return out


TABLES: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("gateway", "errors"): _errors,
    ("gateway", "settings of all"): _settings_of_all,
    ("gateway", "settings"): _settings,
    ("gateway", "metrics"): partial(_metrics_of, gateway_metrics),
    ("logger", "metrics"): partial(_metrics_of, logger_metrics),
}


def _readme(service: str) -> Path:
    return SERVICES / service / "README.md"


def _parts(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n\|.*\n\|[-|]+\n)((?:\|.*\n)*)(<!-- /{name} -->)")


@pytest.mark.parametrize(("service", "name"), TABLES)
def test_the_table_is_what_the_code_says(service: str, name: str) -> None:
    found = _parts(name).search(_readme(service).read_text())
    assert found is not None
    assert found[2].splitlines() == TABLES[service, name](), (
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
    for (service, each), table in TABLES.items():
        text = _readme(service).read_text()
        rows = "".join(f"{line}\n" for line in table())
        head, old, tail = _parts(each).split(text)[1:4]
        _readme(service).write_text(text.replace(f"{head}{old}{tail}", f"{head}{rows}{tail}"))
