"""Files in the object store: pieces, then one object that says what they are.

In: bytes as they come. Out: bytes as they are read, and records of `jobs.status` that tell every
gateway which files there are. A file whose last object was never written is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from aiokafka.errors import KafkaError

from inferbus_gateway import errors
from inferbus_gateway.control.batches.fold import BatchFold
from inferbus_gateway.control.jobs.dispatch import Dispatcher
from inferbus_kit.errors import InferbusError
from inferbus_kit.objects import Objects
from inferbus_schemas import batches
from inferbus_schemas import messages as m

PIECE_BYTES = 4 << 20


class Writer:
    """Writes one file.

    Invariants: holds less than a piece and what was given last; the same bytes under the same id
    are the same objects, whoever writes them; `close` or `discard` must follow.
    """

    def __init__(self, objects: Objects, file: m.File, max_bytes: int | None = None) -> None:
        self._objects = objects
        self._file = file
        self._max_bytes = max_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def write(self, data: bytes) -> None:
        """Take some bytes.

        Raises:
            TooLargeError: the file has more than it may.
            ObjectStoreError: they cannot be kept.
        """
        self._held.append(data)
        self._held_bytes += len(data)
        self._file.n_bytes += len(data)
        if self._max_bytes is not None and self._file.n_bytes > self._max_bytes:
            raise errors.TooLargeError(f"a file has at most {self._max_bytes} bytes")
        if self._held_bytes >= PIECE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        await self._objects.put(batches.piece_path(self._file.id, self._file.n_pieces), data)
        self._file.n_pieces += 1

    async def close(self) -> m.File:
        """Write the rest and say what the file is.

        Raises:
            ObjectStoreError: it cannot be kept.
        """
        if self._held_bytes:
            await self._flush()
        await self._objects.put(batches.file_path(self._file.id), self._file.SerializeToString())
        return self._file

    async def discard(self) -> None:
        """Delete what was written."""
        with contextlib.suppress(InferbusError):
            await self._objects.delete_folder(batches.file_folder(self._file.id))


class Files:
    """The files of all tenants.

    Invariants: a file is found only by its own tenant and until it expires; what is announced is
    whole.
    """

    def __init__(self, objects: Objects, dispatcher: Dispatcher, fold: BatchFold) -> None:
        self._objects = objects
        self._dispatcher = dispatcher
        self._fold = fold

    def writer(self, file: m.File, max_bytes: int | None = None) -> Writer:
        """Return what writes a new file."""
        return Writer(self._objects, file, max_bytes)

    async def announce(self, file: m.File) -> None:
        """Tell every gateway of a file that is whole.

        Raises:
            BusUnavailableError: Kafka did not take it.
        """
        said = m.JobStatus(file=file)
        try:
            await self._dispatcher.say(batches.file_key(file.id), said)
        except (KafkaError, TimeoutError) as error:
            raise errors.BusUnavailableError("Kafka takes nothing at present") from error
        self._fold.apply(said, now_ms())

    async def find(self, name: str, tenant: str) -> m.File:
        """Return a file of a tenant by its name.

        Raises:
            NotFoundError: the tenant has none of that name.
            ObjectStoreError: nobody can say.
        """
        file_id = batches.parse_file(name)
        if file_id is not None:
            found = self._fold.file(file_id)
            if found is None:
                # Another gateway may have taken it a moment ago.
                raw = await self._objects.get(batches.file_path(file_id))
                found = None if raw is None else m.File.FromString(raw)
            if found is not None and found.tenant == tenant and found.expires_ms > now_ms():
                return found
        raise errors.NotFoundError("there is no such file")

    async def read(self, file: m.File) -> AsyncIterator[bytes]:
        """Yield the bytes of a file.

        Raises:
            NotFoundError: it was deleted meanwhile.
            ObjectStoreError: it cannot be read.
        """
        for number in range(file.n_pieces):
            piece = await self._objects.get(batches.piece_path(file.id, number))
            if piece is None:
                raise errors.NotFoundError("this file was deleted")
            yield piece

    async def delete(self, file: m.File) -> None:
        """Delete a file.

        Raises:
            ObjectStoreError, BusUnavailableError: it may be left.
        """
        # What says that it is there goes first.
        await self._objects.delete(batches.file_path(file.id))
        try:
            await self._dispatcher.say(batches.file_key(file.id), None)
        except (KafkaError, TimeoutError) as error:
            raise errors.BusUnavailableError("Kafka takes nothing at present") from error
        self._fold.forget_file(file.id)
        await self._objects.delete_folder(batches.file_folder(file.id))

    async def sweep(self) -> None:
        """Delete the files whose time is over.

        Raises:
            ObjectStoreError, BusUnavailableError: some may be left.
        """
        for file in self._fold.files_past(now_ms()):
            await self.delete(file)
            await asyncio.sleep(0)


def now_ms() -> int:
    """Return the present as UTC milliseconds."""
    return int(time.time() * 1000)
