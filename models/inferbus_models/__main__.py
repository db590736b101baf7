"""`python -m inferbus_models`: build the sample models, show their samples, record references.

In: a command line. Out: model folders, and lines that say what is being done.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from inferbus_models import build, recipes, samples

if TYPE_CHECKING:
    from collections.abc import Sequence

_KILOBYTES_SHOWN = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parser().parse_args(arguments)
    commands = {"build": _build, "samples": _samples, "record": _record}
    try:
        commands[options.command](options)
    except build.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inferbus_models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build model folders, unless they are up to date")
    building.add_argument("name", choices=[*recipes.RECIPES, "all"])
    building.add_argument("--out", type=Path, required=True, help="the folder for model folders")
    building.add_argument("--variant", type=int, default=1, help="2: a second breast-cancer")
    building.add_argument("--force", action="store_true", help="build even if it is up to date")
    showing = commands.add_parser("samples", help="print samples as JSON, one a line")
    showing.add_argument("name", choices=[*recipes.RECIPES])
    showing.add_argument("--folder", type=Path, required=True, help="the built model folder")
    recording = commands.add_parser("record", help="ask the original library again")
    recording.add_argument("name", choices=["minilm"])
    recording.add_argument(
        "--python",
        type=Path,
        required=True,
        help="an interpreter whose environment has sentence-transformers, torch and the weights",
    )
    return parser


def _build(options: argparse.Namespace) -> None:
    names = list(recipes.RECIPES) if options.name == "all" else [options.name]
    for number, name in enumerate(names, start=1):
        built = build.ensure(name, options.out, variant=options.variant, force=options.force)
        how = f"built in {built.seconds:.1f} s" if built.seconds else "up to date"
        print(
            f"[{number} of {len(names)}] {name}: {how}, {_size(built.size_bytes)}, "
            f"version {built.version_sha256[:12]}, in {built.folder}",
            flush=True,
        )


def _size(size_bytes: int) -> str:
    kilobytes = size_bytes / 1e3
    return f"{kilobytes:.0f} kB" if kilobytes < _KILOBYTES_SHOWN else f"{kilobytes / 1e3:.1f} MB"


def _samples(options: argparse.Namespace) -> None:
    for sample in samples.ask(options.name, options.folder):
        print(json.dumps(asdict(sample), ensure_ascii=False))


def _record(options: argparse.Namespace) -> None:
    minilm = importlib.import_module("inferbus_models.minilm")
    print(f"asking {options.python}: up to a minute", flush=True)
    try:
        moved = minilm.record(options.python)
    except minilm.RecordError as error:
        raise build.BuildError(str(error)) from error
    print(f"recorded {minilm.REFERENCE.name}; largest difference to the last record: {moved:.1e}")


if __name__ == "__main__":
    sys.exit(main())
