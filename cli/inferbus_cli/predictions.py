"""`inferbus predictions`: one answer as the log has it."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

app = App(name="predictions", help="Look up answers in the log.")


@app.command
def get(
    request_id: str,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Show the row of one request.

    Args:
        request_id: The id as the answer's x-request-id told it.
        as_json: Print all of it as JSON.
    """
    from inferbus_cli.log import relay  # noqa: PLC0415 -- only commands need it

    return relay("get", *(["--json"] if as_json else []), "--", request_id)
