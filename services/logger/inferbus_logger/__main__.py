"""`python -m inferbus_logger`: runs the logger; with a word after it, one command."""

from __future__ import annotations

import sys

from inferbus_kit import settings as kit_settings
from inferbus_kit.lifecycle import Lifecycle, run_process
from inferbus_kit.telemetry import configure_logs


async def build(lifecycle: Lifecycle) -> None:
    """Read the settings and add the logger's stages."""
    from inferbus_logger import app, settings, wiring  # noqa: PLC0415 -- commands need less

    chosen = kit_settings.load(settings.LoggerSettings)
    configure_logs(chosen.log_level, service="logger", instance=chosen.instance)
    app.add_stages(wiring.build(chosen), lifecycle)


def main() -> None:
    """Run what the command line says."""
    if len(sys.argv) == 1:
        run_process("logger", build)
    from inferbus_logger import commands  # noqa: PLC0415 -- the logger itself needs none

    sys.exit(commands.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
