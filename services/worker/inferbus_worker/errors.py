"""Every error of the worker that has a code; what is only raised and caught inside stands there."""

from __future__ import annotations

from inferbus_kit.errors import InferbusError


class ArtifactError(InferbusError):
    """A file of a version is not to be had, or is not what its digest says."""

    code = "artifact_unavailable"


class EngineError(InferbusError):
    """The version cannot be run here; the message says why."""

    code = "engine_failed"


class NoTopicError(InferbusError):
    """The pool has no topic for requests."""

    code = "no_topic"
