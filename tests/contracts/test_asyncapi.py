"""The AsyncAPI document is what catalogue and messages say, and examples fit its schemas.

`asyncapi-3.0.0.schema.json` is AsyncAPI's own schema of such documents, unchanged, in the form
without ids: `schemas/3.0.0-without-$id.json` of asyncapi/spec-json-schemas (Apache-2.0).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from google.protobuf import descriptor_pool, json_format, message_factory

from inferbus_schemas import asyncapi, envelope, topics
from inferbus_schemas import messages as m

ROOT = Path(__file__).resolve().parents[2] / "schemas"
OFFICIAL = Path(__file__).with_name("asyncapi-3.0.0.schema.json")
EXAMPLES = sorted((ROOT / "examples").glob("*/v1/*.json"))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _references(one)


def test_the_stored_form_is_current() -> None:
    stored = (ROOT / "asyncapi.yaml").read_text()
    assert stored == asyncapi.text(), "run `make docs`"
    assert yaml.safe_load(stored) == asyncapi.document()


def test_it_is_a_document_of_asyncapi_3() -> None:
    official = jsonschema.Draft7Validator(json.loads(OFFICIAL.read_text()))
    official.validate(asyncapi.document())
    spoilers: list[Callable[[Any], Any]] = [
        lambda said: said.pop("info"),
        lambda said: said.update(topics=[]),
        lambda said: said["operations"]["access.keys.send"].update(action="write"),
        lambda said: said["channels"]["access.keys"].update(partition=1),
        lambda said: said["channels"]["access.keys"]["bindings"]["kafka"].update(partitions="1"),
        lambda said: next(iter(said["components"]["schemas"].values())).update(required="id"),
    ]
    for spoil in spoilers:
        said = copy.deepcopy(asyncapi.document())
        spoil(said)
        assert not official.is_valid(said)


def test_each_topic_stands_in_it_once_with_its_settings() -> None:
    said = asyncapi.document()
    channels = said["channels"]
    letters = [short for short, topic in topics.catalogue().items() if topic.dead_letters]
    assert sorted(channels) == sorted([*topics.catalogue(), *map(topics.dead_letters, letters)])
    for short in letters:
        channel = channels[f"{short}.dlq"]
        assert channel["address"] == topics.dead_letters(channels[short]["address"])
        assert channel["bindings"]["kafka"]["partitions"] == 1
        assert set(channel.get("parameters", ())) == set(channels[short].get("parameters", ()))
        assert said["operations"][f"{short}.dlq.send"]["x-roles"] == list(
            topics.catalogue()[short].consumers
        )
    for short, topic in topics.catalogue().items():
        channel = said["channels"][short]
        assert channel["address"] == topic.name
        assert channel["x-visibility"] == topic.visibility
        assert set(channel.get("parameters", {})) == {
            one for one in ("pool", "tenant") if f"{{{one}}}" in topic.name
        }
        assert said["operations"][f"{short}.send"]["x-roles"] == list(topic.producers)


def _headers(name: str, headers: list[tuple[str, bytes]]) -> bool:
    """Tell whether a record of a message may have these headers."""
    told = asyncapi.document()["components"]["messages"][name]["headers"]
    said = {key: value.decode() for key, value in headers}
    return bool(jsonschema.Draft202012Validator(told).is_valid(said))


def test_headers_are_those_on_the_wire() -> None:
    entry = topics.topic(topics.PREDICTIONS)
    five = envelope.headers(entry.ce_type, "/inferbus/worker/w", "1")
    assert _headers("Prediction", five)
    assert _headers("Prediction", [*five, ("traceparent", b"00-x")])
    for left in range(5):
        assert not _headers("Prediction", five[:left] + five[left + 1 :])
    assert not _headers("Prediction", envelope.headers("another", "/inferbus/worker/w", "1"))
    for said in ([], [("content-type", b"application/json")], [("traceparent", b"00-x")]):
        assert _headers("Submission", said)
    assert not _headers("Submission", [("content-type", b"text/plain")])
    assert not _headers("DeadLetter", five)


@pytest.mark.parametrize("shape", [[1, 2], ["1", "2"]])
def test_a_submission_in_json_may_write_its_shape_as_either(shape: list[Any]) -> None:
    """As Protobuf's JSON form may be read; in it 64-bit numbers are written as texts."""
    tensor = {"name": "x", "datatype": "UINT8", "shape": shape, "data": "AAA="}
    body: Any = {"requests": [{"model": "m", "inputs": {"tensors": [tensor]}, "timeout_ms": 5}]}
    json_format.ParseDict(body, m.Submission())
    said = asyncapi.document()
    name = topics.topic(topics.SUBMISSIONS).message
    schema = {"$ref": f"#/components/schemas/{name}", "components": said["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(body)
    body["requests"][0]["inputs"]["tensors"][0]["shape"] = [1.5]
    assert not validator.is_valid(body)


def test_every_reference_leads_somewhere() -> None:
    said = asyncapi.document()
    found = set(_references(said))
    assert len(found) > 20
    for reference in found:
        at: Any = said
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


@pytest.mark.parametrize("path", EXAMPLES, ids=[f"{p.parts[-3]}/{p.stem}" for p in EXAMPLES])
def test_examples_fit_and_others_do_not(path: Path) -> None:
    said = asyncapi.document()
    name = topics.topic(path.parts[-3]).message
    schema = {"$ref": f"#/components/schemas/{name}", "components": said["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    message = json_format.Parse(path.read_text(), kind())
    # As `inferbus topics tail --json` and any Protobuf library write it.
    written = json_format.MessageToDict(message, preserving_proto_field_name=True)
    validator.validate(written)
    assert not validator.is_valid({**written, "no_such_field": 1})
    first = next(iter(json.loads(path.read_text())))
    assert not validator.is_valid({**written, first: {"no_such_field": 1}})
