"""The topics as an AsyncAPI 3.0 document, made from the catalogue and the messages' descriptors.

In: nothing. Out: one JSON-like value; `schemas/asyncapi.yaml` is its stored form and every gateway
serves it. Bodies on the wire are Protobuf; their schemas here are those of Protobuf's JSON mapping,
which examples, `inferbus topics tail --json` and submissions as JSON use.
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from inferbus_schemas import messages, topics

Json = dict[str, Any]

VERSION = "0.1.0"
_HEADERS = {
    "ce_id": "Unique per source.",
    "ce_source": "Who wrote it, as /inferbus/<role>/<instance>.",
    "ce_specversion": "1.0: CloudEvents, Kafka binding, binary mode.",
    "ce_type": "The event's type.",
    "content-type": "application/protobuf.",
}
_TRACE = {"traceparent": "W3C trace context, where the request is sampled."}
_OF_LETTERS = {
    "dlq_topic": "Where the record was.",
    "dlq_partition": "Its partition, in digits.",
    "dlq_offset": "Its offset, in digits.",
    "dlq_error": "Why nobody could work on it.",
    "dlq_by": "The process that gave it up.",
}
_LOG_OF_LETTERS = {"dlq_log": "The last lines of what tells more, where there are any."}
_NAMES = {"pool": "Workers that share topics and hardware.", "tenant": "Whose topic it is."}
_WRITTEN_AS_TEXT: dict[int, Json] = {
    FieldDescriptor.CPPTYPE_INT64: {"type": ["string", "integer"], "pattern": "^-?[0-9]+$"},
    FieldDescriptor.CPPTYPE_UINT64: {
        "type": ["string", "integer"],
        "pattern": "^[0-9]+$",
        "minimum": 0,
    },
}
_SCALARS: dict[int, Json] = {
    **_WRITTEN_AS_TEXT,
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}

assert messages  # noqa: S101 -- the messages register themselves in the default pool


@functools.cache
def document() -> Json:
    """Return the document; shared, so not to be changed."""
    channels: Json = {}
    operations: Json = {}
    kinds: Json = {}
    schemas: Json = {}
    for short, topic in topics.catalogue().items():
        name = topic.message.rpartition(".")[2]
        kinds[name] = _message(topic, name)
        _add(schemas, descriptor_pool.Default().FindMessageTypeByName(topic.message))
        channels[short] = _channel(topic, name)
        operations |= _operations(short, topic, name)
        if topic.dead_letters:
            letters = topics.dead_letters(short)
            channels[letters] = _letters(topic)
            operations |= _operations(letters, _written_by(topic), "DeadLetter")
    kinds["DeadLetter"] = _dead_letter()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Inferbus topics",
            "version": VERSION,
            "description": "What services and programs write to Kafka and read from it. Topics "
            "that are not public may change without notice.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/protobuf",
        "channels": channels,
        "operations": operations,
        "components": {"messages": kinds, "schemas": schemas},
    }


def _channel(topic: topics.Topic, name: str) -> Json:
    channel: Json = {
        "address": topic.name,
        "description": f"{topic.description} Key: {topic.key}. Partition: {topic.partitioning}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions["one-machine"],
                "topicConfiguration": _configuration(topic),
            }
        },
        "x-visibility": topic.visibility,
    }
    parameters = {
        key: {"description": said} for key, said in _NAMES.items() if f"{{{key}}}" in topic.name
    }
    return channel | ({"parameters": parameters} if parameters else {})


def _letters(topic: topics.Topic) -> Json:
    """Return the channel of a topic's dead letters."""
    (made,) = (one for one in topics.to_create(("p",), tenants=("t",)) if _is_of(one.name, topic))
    found = msgspec.structs.replace(
        topic,
        name=topics.dead_letters(topic.name),
        description=f"Dead letters of {topic.name}.",
        key="the record's own",
        partitioning="one partition",
        partitions=dict.fromkeys(topic.partitions, made.partitions),
        config=made.config,
    )
    return _channel(found, "DeadLetter")


def _is_of(name: str, topic: topics.Topic) -> bool:
    filled = topic.name.replace("{pool}", "p").replace("{tenant}", "t")
    return name == topics.dead_letters(filled)


def _written_by(topic: topics.Topic) -> topics.Topic:
    """Return a topic whose readers write, as they do its dead letters, and programs read."""
    return msgspec.structs.replace(topic, producers=topic.consumers, consumers=("user",))


def _configuration(topic: topics.Topic) -> Json:
    """Return those settings that AsyncAPI's Kafka binding knows, in its types."""
    config = topic.config
    found: Json = {"cleanup.policy": str(config["cleanup.policy"]).split(",")}
    for key in ("retention.ms", "delete.retention.ms", "max.message.bytes"):
        if key in config:
            found[key] = int(config[key])
    return found


def _operations(short: str, topic: topics.Topic, name: str) -> Json:
    channel = {"$ref": f"#/channels/{short}"}
    said = [{"$ref": f"#/channels/{short}/messages/{name}"}]

    def operation(action: str, roles: tuple[str, ...]) -> Json:
        return {"action": action, "channel": channel, "messages": said, "x-roles": list(roles)}

    return {
        f"{short}.send": operation("send", topic.producers),
        f"{short}.receive": operation("receive", topic.consumers),
    }


def _message(topic: topics.Topic, name: str) -> Json:
    told = _headers(_HEADERS | _TRACE)
    told["ce_type"]["const"] = topic.ce_type
    of_programs = topic.producers == ("user",)
    if of_programs:
        told["content-type"] |= {
            "description": "What the value is; left out, it is application/protobuf.",
            "enum": ["application/protobuf", "application/json"],
        }
    headers: Json = {"type": "object", "properties": told}
    if not of_programs:  # They need none.
        headers["required"] = list(_HEADERS)
    message = {
        "name": topic.ce_type,
        "title": name,
        "contentType": "application/protobuf",
        "headers": headers,
        "payload": {"$ref": f"#/components/schemas/{topic.message}"},
        "x-protobuf-message": topic.message,
    }
    if topic.key != "none":
        message["bindings"] = {"kafka": {"key": {"description": topic.key}}}
    return message


def _dead_letter() -> Json:
    """Return the message of all topics of dead letters: a record as it was, and why."""
    return {
        "name": "dead-letter",
        "title": "DeadLetter",
        "contentType": "application/octet-stream",
        "headers": {
            "type": "object",
            "description": "The record's own, and these.",
            "properties": _headers(_OF_LETTERS | _LOG_OF_LETTERS),
            "required": list(_OF_LETTERS),
        },
        "payload": {"description": "The record's value, as far as its first 4 MiB."},
    }


def _headers(told: dict[str, str]) -> Json:
    return {key: {"type": "string", "description": said} for key, said in told.items()}


def _add(schemas: Json, kind: Descriptor) -> None:
    """Add the schema of a message and of all that it holds."""
    if kind.full_name in schemas:
        return
    properties: Json = {}
    schemas[kind.full_name] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    for field in kind.fields:
        properties[field.name] = _field(schemas, field)


def _field(schemas: Json, field: FieldDescriptor) -> Json:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _value(schemas, value)}
    one = _value(schemas, field)
    return {"type": "array", "items": one} if field.is_repeated else one


def _value(schemas: Json, field: FieldDescriptor) -> Json:
    if field.message_type is not None:
        _add(schemas, field.message_type)
        return {"$ref": f"#/components/schemas/{field.message_type.full_name}"}
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return dict(_SCALARS[field.cpp_type])


def text() -> str:
    """Return the stored form."""
    import yaml  # noqa: PLC0415 -- only where the document is written

    return "# Made by `make docs` from the catalogue of topics and the messages.\n" + str(
        yaml.safe_dump(document(), sort_keys=False, width=100)
    )
