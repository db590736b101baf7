"""The key of the stack and one that nobody made, as a user of tritonclient or kserve gives them."""

from __future__ import annotations

import os

KEY = os.environ["INFERBUS_API_KEY"]
_OTHER = "B" if KEY.endswith("A") else "A"
HEAD = {"authorization": f"Bearer {KEY}"}
WRONG_HEAD = {"authorization": f"Bearer {KEY[:-1]}{_OTHER}"}
UNKNOWN = "the key or token is unknown"
