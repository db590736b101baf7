"""What ends a command: one sentence for its user."""

from __future__ import annotations


class CommandError(Exception):
    """The command cannot do what was asked; the message says what to do. Exit code 1."""
