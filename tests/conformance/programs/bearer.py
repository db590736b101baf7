"""The key of the stack on every call of a tritonclient, by the plugin that it has for that."""

from __future__ import annotations

from typing import Any

from keys import HEAD
from tritonclient.http import InferenceServerClientPlugin


class Bearer(InferenceServerClientPlugin):
    """Adds the key to the headers of a call."""

    def __call__(self, request: Any) -> None:
        request.headers.update(HEAD)
