"""`inferbus predict`: one request through the gateway, by the Open Inference Protocol.

In: inputs as JSON, shaped by the model's own metadata. Out: outputs, version, receipt, latency.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from cyclopts import Parameter

from inferbus_cli import places
from inferbus_cli.errors import CommandError

if TYPE_CHECKING:
    import httpx

_SHOWN = 8


def predict(
    model: str,
    *,
    input: Annotated[list[str] | None, Parameter(negative="")] = None,  # noqa: A002 -- the flag's name
    version: str | None = None,
    timeout_ms: int | None = None,
    raw: Annotated[bool, Parameter(negative="")] = False,
    gateway: str | None = None,
) -> None:
    """Send one request and show its answer.

    Args:
        model: Name of the model; its champion answers.
        input: NAME=JSON, or NAME=@FILE for a file of JSON (of text, where the input is BYTES).
        version: Version number or alias instead of the champion.
        timeout_ms: Deadline of the request.
        raw: Print the answer's JSON as it came.
        gateway: URL of the gateway.
    """
    from inferbus_cli import http  # noqa: PLC0415 -- a third of a second that help does not need

    where = f"/v2/models/{quote(model, safe='')}"
    if version is not None:
        where += f"/versions/{quote(version, safe='')}"
    with http.gateway(places.gateway(gateway)) as service:
        specs = {spec["name"]: spec for spec in service.get(where)["inputs"]}
        tensors = [_tensor(specs, text) for text in input or []]
        if missing := specs.keys() - {tensor["name"] for tensor in tensors}:
            wanted = ", ".join(_spec_words(specs[name]) for name in specs if name in missing)
            raise CommandError(f"The model takes {wanted}: give --input NAME=JSON for each.")
        headers = {} if timeout_ms is None else {"x-inferbus-timeout-ms": str(timeout_ms)}
        started = time.perf_counter()
        answer = service.call("POST", f"{where}/infer", json={"inputs": tensors}, headers=headers)
        latency_ms = (time.perf_counter() - started) * 1000
        found = http.body(answer)
    if raw:
        print(json.dumps(found))
        return
    _show(found, answer, latency_ms)


def _show(found: dict[str, Any], answer: httpx.Response, latency_ms: float) -> None:
    for tensor in found["outputs"]:
        data = tensor["data"]
        more = f", ... ({len(data)} values)" if len(data) > _SHOWN else ""
        values = ", ".join(json.dumps(value) for value in data[:_SHOWN])
        print(f"{tensor['name']} {tensor['datatype']} {tensor['shape']}: {values}{more}")
    said = answer.headers
    print(
        f"version {said.get('x-inferbus-model-version', '?')} on "
        f"{said.get('x-inferbus-served-by', '?')}, request {said.get('x-request-id', '?')}, "
        f"receipt {said.get('x-inferbus-receipt', '?')}, {latency_ms:.1f} ms"
    )


def _tensor(specs: dict[str, Any], text: str) -> dict[str, Any]:
    """Return one input tensor from NAME=JSON or NAME=@FILE."""
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"{text!r} is not NAME=JSON or NAME=@FILE.")
    if name not in specs:
        known = ", ".join(_spec_words(spec) for spec in specs.values())
        raise CommandError(f"The model has no input {name!r}; it takes {known}.")
    spec = specs[name]
    data = _data(value, as_text=spec["datatype"] == "BYTES")
    flat, nested_shape = _flatten(data)
    return {
        "name": name,
        "datatype": spec["datatype"],
        "shape": _shape(spec["shape"], nested_shape, len(flat)),
        "data": flat,
    }


def _data(value: str, *, as_text: bool) -> Any:
    if value.startswith("@"):
        path = Path(value[1:])
        try:
            value = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{path} cannot be read as text.") from error
        as_text = as_text and path.suffix != ".json"
        if as_text:
            return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if as_text:
            return value
        raise CommandError(f"{value[:60]!r} is not JSON.") from error


def _flatten(data: Any) -> tuple[list[Any], list[int]]:
    """Return values in row-major order, and the shape of the nesting."""
    flat, shape = [data], list[int]()
    while flat and all(isinstance(item, list) for item in flat):
        lengths = {len(item) for item in flat}
        if len(lengths) != 1:
            raise CommandError("The rows of an input differ in length: it is no tensor.")
        shape.append(lengths.pop())
        flat = [value for item in flat for value in item]
    if any(isinstance(item, list) for item in flat):
        raise CommandError("An input mixes lists and values: it is no tensor.")
    return flat, shape


def _shape(wanted: list[int], nested: list[int], n_values: int) -> list[int]:
    """Return the shape as nested, or, where its rank is another, as the model would have it."""
    if len(nested) == len(wanted):
        return nested
    if not wanted:
        return [n_values]
    fixed = math.prod(size for size in wanted[1:] if size > 0)
    if any(size < 0 for size in wanted[1:]) or fixed == 0 or n_values % fixed:
        return nested or [n_values]
    return [n_values // fixed, *wanted[1:]]


def _spec_words(spec: dict[str, Any]) -> str:
    return f"{spec['name']} ({spec['datatype']} {spec['shape']})"
