"""`python -m inferbus_logger`: runs the logger; with a word after it, one command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run what the command line says; commands do not wait for the imports of the service."""
    if len(sys.argv) == 1:
        from inferbus_kit.lifecycle import run_process  # noqa: PLC0415 -- see above
        from inferbus_logger.app import build  # noqa: PLC0415

        run_process("logger", build)
    from inferbus_logger import commands  # noqa: PLC0415

    sys.exit(commands.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
