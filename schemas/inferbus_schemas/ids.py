"""Request ids: UUIDv7 (RFC 9562), so that a range of ids is a range of time."""

from __future__ import annotations

_MASK_74 = (1 << 74) - 1


def uuid7(unix_ms: int, entropy: int) -> bytes:
    """Return the 16 bytes of a UUIDv7.

    Args:
        unix_ms: milliseconds since 1970, UTC.
        entropy: at least 74 random bits; higher ones are dropped.
    """
    bits = entropy & _MASK_74
    value = (unix_ms & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76 | (bits >> 62) << 64
    value |= 0b10 << 62 | (bits & ((1 << 62) - 1))
    return value.to_bytes(16, "big")


def unix_ms(id_bytes: bytes) -> int:
    """Return the time in a UUIDv7, in milliseconds since 1970."""
    return int.from_bytes(id_bytes[:6], "big")


def is_uuid7(id_bytes: bytes) -> bool:
    """Tell whether these bytes are a UUIDv7 of RFC 9562's variant."""
    return len(id_bytes) == 16 and id_bytes[6] >> 4 == 7 and id_bytes[8] >> 6 == 0b10  # noqa: PLR2004 -- field widths of RFC 9562


def text(id_bytes: bytes) -> str:
    """Return the id as people write it: lower-case hex with hyphens."""
    digits = id_bytes.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
