"""The `inferbus` command.

In: a command line. Out: what was asked for on stdout; on failure one sentence on stderr and exit
code 1, or 2 where the command line itself is wrong. Modules of commands load when they are used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from inferbus_cli.errors import CommandError

_INTERRUPTED = 130

_COMMANDS = {
    "up": ("inferbus_cli.up:up", "Start everything on this machine; the same as `make up`."),
    "models": ("inferbus_cli.models:app", "Push, list and roll out models."),
    "keys": ("inferbus_cli.keys:app", "Make, list, rotate and revoke API keys."),
    "predict": ("inferbus_cli.predict:predict", "Send one request and show its answer."),
    "jobs": ("inferbus_cli.jobs:app", "Run many rows, look how far they are, fetch results."),
    "predictions": ("inferbus_cli.predictions:app", "Look up answers in the log."),
    "log": ("inferbus_cli.log_app:app", "Operate the prediction log."),
    "audit": ("inferbus_cli.audit:app", "Check that the log is whole and unaltered."),
    "topics": ("inferbus_cli.topics:app", "Look into the topics of the bus."),
}


def make_app() -> App:
    """Return the command with all its parts, none of which is loaded yet."""
    app = App(
        name="inferbus",
        help="Inferbus: models, predictions and the bus from the command line.",
        help_format="plaintext",
        version_flags=[],
    )
    for name, (target, sentence) in _COMMANDS.items():
        app.command(target, name=name, help=sentence)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = make_app()(
            list(arguments), print_error=False, exit_on_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except CycloptsError as error:
        sys.stderr.write(f"inferbus: {_one_line(str(error))} Try --help.\n")
        return 2
    except CommandError as error:
        sys.stderr.write(f"inferbus: {error}\n")
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    """Run what the process was asked for."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
