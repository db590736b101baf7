"""Where the records of one request are looked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inferbus_gateway.control import trail


@pytest.mark.parametrize(
    ("since", "offset", "begins", "cut"),
    [
        (5, -1, 5, False),  # claimed, and its answer not seen yet
        (9, -1, 9, False),
        (4, -1, 5, True),
        (10, -1, 5, True),
        (5, 7, 7, False),  # answered there
        (5, 8, 8, False),
        (5, 9, 9, True),
        (5, 4, 9, True),
    ],
)
def test_where_a_trail_begins_in_a_log_of_five_to_nine(
    since: int, offset: int, begins: int, *, cut: bool
) -> None:
    stored: Any = SimpleNamespace(
        partition=0, id=32 * "0", since=since, claimed_ms=0, offset=offset
    )
    one = trail.Trail("", "t", stored)
    assert one._from(5, 9) == begins
    assert one.cut == cut
