"""An upload, in each of the forms that it may have, to rows.

In: bytes as they stream. Out: rows with their numbers, each checked against the signature; one that
does not fit says why. What cannot be read at all is an error of the upload.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

from inferbus_gateway import errors
from inferbus_gateway.control.jobs import parquet
from inferbus_gateway.control.jobs.lines import Lines
from inferbus_gateway.control.jobs.parquet import Slots
from inferbus_gateway.control.jobs.rows import RowReader
from inferbus_gateway.hot.fit import MAX_ROWS
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Signature

Form = Literal["lines", "parquet"]
JSON_LINES = "application/x-ndjson"
BYTES = "application/octet-stream"
FORMS: dict[str, Form] = {
    JSON_LINES: "lines",
    "application/jsonl": "lines",
    "application/json-lines": "lines",
    BYTES: "lines",
    parquet.MEDIA_TYPE: "parquet",
}
"""By media type."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may have, what all unfinished ones of a tenant may, and how many may come in.

    Processes for Parquet are fewer than uploads, and shared with those that write results.
    """

    max_rows: int
    max_input_bytes: int
    max_row_bytes: int
    max_tenant_jobs: int
    max_tenant_rows: int
    max_parquet_bytes: int
    max_line_rows: int = MAX_ROWS
    max_at_once: int = 16
    max_tenant_at_once: int = 4
    parquet: Slots = field(default_factory=Slots)


async def rows(
    form: Form,
    body: AsyncIterator[bytes],
    signature: Signature,
    limits: Limits,
    update: Callable[[bytes], None],
    *,
    tenant: str,
) -> AsyncGenerator[m.Row]:
    """Yield the rows of a body; `update` sees all of its bytes.

    Raises:
        TooLargeError, InvalidRequestError: it is not taken.
        OverloadedError, TenantBusyError: no process for Parquet is free, for this tenant.
    """
    if form == "parquet":
        share = limits.parquet.of(tenant)
        async with share.process():
            pass  # Who is to be refused is, before its file is here.
        with await parquet.spool(body, limits.max_parquet_bytes, update) as kept:
            most = limits.max_rows, limits.max_row_bytes
            found = parquet.rows(share, kept, signature, *most)
            async with contextlib.aclosing(found):
                async for row in found:
                    yield row
        return
    reader = RowReader(signature, limits.max_row_bytes, limits.max_line_rows)
    lines = Lines(limits.max_row_bytes)
    number = n_bytes = 0
    async for piece in body:
        n_bytes += len(piece)
        if n_bytes > limits.max_input_bytes:
            raise errors.TooLargeError(
                f"the input is over {limits.max_input_bytes} bytes; send several jobs"
            )
        update(piece)
        for line in lines.feed(piece):
            yield reader.read(number, line)
            number += 1
    for line in lines.end():
        yield reader.read(number, line)
        number += 1
