"""`python -m inferbus_dev`: the command behind `make up`.

In: flags and the environment. Out: a running stack with progress on the terminal, or one sentence
that says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App
from rich.console import Console
from rich.live import Live
from rich.text import Text

from inferbus_dev import jars, show, status, terminal
from inferbus_dev.errors import DISK_FULL, LauncherError
from inferbus_dev.paths import KAFKA_FILES, PROJECT, default_state_dir
from inferbus_dev.seating import DEFAULT_PORT_BASE
from inferbus_dev.stack import Stack
from inferbus_dev.topics import create_topics

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

STATUS_INTERVAL_S = 1.0
PLAIN_STATUS_INTERVAL_S = 10.0
_STOPPED_BY_SIGNAL = 130

app = App(name="inferbus_dev", help="Inferbus on one machine.", version_flags=[])


@app.command
def up(
    *,
    port_base: int = DEFAULT_PORT_BASE,
    only: str | None = None,
    models: bool = True,
    java: Path | None = None,
    state_dir: Path | None = None,
) -> int:
    """Start everything, show sample models at work, stay until Ctrl-C.

    Args:
        port_base: HTTP listens here, gRPC, metrics and control plane on the three ports above.
        only: Parts to start, comma-separated: kafka, postgres, valkey, registry, gateway, worker,
            logger.
        models: Register the sample models and send them inputs.
        java: A Java program or home folder to use instead of the one that comes along.
        state_dir: Folder of all state; .inferbus in the checkout unless given.
    """
    console = Console()
    return _guarded(_Session(console, models=models).run(port_base, only, java, state_dir))


@app.command
def topics(
    bootstrap: str,
    *,
    pool: str = "default",
    profile: Literal["one-machine", "production"] = "one-machine",
) -> int:
    """Make the topics of the catalogue on a broker.

    Args:
        bootstrap: Brokers as host:port, comma-separated.
        pool: Pools whose topics to make, comma-separated.
        profile: Which partition counts and replication of the catalogue to take.
    """
    return _guarded(_make_topics(bootstrap, tuple(pool.split(",")), profile))


@app.command
def lock_jars() -> int:
    """Resolve dev/kafka/jgo.toml anew; needs the network."""

    async def resolve() -> int:
        lock = KAFKA_FILES / "jgo.lock.toml"
        count = await asyncio.to_thread(jars.write_lock, KAFKA_FILES / "jgo.toml", lock)
        print(f"{count} jars in {lock.relative_to(PROJECT)}")
        return 0

    return _guarded(resolve())


class _Session:
    """One `make up`, from the first line to the last.

    Invariants: the first signal stops in order, the second kills at once; no process is left
    after `run`.
    """

    def __init__(self, console: Console, *, models: bool) -> None:
        self._console = console
        self._models = models
        self._stack: Stack | None = None
        self._stopping = False

    async def run(
        self, port_base: int, only: str | None, java: Path | None, state_dir: Path | None
    ) -> int:
        """Start, show, wait, stop; returns the exit code."""
        self._stack = stack = Stack(
            state_dir or default_state_dir(),
            port_base=port_base,
            only=frozenset(only.split(",")) if only else None,
            kafka_bootstrap=os.environ.get("INFERBUS_KAFKA_BOOTSTRAP") or None,
            postgres_url=os.environ.get("INFERBUS_POSTGRES_URL") or None,
            valkey_url=os.environ.get("INFERBUS_VALKEY_URL") or None,
            java=java,
        )
        serving = asyncio.ensure_future(self._serve(stack))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, serving)
        try:
            await serving
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            await self._stop(stack)
        return 0

    def _on_signal(self, serving: asyncio.Future[None]) -> None:
        if self._stopping:
            if self._stack is not None:
                self._stack.supervisor.kill_all()
            os._exit(_STOPPED_BY_SIGNAL)
        self._stopping = True
        self._console.print("\nStopping in order; Ctrl-C again kills at once.")
        serving.cancel()

    async def _serve(self, stack: Stack) -> None:
        self._console.print("Inferbus starts on this machine. Ctrl-C stops it, at any time.")
        with terminal.report(self._console) as report:
            stack.report = report
            await stack.start()
            shown = await show.ask_models(stack, report) if self._models else []
        show.show_answers(shown, self._console)
        show.show_addresses(stack, self._console)
        await self._watch(stack)

    async def _watch(self, stack: Stack) -> None:
        """Keep the status line current until cancelled: at each interval and each change."""
        window = status.Window()
        said = ""
        terminal_line = self._console.is_terminal
        interval_s = STATUS_INTERVAL_S if terminal_line else PLAIN_STATUS_INTERVAL_S
        changed = stack.supervisor.changed
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                changed.clear()
                reading = await status.read(stack.metrics_ports())
                members = stack.supervisor.members.values()
                if terminal_line:
                    line = window.line(reading, members, self._console.width, "Ctrl-C stops")
                    live.update(Text(line, no_wrap=True), refresh=True)
                elif (line := window.line(reading, members)) != said:
                    print(line, flush=True)
                said = line
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await changed.wait()

    async def _stop(self, stack: Stack) -> None:
        with terminal.report(self._console) as report:
            stack.report = report
            await stack.stop()


async def _make_topics(
    bootstrap: str, pools: tuple[str, ...], profile: Literal["one-machine", "production"]
) -> int:
    from inferbus_schemas import topics as catalogue  # noqa: PLC0415 -- `up` need not wait for it

    wanted = catalogue.to_create(pools, profile)
    await create_topics(
        bootstrap, [(one.name, one.partitions, one.replication, one.config) for one in wanted]
    )
    print(f"{len(wanted)} topics are there.")
    return 0


def _guarded(work: Coroutine[Any, Any, int]) -> int:
    """Run a command; every failure that a user can mend becomes its sentence."""
    # Its warnings about brokers that are not there yet are no sentences for a user.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(work)
    except LauncherError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        print(DISK_FULL, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _STOPPED_BY_SIGNAL


if __name__ == "__main__":
    sys.exit(app())
