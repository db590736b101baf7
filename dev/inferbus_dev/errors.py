"""The one kind of failure that the launcher shows to a user: a sentence that says what to do."""

from __future__ import annotations


class LauncherError(Exception):
    """A start or stop that cannot go on.

    Invariant: the message is one clear sentence for the user, without a stack trace.
    """


DISK_FULL = "The disk is full: free some space (3 GB are needed in all) and run `make up` again."
