"""A Parquet file to rows of a job.

In: a file, which may be hostile, and the inputs of a signature. Out: one row a row, read batch by
batch; a row that does not fit says why, a file that does not fit is refused before its data is
touched. A column holds one input, a row of it without the dimension of rows: a scalar, or lists as
deep as the input's shape, or one flat list where that shape is fixed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inferbus_gateway.columns import wire
from inferbus_schemas import jobs, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import TensorSpec

_MAX_COLUMNS = 256
_MAX_ROW_GROUPS = 100_000
_MAX_GROUP_BYTES = 512 << 20
_MAX_STRING_BYTES = 16 << 20
_MAX_CONTAINER = 2_000_000
_BATCH_ROWS = 256
_BATCH_BYTES = 32 << 20

_BF16_NAN = 0x7FC0
_TYPES = {
    "BOOL": pa.bool_(),
    "UINT8": pa.uint8(),
    "UINT16": pa.uint16(),
    "UINT32": pa.uint32(),
    "UINT64": pa.uint64(),
    "INT8": pa.int8(),
    "INT16": pa.int16(),
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "FP16": pa.float16(),
    "BF16": pa.float32(),
    "FP32": pa.float32(),
    "FP64": pa.float64(),
    "BYTES": pa.binary(),
}

_BYTES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)


class RefusedError(Exception):
    """The file is not taken; the message is for its sender."""


class OversizeError(RefusedError):
    """The file, or a part of it, is too large."""


class _BadRowError(Exception):
    """A row does not fit; the message is for its sender."""


def rows(source: BinaryIO, sink: BinaryIO, what: wire.Reading) -> None:
    """Write the rows of `source` to `sink`, or why there are none."""
    held: list[m.Row] = []
    n_bytes = 0
    try:
        for row in _rows(source, what):
            held.append(row)
            n_bytes += len(row.tensors)
            if len(held) >= jobs.MAX_CHUNK_ROWS or n_bytes >= jobs.MAX_CHUNK_BYTES:
                sink.write(wire.part(wire.ROWS, m.Chunk(rows=held).SerializeToString()))
                held, n_bytes = [], 0
        sink.write(wire.part(wire.ROWS, m.Chunk(rows=held).SerializeToString()))
        sink.write(wire.part(wire.END))
    except OversizeError as error:
        sink.write(wire.part(wire.TOO_LARGE, str(error).encode()))
    except RefusedError as error:
        sink.write(wire.part(wire.REFUSED, str(error).encode()))
    except MemoryError:
        said = b"a part of the file is too large once it is read; write smaller row groups and rows"
        sink.write(wire.part(wire.TOO_LARGE, said))
    except (pa.ArrowException, OSError, ValueError):
        # The library's own words may hold anything that the file does.
        sink.write(wire.part(wire.REFUSED, b"the file cannot be read as Parquet"))
    sink.flush()


def _rows(source: BinaryIO, what: wire.Reading) -> Iterator[m.Row]:
    file = pq.ParquetFile(
        source,
        thrift_string_size_limit=_MAX_STRING_BYTES,
        thrift_container_size_limit=_MAX_CONTAINER,
        buffer_size=1 << 20,
        pre_buffer=False,
    )
    readers = _checked(file, what)
    number = 0
    for group in range(file.num_row_groups):
        told = file.metadata.row_group(group)
        # Rows may be large: what stands in memory at once is a part of the group.
        most = _BATCH_BYTES * told.num_rows // max(told.total_byte_size, 1)
        size = min(max(most, 1), _BATCH_ROWS)
        batches = file.iter_batches(
            size, row_groups=[group], columns=list(readers), use_threads=False
        )
        for batch in batches:
            parts = [(spec, _Column(spec, batch[spec.name])) for spec in what.inputs]
            for at in range(batch.num_rows):
                if number >= what.max_rows:
                    raise _too_many(what)
                yield _row(number, parts, at, what.max_row_bytes)
                number += 1


def _too_many(what: wire.Reading) -> OversizeError:
    return OversizeError(f"the input has over {what.max_rows} rows; send several jobs")


def _checked(file: Any, what: wire.Reading) -> dict[str, TensorSpec]:
    """Return the inputs by name, once the file's footer fits them."""
    told = file.metadata
    if told.num_rows > what.max_rows:
        raise _too_many(what)
    if told.num_columns > _MAX_COLUMNS or told.num_row_groups > _MAX_ROW_GROUPS:
        raise OversizeError("the file has too many columns or row groups")
    for group in range(told.num_row_groups):
        if told.row_group(group).total_byte_size > _MAX_GROUP_BYTES:
            raise OversizeError(
                f"a row group has over {_MAX_GROUP_BYTES >> 20} MiB; write smaller ones"
            )
    wanted = {spec.name: spec for spec in what.inputs}
    schema = file.schema_arrow
    if len(set(schema.names)) != len(schema.names):
        raise RefusedError("two columns have one name")
    for name in schema.names:
        if name not in wanted:
            shown = name if len(name) < 64 and name.isprintable() else "of a column"  # noqa: PLR2004
            raise RefusedError(f"the model has no input {shown!r}; a column is an input")
    for name, spec in wanted.items():
        if name not in schema.names:
            raise RefusedError(f"input {name!r} has no column")
        _check_type(spec, schema.field(name).type)
    return wanted


def _check_type(spec: TensorSpec, found: Any) -> None:
    wrong = RefusedError(f"input {spec.name!r}: a column of {spec.datatype} is needed")
    if not spec.shape or spec.shape[0] not in {-1, 1} or spec.datatype not in _TYPES:
        raise RefusedError(f"input {spec.name!r} has no form as a column; send JSON lines")
    depth = 0
    while _is_list(found):
        found, depth = found.value_type, depth + 1
        if depth > tensors.MAX_RANK:
            raise wrong
    rank = len(spec.shape) - 1
    if depth != rank and not (depth == 1 and rank and -1 not in spec.shape[1:]):
        raise RefusedError(f"input {spec.name!r}: lists {rank} deep are needed, not {depth}")
    if pa.types.is_dictionary(found):
        found = found.value_type
    kinds = {"BOOL": pa.types.is_boolean(found), "BYTES": found in _BYTES}
    floats = pa.types.is_floating(_TYPES[spec.datatype]) and pa.types.is_floating(found)
    if not kinds.get(spec.datatype, floats or pa.types.is_integer(found)):
        raise wrong


def _is_list(kind: Any) -> bool:
    is_any = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in is_any)


class _Column:
    """One input's column of one batch.

    Invariants: `tensor` gives the bytes of one row, or says why there are none; a value that the
    datatype cannot hold is refused, never clipped.
    """

    def __init__(self, spec: TensorSpec, column: Any) -> None:
        self._spec = spec
        self._inner = spec.shape[1:]
        self._valid = column.is_valid().to_pylist()
        self._levels: list[list[int]] = []
        while _is_list(column.type):
            if pa.types.is_fixed_size_list(column.type):
                size = column.type.list_size
                # Whatever stands under null rows takes its place, unlike in other lists.
                self._levels.append([size * at for at in range(len(column) + 1)])
                column = column.values.slice(column.offset * size, len(column) * size)
            else:
                offsets = column.offsets.to_pylist()
                self._levels.append([at - offsets[0] for at in offsets])
                column = column.values.slice(offsets[0], offsets[-1] - offsets[0])
            if _is_list(column.type) and column.null_count:
                raise RefusedError(f"input {spec.name!r}: a list inside a row is null")
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        self._leaf = column
        self._cast: Any = None
        # Where a value does not fit, rows are asked for one by one: only its own is refused.
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            self._cast = self._fit(column)

    def _fit(self, values: Any) -> Any:
        """Return values in the input's datatype.

        Raises:
            ArrowInvalid: one is out of its range.
        """
        fitted = values.cast(_TYPES[self._spec.datatype])
        if pa.types.is_floating(fitted.type) and fitted.type != values.type:
            lost = pc.and_(pc.is_inf(fitted.cast(pa.float64())), pc.is_finite(values))
            if pc.any(lost).as_py():
                raise pa.ArrowInvalid("an element is out of range")
        return _bf16(fitted) if self._spec.datatype == "BF16" else fitted

    def tensor(self, at: int) -> tuple[bytes, bytes]:
        """Return the head and the data of row `at` of the batch.

        Raises:
            _BadRowError: it does not fit the input.
        """
        spec = self._spec
        if not self._valid[at]:
            raise _BadRowError("is null")
        shape, start, end = self._span(at)
        count = end - start
        values = None if self._cast is None else self._cast.slice(start, count)
        if values is None:
            try:
                values = self._fit(self._leaf.slice(start, count))
            except pa.ArrowException:
                raise _BadRowError(f"an element is out of the range of {spec.datatype}") from None
        if values.null_count:
            raise _BadRowError("an element is null")
        data = _bytes(values, spec.datatype)
        return tensors.heads(spec.name, spec.datatype, (1, *shape), len(data)).message, data

    def _span(self, at: int) -> tuple[tuple[int, ...], int, int]:
        """Return the lengths of a row's lists, and where its elements are."""
        start, end = at, at + 1
        shape: list[int] = []
        for offsets in self._levels:
            lengths = {offsets[one + 1] - offsets[one] for one in range(start, end)}
            if len(lengths) > 1:
                raise _BadRowError("its lists have different lengths")
            shape.append(lengths.pop() if lengths else 0)
            start, end = offsets[start], offsets[end]
        found = tuple(shape)
        if len(found) == 1 < len(self._inner) and found[0] == math.prod(self._inner):
            found = self._inner
        fits = len(found) == len(self._inner) and all(
            want in {-1, dim} for want, dim in zip(self._inner, found, strict=True)
        )
        if not fits:
            raise _BadRowError(f"has the shape {list(found)}, not {list(self._inner)}")
        return found, start, end


def _bf16(values: Any) -> Any:
    """Return floats as the bits of BF16, rounded to the nearest, ties to even.

    Raises:
        ArrowInvalid: a finite one is out of its range.
    """
    wide = values.view(pa.uint32())

    def number(value: int) -> Any:
        return pa.scalar(value, pa.uint32())

    odd = pc.bit_wise_and(pc.shift_right(wide, number(16)), number(1))
    rounded = pc.shift_right(pc.add(pc.add(wide, number(0x7FFF)), odd), number(16))
    endless = pc.equal(pc.bit_wise_and(rounded, number(0x7FFF)), number(0x7F80))
    if pc.any(pc.and_(endless, pc.is_finite(values))).as_py():
        raise pa.ArrowInvalid("an element is out of range")
    return pc.if_else(pc.is_nan(values), number(_BF16_NAN), rounded).cast(pa.uint16())


def _bytes(values: Any, datatype: str) -> bytes:
    if datatype == "BYTES":
        return tensors.join_bytes(values.to_pylist())
    if datatype == "BOOL":
        return bytes(values.to_pylist())
    size = tensors.ITEM_BYTES[datatype]
    if not len(values):
        return b""
    first = values.offset * size
    return bytes(memoryview(values.buffers()[1])[first : first + len(values) * size])


def _row(
    number: int, parts: list[tuple[TensorSpec, _Column]], at: int, max_row_bytes: int
) -> m.Row:
    found: list[bytes] = []
    for spec, column in parts:
        try:
            found += column.tensor(at)
        except (_BadRowError, tensors.TensorError) as error:
            return m.Row(number=number, refused=f"input {spec.name!r}: {error}")
    row = m.Row(number=number, tensors=b"".join(found))
    if len(row.tensors) > max_row_bytes:
        return m.Row(number=number, refused="the row's tensors are too large")
    return row
