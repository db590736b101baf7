"""The SDK of CloudEvents on the prediction stream."""

from __future__ import annotations

import hashlib
import json
import sys
import time

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from confluent_kafka import Consumer


def main(bootstrap: str, topic: str, wanted: str) -> None:
    """Print the event of that id."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"events-{wanted}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        record = consumer.poll(1.0)
        if record is None or record.error():
            continue
        message = KafkaMessage(dict(record.headers()), record.key(), record.value())
        event = from_binary_event(message)
        if event.get_id() == wanted:
            said = {
                "type": event.get_type(),
                "source": event.get_source(),
                "datacontenttype": event.get_datacontenttype(),
                "data_sha256": hashlib.sha256(event.get_data()).hexdigest(),
            }
            consumer.close()
            sys.stdout.write(json.dumps(said))
            return
    raise SystemExit(f"no event {wanted}")


main(*sys.argv[1:])
