"""Tasks: what stands between a version's public tensors and its graph, inside the engine process.

In: a manifest's `task` and `task_settings`, and a folder with the version's files. Out: a `Task`.
"""

from __future__ import annotations

from pathlib import Path

from inferbus_schemas.manifest import Manifest
from inferbus_worker.tasks.base import Task, TaskError


def make(manifest: Manifest, folder: Path) -> Task:
    """Return the task of a version.

    Raises:
        TaskError: the settings are not those of the task; the message says which to mend.
    """
    # Each import is a library that the other tasks must not pay for.
    if manifest.task == "image-classification":
        from inferbus_worker.tasks.image import ImageTask  # noqa: PLC0415

        return ImageTask(manifest)
    if manifest.task == "text-embedding":
        from inferbus_worker.tasks.text import TextTask  # noqa: PLC0415

        return TextTask(manifest, folder)
    if manifest.task == "tabular-classification":
        from inferbus_worker.tasks.tabular import TabularTask  # noqa: PLC0415

        return TabularTask(manifest)
    from inferbus_worker.tasks.tensor import TensorTask  # noqa: PLC0415

    return TensorTask()


__all__ = ["Task", "TaskError", "make"]
