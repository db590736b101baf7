"""CloudEvents 1.0, Kafka binding, binary mode: five headers on each record of the data plane.

https://github.com/cloudevents/spec (bindings/kafka-protocol-binding.md). The body is Protobuf;
everything else of a request is a field of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[str, bytes]]

_SPECVERSION = ("ce_specversion", b"1.0")
_CONTENT_TYPE = ("content-type", b"application/protobuf")


class EnvelopeError(ValueError):
    """A record whose headers are not those of the event that was expected."""


def headers(
    ce_type: str, source: str, ce_id: str, traceparent: str = ""
) -> list[tuple[str, bytes]]:
    """Return the five headers of an event, and `traceparent` where the request is sampled.

    Args:
        ce_type: the event's type, from the topic's entry in the catalogue.
        source: the writer, as `/inferbus/<role>/<instance>`.
        ce_id: unique per source.
        traceparent: W3C trace context, or empty.
    """
    out = [
        ("ce_id", ce_id.encode()),
        ("ce_type", ce_type.encode()),
        ("ce_source", source.encode()),
        _SPECVERSION,
        _CONTENT_TYPE,
    ]
    if traceparent:
        out.append(("traceparent", traceparent.encode()))
    return out


def check(record_headers: Iterable[tuple[str, bytes]], ce_type: str) -> None:
    """Check that a record says it is a `ce_type` event in binary mode.

    Raises:
        EnvelopeError: a header is missing or says something else.
    """
    have = dict(record_headers)
    if have.get("ce_specversion") != b"1.0":
        raise EnvelopeError("ce_specversion is not 1.0")
    if have.get("ce_type") != ce_type.encode():
        raise EnvelopeError(f"ce_type is not {ce_type}")
    if have.get("content-type") != b"application/protobuf":
        raise EnvelopeError("content-type is not application/protobuf")


def traceparent(record_headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Return the record's W3C trace context, or an empty string; a program may write any."""
    for name, value in record_headers:
        if name == "traceparent":
            return (value or b"").decode("ascii", "replace")
    return ""
