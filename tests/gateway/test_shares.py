"""Places of which nobody gets more than a share."""

from __future__ import annotations

import contextlib

import pytest

from inferbus_gateway.errors import OverloadedError, TenantBusyError
from inferbus_gateway.hot.shares import Shares


def test_nobody_holds_more_than_a_share_and_all_no_more_than_there_are() -> None:
    shares = Shares("uploads", 3, 2)
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(shares.held("a"))
        with pytest.raises(TenantBusyError, match="2 uploads of yours"), shares.held("a"):
            pass
        with shares.held("b"), pytest.raises(OverloadedError), shares.held("c"):
            pass
        with pytest.raises(RuntimeError), shares.held("b"):
            raise RuntimeError
        held.enter_context(shares.held("c"))
    for _ in range(3):
        with shares.held("a"), shares.held("a"), shares.held("b"):
            pass
