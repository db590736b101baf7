"""The logger's own commands on the stack's log, run as they are.

In: a command of `python -m inferbus_logger`. Out: its output and exit code; its complaint as our
own sentence. The command line imports no service.
"""

from __future__ import annotations

import os
import subprocess
import sys

from inferbus_cli import places
from inferbus_cli.errors import CommandError

_PREFIX = "inferbus logger: "


def relay(*arguments: str) -> int:
    """Run one command of the logger; return its exit code.

    Raises:
        CommandError: it complained; the message is its last line.
    """
    run = subprocess.run(
        [sys.executable, "-m", "inferbus_logger", *arguments],
        env={
            **os.environ,
            "INFERBUS_POSTGRES_URL": places.postgres(),
            "INFERBUS_KAFKA_BOOTSTRAP": places.kafka(None),
        },
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = run.stderr.strip().splitlines()
    if run.returncode and lines:
        said = lines[-1].removeprefix(_PREFIX)
        raise CommandError(f"{said[:1].upper()}{said[1:]}.".replace("..", "."))
    return run.returncode
