"""The catalogue is the whole truth about topics: every line of it is checked here."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from inferbus_schemas import messages as m
from inferbus_schemas import topics

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "schemas" / "examples"
NAME = re.compile(r"inferbus\.[a-z]+\.[a-z]+(\.\{(pool|tenant)\})?\.v[1-9]")
COMPACTED = {
    "segment.ms",
    "min.cleanable.dirty.ratio",
    "max.compaction.lag.ms",
    "delete.retention.ms",
}

assert m  # the messages register themselves in the default pool


def _all() -> list[tuple[str, topics.Topic]]:
    return sorted(topics.catalogue().items())


def _message_class(full_name: str) -> type[Message]:
    found = descriptor_pool.Default().FindMessageTypeByName(full_name)
    return message_factory.GetMessageClass(found)


@pytest.mark.parametrize(("short", "topic"), _all())
def test_entry_is_consistent(short: str, topic: topics.Topic) -> None:
    assert NAME.fullmatch(topic.name)
    assert topic.name.startswith(f"inferbus.{short}.")
    assert f".{topic.name.rsplit('.', 1)[1]}." in topic.message, "v<N> is the package's major"
    assert descriptor_pool.Default().FindMessageTypeByName(topic.message)
    assert topic.producers
    assert topic.consumers
    assert topic.config["message.timestamp.type"] == "LogAppendTime"
    of_services = "user" not in topic.producers
    assert int(topic.config["max.message.bytes"]) == (8 << 20 if of_services else 5 << 20)
    assert topic.partitions["production"] >= topic.partitions["one-machine"] >= 1
    if topic.kind == "state":
        assert "compact" in str(topic.config["cleanup.policy"]).split(",")
        assert set(topic.config) >= COMPACTED
        assert topic.partitions == {"one-machine": 1, "production": 1}


def test_types_are_unique_and_roles_exist() -> None:
    found = [topic.ce_type for short, topic in _all() if short != topics.ANSWERS]
    assert len(set(found)) == len(found)
    for _, topic in _all():
        for role in {*topic.producers, *topic.consumers} - {"user"}:
            assert (ROOT / "services" / role).is_dir()
            import_module(f"inferbus_{role}")


def test_short_names_match_the_files() -> None:
    files = {path.stem for path in (ROOT / "schemas" / "topics").glob("*.yaml")}
    constants = {topics.REQUESTS, topics.PREDICTIONS, topics.VERSIONS, topics.DEPLOYMENTS}
    constants |= {topics.HEARTBEATS, topics.KEYS, topics.TOKENS, topics.CANCELLATIONS}
    constants |= {topics.SUBMISSIONS, topics.ANSWERS, topics.SPENT}
    constants |= {topics.JOB_CHUNKS, topics.JOB_STATUS}
    assert files == constants == set(topics.catalogue())


def test_tokens_stand_in_the_partition_of_their_prediction() -> None:
    tokens, predictions = topics.topic(topics.TOKENS), topics.topic(topics.PREDICTIONS)
    assert tokens.partitions == predictions.partitions


def test_answers_are_predictions_as_they_were() -> None:
    answers, predictions = topics.topic(topics.ANSWERS), topics.topic(topics.PREDICTIONS)
    assert (answers.message, answers.ce_type) == (predictions.message, predictions.ce_type)
    assert answers.config["max.message.bytes"] == predictions.config["max.message.bytes"]


def test_topic_names_stand_nowhere_else() -> None:
    pattern = re.compile(r"inferbus\.(inference|models|fleet|access|jobs)\.[a-z]+[.\"']")
    places = [
        path
        for folder in ("guard", "telemetry", "kit", "services", "cli", "dev")
        for path in (ROOT / folder).rglob("*.py")
        if pattern.search(path.read_text())
    ]
    assert not places


@pytest.mark.parametrize(
    ("short", "path"),
    [
        pytest.param(path.parents[1].name, path, id=f"{path.parents[1].name}/{path.stem}")
        for path in sorted(EXAMPLES.glob("*/v1/*.json"))
    ],
)
def test_example_decodes_and_round_trips(short: str, path: Path) -> None:
    kind = _message_class(topics.topic(short).message)
    message = json_format.Parse(path.read_text(), kind())
    assert kind.FromString(message.SerializeToString()) == message
    assert message.ByteSize() > 0


def test_every_topic_has_an_example() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == set(topics.catalogue())


def test_dead_letters_are_created_beside_their_topic() -> None:
    names = [topic.name for topic in topics.to_create(("default", "gpu"))]
    assert len(set(names)) == len(names)
    assert "inferbus.inference.requests.gpu.v1.dlq" in names
    assert not [name for name in names if "{" in name]
    production = topics.to_create(("default",), "production")
    assert {topic.config["min.insync.replicas"] for topic in production} == {"2"}


def test_pool_names_are_checked() -> None:
    with pytest.raises(ValueError, match="pool name"):
        topics.topic(topics.REQUESTS, "../x")
