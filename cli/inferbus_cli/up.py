"""`inferbus up`: hands over to the launcher, which stays until Ctrl-C."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Annotated

from cyclopts import Parameter

from inferbus_cli.errors import CommandError


def up(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Start everything on this machine; the same as `make up`.

    Flags go to the launcher as they are: `inferbus up --port-base 9080 --no-models`.
    """
    if importlib.util.find_spec("inferbus_dev") is None:
        raise CommandError("The launcher is not installed here: run `make up` in the checkout.")
    sys.stdout.flush()
    command = [sys.executable, "-m", "inferbus_dev", "up", *arguments]
    os.execv(sys.executable, command)  # noqa: S606 -- the launcher takes this process's place
