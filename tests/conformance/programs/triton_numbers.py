"""Print name, number and type of every field that tritonclient's messages have, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from tritonclient.grpc import service_pb2


def fields(message: Any) -> dict[str, Any]:
    found = {one.name: [one.number, one.type] for one in message.fields}
    return found | {one.name: fields(one) for one in message.nested_types}


file = service_pb2.DESCRIPTOR
said = {name: fields(message) for name, message in file.message_types_by_name.items()}
for other in file.dependencies:
    said |= {name: fields(message) for name, message in other.message_types_by_name.items()}
(service,) = file.services_by_name.values()
methods = {
    one.name: [
        one.input_type.name,
        one.output_type.name,
        one.client_streaming,
        one.server_streaming,
    ]
    for one in service.methods
}
json.dump({"messages": said, "methods": methods}, sys.stdout)
