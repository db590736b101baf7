"""What JSON may become in memory: an upper bound of what decoding takes, and refused before it."""

from __future__ import annotations

import json
from itertools import count

import msgspec
import pytest

from inferbus_schemas import json_bounds, manifest
from tests.support.hostile_shapes import PARTS, many
from tests.support.memory import peak_bytes

MOST = json_bounds.MAX_DECODED_BYTES


def refused(text: bytes, most: int = MOST) -> bool:
    try:
        json_bounds.check(text, most)
    except json_bounds.TooManyPartsError:
        return True
    return False


@pytest.mark.parametrize("part", PARTS)
def test_what_is_let_through_becomes_no_more_than_it_may(part: bytes) -> None:
    most = 1 << 20
    n_bytes = 4 << 10
    while not refused(many(part, n_bytes), most):
        n_bytes += n_bytes // 4
    text = many(part, n_bytes * 4 // 5)
    assert not refused(text, most)
    assert peak_bytes(lambda: msgspec.json.decode(text)) < most + len(text)


def test_one_object_of_many_keys_becomes_no_more_than_it_may() -> None:
    most = 1 << 20
    for size in (2_000, 5_461, 8_000, 10_000):
        text = json.dumps({f"{key:x}": 0 for key in range(size)}).encode()
        taken = peak_bytes(lambda text=text: msgspec.json.decode(text))  # type: ignore[misc]
        assert refused(text, most) or taken < most + len(text)


@pytest.mark.parametrize("part", [b"[]", b'{"":{}}', b'"ab"', b"999", rb'"\""', rb'"\\"'])
def test_refusing_a_large_text_makes_nothing_of_it(part: bytes) -> None:
    text = many(part, 4 << 20)
    assert peak_bytes(lambda: refused(text)) < 4 * len(text)
    assert refused(text)


def test_what_stands_inside_of_texts_counts_for_nothing() -> None:
    inside = '{"a": ["b", \\ [1, 2]]},' * 150_000
    assert not refused(json.dumps({"x": inside}).encode())
    assert refused(b'{"x":[' + inside.replace("\\", "3,").encode() + b"0]}")


def test_keys_are_counted_outside_of_texts() -> None:
    def keyed(n_keys: int) -> bytes:
        return json.dumps({f"k{key}": "a:b," * 20 for key in range(n_keys)}).encode()

    json_bounds.check_keys(keyed(json_bounds.MAX_KEYS))
    with pytest.raises(json_bounds.TooManyPartsError):
        json_bounds.check_keys(keyed(json_bounds.MAX_KEYS + 1))


def test_elements_are_counted_outside_of_texts() -> None:
    said = json.dumps([['a, "b", \\', "[,"] for _ in range(5)]).encode()
    assert json_bounds.n_elements(said, 10) == 10
    assert json_bounds.n_elements(said, 9) == 10
    assert json_bounds.n_elements(b"[[],[],[]]", 2) == 3
    found = next(n for n in count(1) if json_bounds.n_elements(said, n) <= n)
    assert found == 10


def test_a_manifest_that_would_become_too_much_is_refused() -> None:
    raw = b'{"task_settings":{"x":[' + b"[]," * 1_000_000 + b"0]}}"

    def parse() -> None:
        with pytest.raises(manifest.ManifestError):
            manifest.parse(raw)

    assert peak_bytes(parse) < 4 * len(raw)
