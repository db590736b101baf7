"""A disk of a few megabytes that one process and its children see, where a user may mount one.

In: a folder and a size. Out: the words to put before a command, for which the disk lies on it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

NO_SMALL_DISK = "no disk can be mounted here without the rights to do so for all"
"""Why a test that needs one is skipped."""


def prefix(folder: Path, size: str) -> tuple[str, ...] | None:
    """Return the words, or None where the system refuses them."""
    script = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    words = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, str(folder))
    if shutil.which(words[0]) is None:
        return None
    trial = subprocess.run([*words, "true"], capture_output=True, check=False, timeout=10)
    return words if trial.returncode == 0 else None
