"""`inferbus audit`: is every answer in the log, once and unaltered?"""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

app = App(name="audit", help="Check that the log is whole and unaltered.")


@app.command
def verify(
    *,
    partition: list[int] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Compute the log's hash chain anew; exit code 1 where a row is not as it was written.

    Args:
        partition: Only this partition of the prediction stream; may be given more than once.
        as_json: Print the report as JSON.
    """
    from inferbus_cli.log import relay  # noqa: PLC0415 -- only commands need it

    chosen = [word for number in partition or [] for word in ("--partition", str(number))]
    return relay("verify", *chosen, *(["--json"] if as_json else []))
