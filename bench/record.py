"""Stored results: figures with the machine, the versions and the command that made them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("aiokafka", "uvicorn", "fastapi", "msgspec", "onnxruntime", "protobuf", "asyncpg")


def machine() -> dict[str, Any]:
    """Return what the figures depend on, without names of hosts or folders."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average_1m": round(os.getloadavg()[0], 2),
    }


def store(name: str, figures: Any) -> Path:
    """Write `bench/results/<name>.json` and return its path."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    whole = {
        "benchmark": name,
        "command": "python -m " + " ".join(["bench", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "machine": machine(),
        "versions": {package: version(package) for package in _PACKAGES},
        "figures": figures,
    }
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return path


def reset_peak(pid: int) -> None:
    """Begin anew to look for the most memory of a process, where the system can."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pid: int) -> float:
    """Return the most resident memory of a process since `reset_peak`; 0 where none can tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return round(int(kib) / 1024, 1)


def memory_mib(pids: list[int]) -> float:
    """Return the proportional memory of processes and their children, in MiB."""
    seen: dict[int, float] = {}
    for pid in pids:
        try:
            parent = psutil.Process(pid)
            for each in [parent, *parent.children(recursive=True)]:
                full = each.memory_full_info()
                seen[each.pid] = getattr(full, "pss", full.rss) / 2**20
        except psutil.NoSuchProcess:
            continue
    return round(sum(seen.values()), 1)


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process and its living children have used."""
    found = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for each in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                found += times.user + times.system
    return found
