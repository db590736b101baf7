"""The commands of an operator: migrate, verify, get, rewind.

In: a command line and INFERBUS_POSTGRES_URL. Out: text, or JSON with --json, and an exit code:
0 done and well, 1 the log is not what it says or has no such row, 2 it could not be done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from inferbus_kit import settings as kit_settings
from inferbus_kit.errors import StartupError
from inferbus_logger.settings import PostgresSettings

if TYPE_CHECKING:
    from inferbus_logger.audit import AuditReport

WELL: Final = 0
NOT_WELL: Final = 1
NOT_DONE: Final = 2


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        return asyncio.run(_run(chosen, kit_settings.load(PostgresSettings)))
    except StartupError as error:
        sys.stderr.write(f"inferbus logger: {error}\n")
        return NOT_DONE


async def _run(chosen: argparse.Namespace, settings: PostgresSettings) -> int:
    """Run a command; each imports what it alone needs."""
    if chosen.command == "migrate":
        from inferbus_logger.migrate import migrate  # noqa: PLC0415 -- SQLAlchemy takes a second

        await migrate(settings.postgres_url)
        return WELL
    if chosen.command == "verify":
        return await _verify(chosen, settings)
    if chosen.command == "get":
        return await _get(chosen, settings)
    return await _rewind(chosen, settings)


async def _verify(chosen: argparse.Namespace, settings: PostgresSettings) -> int:
    from inferbus_logger import audit  # noqa: PLC0415 -- as above

    scope = audit.Scope(
        chosen.partition, chosen.from_offset, chosen.to_offset, payloads=not chosen.no_payloads
    )
    report = await audit.verify(settings.postgres_url, settings.log_topic, scope)
    if chosen.json:
        _write(json.dumps({"ok": report.ok, **asdict(report)}))
    else:
        _write(_told(report))
    return WELL if report.ok else NOT_WELL


def _told(report: AuditReport) -> str:
    lines = []
    for part in report.partitions:
        also = "".join(
            f", {count} {what}"
            for count, what in ((part.n_gaps, "gaps"), (part.n_retired, "rows retired"))
            if count
        )
        lines.append(
            f"partition {part.partition}: {part.n_rows} rows in {part.n_batches} batches up to "
            f"offset {part.next_offset}{also}, chain {part.chain[:16]}"
        )
    lines += [
        f"NOT AS WRITTEN: partition {each.partition}, era {each.era}, offset {each.offset}: "
        f"{each.what}"
        for each in report.findings
    ]
    n_rows = sum(part.n_rows for part in report.partitions)
    verdict = "the chain recomputes" if report.ok else f"{report.n_findings} places disagree"
    return "\n".join([*lines, f"{n_rows} rows: {verdict}"])


async def _get(chosen: argparse.Namespace, settings: PostgresSettings) -> int:
    from inferbus_logger.lookup import get_prediction  # noqa: PLC0415 -- as above

    try:
        found = await get_prediction(settings.postgres_url, settings.log_topic, chosen.id)
    except ValueError:
        raise StartupError("that is no request id: write it as x-request-id told it") from None
    if found is None:
        sys.stderr.write("inferbus logger: no request of this id has ended, or not yet\n")
        return NOT_WELL
    if chosen.json:
        _write(json.dumps(found))
    else:
        _write("\n".join(f"{name:18} {_short(value)}" for name, value in found.items()))
    return WELL


def _short(value: Any, limit: int = 200) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]} ... (--json shows all)"


async def _rewind(chosen: argparse.Namespace, settings: PostgresSettings) -> int:
    if not chosen.i_know_that_this_begins_a_new_era:
        raise StartupError(
            "a rewind reads records again and begins a new era of the partition's chain; rows "
            "stay as they are. Repeat with --i-know-that-this-begins-a-new-era"
        )
    from inferbus_logger.rewind import rewind  # noqa: PLC0415 -- as above

    done = await rewind(
        settings.postgres_url,
        settings.kafka_bootstrap,
        settings.log_topic,
        chosen.partition,
        chosen.to,
    )
    if chosen.json:
        _write(json.dumps(asdict(done)))
    else:
        _write(
            f"partition {done.partition}: was at offset {done.before}, is at {done.now} now, "
            f"era {done.era}; loggers that run take it up by themselves"
        )
    return WELL


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _place(text: str) -> int | None:
    if text == "earliest":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError("write an offset, or earliest")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inferbus_logger")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="make or upgrade the tables of the log")
    verify = commands.add_parser("verify", help="recompute the chain from the rows")
    verify.add_argument("--partition", type=int, action="append", help="only this; may repeat")
    verify.add_argument("--from-offset", type=int, help="only batches that reach this far")
    verify.add_argument("--to-offset", type=int, help="only batches that begin by here")
    verify.add_argument("--no-payloads", action="store_true", help="leave payloads unread")
    get = commands.add_parser("get", help="show one prediction")
    get.add_argument("id", help="the request id")
    rewind = commands.add_parser("rewind", help="read a partition again from another offset")
    rewind.add_argument("--partition", type=int, required=True)
    rewind.add_argument("--to", type=_place, required=True, metavar="OFFSET|earliest")
    rewind.add_argument("--i-know-that-this-begins-a-new-era", action="store_true")
    for command in (verify, get, rewind):
        command.add_argument("--json", action="store_true", help="one JSON object")
    return parser
