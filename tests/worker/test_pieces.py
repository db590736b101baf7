"""A request in pieces: all rows once, in their order, and an answer as of one batch."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from inferbus_schemas import tensors
from inferbus_worker.engines import wire
from inferbus_worker.hot.pieces import LONG_US, QUICK_US, Pieces

OPEN_US = (QUICK_US + LONG_US) // 2


def asked(n_rows: int) -> tuple[list[wire.TensorHead], list[bytes]]:
    """Return a text and two numbers for each row."""
    texts = tensors.join_bytes(b"x" * (row % 5) for row in range(n_rows))
    numbers = struct.pack(f"<{2 * n_rows}h", *range(2 * n_rows))
    return [
        wire.TensorHead("text", "BYTES", (n_rows,), len(texts)),
        wire.TensorHead("pair", "INT16", (n_rows, 2), len(numbers)),
    ], [texts, numbers]


def answer(
    heads: list[wire.TensorHead], buffers: list[bytes], engine_us: int
) -> tuple[wire.Done, memoryview]:
    """Give the inputs back, in the other order, with a token for each character."""
    texts = tensors.split_bytes(buffers[0])
    assert len(texts) == heads[0].shape[0] == heads[1].shape[0]
    assert [head.n_bytes for head in heads] == [len(data) for data in buffers]
    tokens = tuple(map(len, texts))
    done = wire.Done(1, tuple(reversed(heads)), {}, "", engine_us, 0, row_tokens=tokens)
    return done, memoryview(b"".join(reversed(buffers)))


@given(
    n_rows=st.integers(1, 200),
    most=st.integers(1, 20),
    times=st.lists(st.sampled_from([1, OPEN_US, 10 * LONG_US]), min_size=1, max_size=10),
)
def test_an_answer_is_that_of_all_rows_at_once(n_rows: int, most: int, times: list[int]) -> None:
    heads, buffers = asked(n_rows)
    want, body = answer(heads, buffers, 0)
    pieces = Pieces(heads, buffers, most)
    sizes: list[int] = []
    engine_us, found = 0, None
    while found is None:
        took_us = times[len(sizes) % len(times)]
        engine_us += took_us
        part = pieces.next()
        sizes.append(part[0][0].shape[0])
        found = pieces.answered(*answer(*part, took_us))
    done, out = found
    assert (done.outputs, done.row_tokens) == (want.outputs, want.row_tokens)
    assert (bytes(out), done.engine_us) == (bytes(body), engine_us)
    assert (sum(sizes), sizes[0]) == (n_rows, min(most, n_rows))
    assert pieces.n_tokens == sum(want.row_tokens)


def test_pieces_grow_while_they_are_quick_and_shrink_where_they_are_not() -> None:
    pieces = Pieces(*asked(1000), 8)
    sizes = []
    for took_us in (1, 1, OPEN_US, 10 * LONG_US, 10 * LONG_US, 10 * LONG_US, 1):
        part = pieces.next()
        sizes.append(part[0][0].shape[0])
        assert pieces.answered(*answer(*part, took_us)) is None
    assert sizes == [8, 16, 32, 32, 16, 8, 8]


def test_a_bad_row_is_named_by_its_place_in_the_request() -> None:
    pieces = Pieces(*asked(20), 8)
    assert pieces.answered(*answer(*pieces.next(), OPEN_US)) is None
    pieces.next()
    found = pieces.answered(wire.Done(1, (), {3: "it is bad"}, "", 5, 0), memoryview(b""))
    assert found is not None
    assert (found[0].bad_rows, found[0].engine_us) == ({11: "it is bad"}, OPEN_US + 5)


def test_an_error_ends_it() -> None:
    pieces = Pieces(*asked(20), 8)
    pieces.next()
    found = pieces.answered(wire.Done(1, (), {}, "it cannot", 5, 0), memoryview(b""))
    assert found is not None
    assert found[0].error == "it cannot"
