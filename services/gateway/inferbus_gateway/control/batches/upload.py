"""A multipart form as it streams: small fields, and one file that is never held.

In: the pieces of a body. Out: the bytes of its file as they come, and the fields, once it is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from inferbus_gateway.errors import ParameterError, UnsupportedMediaTypeError

_FORM = b"multipart/form-data"
_MAX_BOUNDARY_BYTES = 200
_MAX_FIELD_BYTES = 4 << 10
_MAX_FIELDS = 16
_MAX_BESIDE_BYTES = 128 << 10
"""What a form may hold beside its file: heads, boundaries, fields."""
_MAX_FILENAME = 255
_TEXTS = "fields are texts in UTF-8"


class Form:
    """One form.

    Invariants: holds what a piece brought of the file and all fields, which are small; a form has
    one file; `fields` and `filename` are whole only when `file` has come to its end.
    """

    def __init__(self, content_type: str) -> None:
        """Begin.

        Raises:
            UnsupportedMediaTypeError: the type is none of a form.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != _FORM or not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES:
            raise UnsupportedMediaTypeError("send the file as multipart/form-data")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._n_files = 0
        self._ended = False
        self._header = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._in_file = False
        self._field = b""
        self._data: deque[bytes] = deque()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def file(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the bytes of the file in a body.

        Raises:
            ParameterError: the body is no form, or none with one file.
        """
        n_beside = 0
        async for piece in body:
            try:
                self._parser.write(piece)
            except MultipartParseError:
                raise ParameterError("", "the body is not a well-formed form") from None
            n_beside += len(piece) - sum(map(len, self._data))
            if n_beside > _MAX_BESIDE_BYTES:
                raise ParameterError("", "the form has too much beside its file")
            while self._data:
                yield self._data.popleft()
        if not self._ended:
            raise ParameterError("", "the form breaks off before its end")
        if not self._n_files:
            raise ParameterError("file", "the form has no file")

    def _on_part_begin(self) -> None:
        self._headers.clear()
        self._field, self._name, self._in_file = b"", "", False

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = _text(options.get(b"name", b""))
        self._in_file = self._name == "file"
        if self._in_file:
            self._n_files += 1
            if self._n_files > 1:
                raise ParameterError("file", "a form has one file")
            name = _text(options.get(b"filename", b"")).replace("\\", "/").rpartition("/")[2]
            self.filename = "".join(one for one in name if one.isprintable())[:_MAX_FILENAME]
        elif len(self.fields) >= _MAX_FIELDS:
            raise ParameterError("", f"a form has at most {_MAX_FIELDS} fields")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])
            return
        self._field += data[start:end]
        if len(self._field) > _MAX_FIELD_BYTES:
            raise ParameterError(self._name[:64], "a field of the form is too long")

    def _on_part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = _text(self._field)

    def _on_end(self) -> None:
        self._ended = True


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ParameterError("", _TEXTS) from None
