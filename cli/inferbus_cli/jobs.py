"""`inferbus jobs`: submit, list, get, results, cancel, retry.

In: files of rows, ids of jobs. Out: jobs as people read them, or JSON; results as they come.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from cyclopts import App, Parameter

from inferbus_cli import places
from inferbus_cli.errors import CommandError

if TYPE_CHECKING:
    from inferbus_cli.http import Service

app = App(name="jobs", help="Run many rows, look how far they are, fetch their results.")

_JOBS = "/v1/jobs"
_PARQUET = "application/vnd.apache.parquet"
_PIECE_BYTES = 256 << 10
_LOOK_S = 1.0
_ENDED = frozenset({"completed", "cancelled"})

AsJson = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def _gateway(url: str | None) -> Service:
    from inferbus_cli import http  # noqa: PLC0415 -- a third of a second that help does not need

    return http.gateway(places.gateway(url))


@app.command
def submit(
    model: str,
    path: Path,
    *,
    version: str | None = None,
    job_id: str | None = None,
    wait: Flag = False,
    gateway: str | None = None,
) -> None:
    """Submit a file of rows; its id goes to stdout, alone on its line.

    A file that is called .parquet is one, with a column per input; any other has one JSON object a
    line.

    Args:
        model: Name of the model; its champion answers.
        path: The file; - reads stdin.
        version: Version number or alias instead of the champion.
        job_id: Your own name for the job; submitting it again gives the same job.
        wait: Come back when the job has ended.
        gateway: URL of the gateway.
    """
    wish = {"model": model, "version": version, "client_job_id": job_id}
    where = f"{_JOBS}?{urlencode({name: value for name, value in wish.items() if value})}"
    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
        service = stack.enter_context(_gateway(gateway))
        head = {"content-type": _PARQUET if path.suffix == ".parquet" else "application/x-ndjson"}
        answer = service.call(
            "POST", where, content=_pieces(file), headers=head, timeout_s=3600.0
        ).json()
        print(answer["id"], flush=True)
        while wait and answer["state"] not in _ENDED:
            time.sleep(_LOOK_S)
            answer = service.get(_path(answer["id"]))
    print(_words(answer), file=sys.stderr)


@app.command(name="list")
def list_jobs(*, limit: int = 20, gateway: str | None = None, as_json: AsJson = False) -> None:
    """List the jobs of your tenant, newest first.

    Args:
        limit: How many at most.
        gateway: URL of the gateway.
        as_json: Print JSON.
    """
    with _gateway(gateway) as service:
        found = service.get(f"{_JOBS}?limit={limit}")["jobs"]
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        print(_words(one))


@app.command
def get(job: str, *, gateway: str | None = None, as_json: AsJson = False) -> None:
    """Tell how far a job is.

    Args:
        job: Id of the job.
        gateway: URL of the gateway.
        as_json: Print JSON.
    """
    with _gateway(gateway) as service:
        found = service.get(_path(job))
    print(json.dumps(found) if as_json else _words(found))


@app.command
def results(job: str, *, parquet: Flag = False, gateway: str | None = None) -> None:
    """Print the results of a job that has ended: one line of JSON a row, in their order.

    Args:
        job: Id of the job.
        parquet: Write a Parquet file instead; send stdout to a file.
        gateway: URL of the gateway.
    """
    form = "?format=parquet" if parquet else ""
    with _gateway(gateway) as service:
        for piece in service.stream(f"{_path(job)}/results{form}"):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


@app.command
def cancel(job: str, *, gateway: str | None = None) -> None:
    """Cancel what has not run of a job.

    Args:
        job: Id of the job.
        gateway: URL of the gateway.
    """
    with _gateway(gateway) as service:
        print(_words(service.call("DELETE", _path(job)).json()))


@app.command
def retry(job: str, *, gateway: str | None = None) -> None:
    """Make a new job of the rows that failed or were cancelled; its id goes to stdout.

    Rows that were refused as they were read are left out: they can never run.

    Args:
        job: Id of the job.
        gateway: URL of the gateway.
    """
    with _gateway(gateway) as service:
        made = service.call("POST", f"{_path(job)}/retry").json()
    print(made["id"])
    print(_words(made), file=sys.stderr)


def _path(job: str) -> str:
    return f"{_JOBS}/{quote(job, safe='')}"


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _words(one: dict[str, Any]) -> str:
    counts = one["counts"]
    text = (
        f"{one['id']}  {one['model']}/{one['version']}  {one['state']}  "
        f"{counts['done']} of {counts['rows']} rows, {counts['failed']} failed"
    )
    if counts["cancelled"]:
        text += f", {counts['cancelled']} cancelled"
    if one["eta_s"]:
        text += f", {one['rows_per_s']:g} rows/s, {one['eta_s']:g} s left"
    return text
