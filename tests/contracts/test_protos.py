"""The protos are clean, compatible with what was released, and what is generated is current."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "schemas"
BUF = Path(sys.executable).parent / "buf"


def _buf(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BUF), *args], cwd=SCHEMAS, capture_output=True, text=True, timeout=60, check=False
    )


def test_lint() -> None:
    result = _buf("lint")
    assert result.returncode == 0, result.stdout


def test_nothing_breaks_the_baseline() -> None:
    result = _buf("breaking", "--against", "baseline.binpb")
    assert result.returncode == 0, result.stdout


def test_the_baseline_knows_every_file() -> None:
    """Else what changes in a new file could never be called a break."""
    known = FileDescriptorSet.FromString((SCHEMAS / "baseline.binpb").read_bytes())
    proto = SCHEMAS / "proto"
    files = {path.relative_to(proto).as_posix() for path in proto.rglob("*.proto")}
    renew = "in schemas: buf build --exclude-source-info -o baseline.binpb"
    assert files == {one.name for one in known.file if one.name.startswith("inferbus/")}, renew


def test_a_break_is_found(tmp_path: Path) -> None:
    proto = tmp_path / "proto"
    for path in (SCHEMAS / "proto").rglob("*.proto"):
        target = proto / path.relative_to(SCHEMAS / "proto")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text().replace("uint32 ttl_ms = 6;", "string ttl_ms = 6;"))
    (tmp_path / "buf.yaml").write_text((SCHEMAS / "buf.yaml").read_text())
    result = _buf("breaking", str(tmp_path), "--against", "baseline.binpb")
    assert result.returncode != 0
    assert "ttl_ms" in result.stdout


def test_generated_code_is_current(tmp_path: Path) -> None:
    out = tmp_path / "gen"
    subprocess.run([sys.executable, str(SCHEMAS / "generate.py"), str(out)], check=True, timeout=60)
    stored = SCHEMAS / "inferbus_schemas" / "gen"
    fresh_files = {path.relative_to(out) for path in out.rglob("*.py*") if path.suffix != ".pyc"}
    stored_files = {
        path.relative_to(stored) for path in stored.rglob("*.py*") if path.suffix != ".pyc"
    }
    assert fresh_files == stored_files
    different = [
        str(name)
        for name in sorted(fresh_files)
        if not filecmp.cmp(out / name, stored / name, shallow=False)
    ]
    assert not different, "run `make proto`"
