"""What every engine says of a version that it cannot run."""

from __future__ import annotations


class LoadError(ValueError):
    """A version that this engine cannot run; the message says why, for its owner."""
