"""One streamed answer: which chunks belong to it, and how it ends; pure.

In: token chunks and the terminal record as they are read, which may be in any order of the two
topics. Out: chunks to pass on, each once and in order, and the end: whole, or why not.
"""

from __future__ import annotations

from inferbus_gateway import errors
from inferbus_kit.errors import InferbusError
from inferbus_schemas import messages as m


class TokenStream:
    """Binds to the first run that it sees.

    Invariants: what `take` returns is of one run and has the numbers 0, 1, 2, ... without a hole
    or a double; `whole` only where the first terminal record is an OK of that very run and all of
    its chunks were taken; once `error` is set it stays; `n_tokens` are those of the chunks that
    were taken, and of the prompt as far as they tell.
    """

    def __init__(self) -> None:
        self.run: int | None = None
        self.n_taken = self.n_tokens = 0
        self.prediction: m.Prediction | None = None
        self.error: InferbusError | None = None

    def take(self, chunk: m.TokenChunk) -> bool:
        """Tell whether this chunk is the next one of the stream."""
        if self.error is not None:
            return False
        if self.run is None:
            self.run = chunk.run
        if chunk.run != self.run or chunk.seq < self.n_taken:
            return False
        if chunk.seq > self.n_taken:
            self.error = errors.StreamBrokenError("a piece of the stream is missing")
            return False
        self.n_taken += 1
        self.n_tokens += chunk.prompt_tokens + chunk.n_tokens
        return True

    def end(self, prediction: m.Prediction, error: InferbusError | None) -> None:
        """Note the first terminal record, with the error that it stands for unless it is OK."""
        self.prediction = prediction
        if self.error is None:
            self.error = error
        if self.error is None and self.run not in {None, prediction.generated.run}:
            self.error = errors.StreamBrokenError(
                "another run of the request ended than the one that was streamed"
            )

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        said = self.prediction
        return said is not None and self.error is None and self.n_taken == said.generated.n_chunks

    @property
    def ended(self) -> bool:
        """Whether nothing more can come."""
        return self.whole or self.error is not None

    def overdue(self) -> None:
        """Give up waiting for chunks that the terminal record counts."""
        if not self.ended:
            self.error = errors.StreamBrokenError("a piece of the stream is missing")
