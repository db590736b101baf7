"""Makes the topics of the catalogue on a broker, for the launcher.

In: names, partitions, replication and settings. Out: topics with leaders, or a `LauncherError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferbus_dev.errors import LauncherError
from inferbus_kit.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


async def create_topics(
    bootstrap: str,
    wanted: Iterable[tuple[str, int, int, Mapping[str, str]]],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Create the topics that are missing; raises LauncherError where that fails."""
    from inferbus_kit import topics  # noqa: PLC0415 -- aiokafka, which the first line waits not for

    try:
        await topics.create_topics(bootstrap, wanted, on_progress=on_progress)
    except StartupError as error:
        raise LauncherError(str(error)) from error
