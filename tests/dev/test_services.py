"""What a user is told of a command of ours that failed, from what it said."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferbus_dev import services, show
from inferbus_dev.errors import DISK_FULL
from inferbus_registry.errors import StorageFullError


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("error: No space left on device: models/digits/model.onnx", DISK_FULL),
        (f"inferbus: {StorageFullError()}", DISK_FULL),
        ("error: no weights", "The sample models could not be served: error: no weights"),
    ],
)
def test_models_that_cannot_be_served(last: str, told: str) -> None:
    assert show.why_not_served(last) == told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("could not extend file: No space left on device\nended", DISK_FULL),
        (f"the tables are {services.NEWER} (revision 9): run that one", "or name another folder"),
        ("no such user", "stands in logs/registry-migrate.log, it last said: no such user)."),
        ("", "stands in logs/registry-migrate.log)."),
    ],
)
def test_tables_that_cannot_be_made(tmp_path: Path, said: str, told: str) -> None:
    log = tmp_path / "logs" / "registry-migrate.log"
    log.parent.mkdir()
    log.write_text(said)
    sentence = services.why_not_prepared(services.ROLES["registry"], log)
    assert told in sentence
    assert "\n" not in sentence
