"""Keeps child processes alive: start and wait until ready, restart with backoff, stop.

In: specs, in the order of their start. Out: for each a member whose state and restarts anyone may
read, and a call of `on_change` whenever a process begins, ends or becomes ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import signal
from typing import TYPE_CHECKING

from inferbus_dev import process
from inferbus_dev.errors import DISK_FULL, LauncherError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inferbus_dev.process import Child, ChildSpec

PROBE_INTERVAL_S = 0.05
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 15.0
# A run that served this long does not count towards the backoff of the next.
STEADY_S = 30.0


class State(enum.StrEnum):
    """What a member is doing."""

    STARTING = "starting"
    READY = "ready"
    BACKOFF = "waiting to restart"
    STOPPED = "stopped"


def backoff_s(failures: int) -> float:
    """Return the pause before a restart after `failures` short runs in a row (at least one)."""
    return float(min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 16)))


class Member:
    """One supervised child.

    Invariants: at most one process at a time; `restarts` counts runs after the first;
    `last_exit` is the exit code of the last run that ended unasked.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.state = State.STOPPED
        self.child: Child | None = None
        self.restarts = 0
        self.last_exit: int | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.became_ready = asyncio.Event()

    @property
    def name(self) -> str:
        """The name of the child."""
        return self.spec.name


class Supervisor:
    """All children of one launcher.

    Invariants: a member that was stopped is not restarted; `stop` of a group returns when every
    process of the group is gone; `changed` is set at each change of a member's state.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.members: dict[str, Member] = {}
        self.changed = asyncio.Event()
        self._on_change = on_change

    async def start(self, spec: ChildSpec) -> Member:
        """Start a child and return once it is ready.

        Raises LauncherError when it ends or is not ready in time; it is then gone.
        """
        if spec.name in self.members:
            raise LauncherError(f"{spec.name} runs already.")
        member = Member(spec)
        self.members[spec.name] = member
        offset = spec.log.stat().st_size if spec.log.exists() else 0
        try:
            child = await self._spawn(member)
            ready = await self._until_ready(member, child)
        except BaseException:
            await self._discard(member)
            raise
        if not ready:
            why = _why_not_ready(member, child, offset)
            await self._discard(member)
            raise LauncherError(why)
        member.keeper = asyncio.create_task(self._keep(member, child), name=f"keep {spec.name}")
        return member

    async def stop(self, names: Iterable[str]) -> None:
        """Stop these members side by side and forget them."""
        found = [self.members[name] for name in names if name in self.members]
        await asyncio.gather(*(self._discard(member) for member in found))

    async def restart(self, name: str) -> Member:
        """Stop a member in order and start it again."""
        spec = self.members[name].spec
        await self.stop([name])
        return await self.start(spec)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a member; after SIGKILL, `wait_ready` waits for the next run."""
        member = self.members[name]
        if number is signal.SIGKILL:
            member.became_ready.clear()
        if member.child is not None:
            member.child.signal(number)

    async def wait_ready(self, name: str) -> None:
        """Wait until a member is ready, over as many restarts as it takes."""
        await self.members[name].became_ready.wait()

    def kill_all(self) -> None:
        """Kill every process at once and wait for none."""
        for member in self.members.values():
            if member.child is not None:
                member.child.signal(signal.SIGKILL)
                process.end_session(member.child.pid, member.spec.log)

    async def _spawn(self, member: Member) -> Child:
        member.became_ready.clear()
        spawning = asyncio.ensure_future(process.Child.spawn(member.spec))
        try:
            member.child = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # A process that has begun must be known, or nobody would end it.
            with contextlib.suppress(OSError):
                member.child = await spawning
            raise
        self._enter(member, State.STARTING)
        return member.child

    async def _until_ready(self, member: Member, child: Child) -> bool:
        """Return True when the child is ready, False when it ended or its time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(member.spec.ready_timeout_s):
                while child.alive:
                    if await member.spec.ready() and child.alive:
                        self._enter(member, State.READY)
                        member.became_ready.set()
                        return True
                    await asyncio.sleep(PROBE_INTERVAL_S)
        return False

    async def _keep(self, member: Member, child: Child) -> None:
        """Restart the member's child whenever it ends, for as long as the member exists."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            served_since = loop.time()
            member.last_exit = await child.ended()
            failures = 1 if loop.time() - served_since >= STEADY_S else failures + 1
            while True:
                self._enter(member, State.BACKOFF)
                await asyncio.sleep(backoff_s(failures))
                try:
                    child = await self._spawn(member)
                except OSError:  # a full disk, no free descriptors: it may pass
                    failures += 1
                    continue
                member.restarts += 1
                if await self._until_ready(member, child):
                    break
                member.last_exit = await child.stop()
                failures += 1

    async def _discard(self, member: Member) -> None:
        if member.keeper is not None:
            member.keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await member.keeper
        if member.child is not None:
            await member.child.stop()
        self.members.pop(member.name, None)
        self._enter(member, State.STOPPED)

    def _enter(self, member: Member, state: State) -> None:
        member.state = state
        self.changed.set()
        if state is not State.READY:
            member.became_ready.clear()
        # Where the change cannot be written down, say on a full disk, the child is kept.
        with contextlib.suppress(OSError):
            self._on_change()


def _why_not_ready(member: Member, child: Child, offset: int) -> str:
    spec = member.spec
    lines = process.last_lines(spec.log, 20, since=offset)
    if any("No space left on device" in line for line in lines):
        return DISK_FULL
    what = "ended" if not child.alive else f"was not ready within {spec.ready_timeout_s:.0f} s"
    said = f", it last said: {lines[-1][:300]}" if lines else ""
    return (
        f"{spec.name} {what} as it started (its output stands in {spec.log.parent.name}/"
        f"{spec.log.name}{said})."
    )
