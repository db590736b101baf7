"""`inferbus log`: what an operator does to the prediction log."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

app = App(name="log", help="Operate the prediction log.")


@app.command
def rewind(
    *,
    partition: int,
    to: str = "earliest",
    new_era: Annotated[
        bool, Parameter(name="--i-know-that-this-begins-a-new-era", negative="")
    ] = False,
) -> int:
    """Let a stopped partition of the log go on at another offset; the chain begins a new era.

    Args:
        partition: The partition of the prediction stream that stopped.
        to: `earliest`, or the offset to read next.
        new_era: Say that you know: rows of the old era stay, equal offsets mean other records.
    """
    from inferbus_cli.log import relay  # noqa: PLC0415 -- only commands need it

    words = ["rewind", "--partition", str(partition), "--to", to]
    return relay(*words, *(["--i-know-that-this-begins-a-new-era"] if new_era else []))
