"""Makes `.venv` from the locks; the first thing that every make target runs.

In: any Python 3.6 or later with its standard library (so no newer syntax here), `locks/dev.txt`,
the projects' pyproject files. Out: an environment that has exactly what the lock says and our own
packages as editables, or one sentence that says what to do. Does nothing when nothing has changed.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

NEEDED = (3, 11)
UV = "0.13.9"
ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "locks" / "dev.txt"
STAMP = VENV / "inferbus-stamp"
UV_PROGRAM = VENV / "bin" / "uv"
# Packages of ours in the order in which they need each other.
PROJECTS = ("schemas", "guard", "telemetry", "kit", "services/*", "models", "cli", "dev")
DISK_FULL_SIGNS = ("No space left on device", "os error 28", "Errno 28")
NETWORK_SIGNS = (
    "error sending request",
    "dns error",
    "Failed to fetch",
    "Connection refused",
    "No matching distribution found for uv==",
    "Temporary failure in name resolution",
    "NewConnectionError",
    "tls handshake",
    "operation timed out",
)
# What a user wants to see of uv: not every package by name, and no error that we put in a sentence.
SHOWN = ("Downloading", "Downloaded", "Building", "Built", "Prepared", "Uninstalled", "Installed")


class StopError(Exception):
    """A reason to end, as a sentence for the user."""


def main() -> int:
    """Run all steps and return the exit code."""
    try:
        check_python()
        projects = find_projects()
        wanted = digest(projects)
        if read(STAMP) == wanted:
            return 0
        set_up(projects)
        STAMP.write_text(wanted, encoding="utf-8")
    except StopError as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    except OSError as error:
        sys.stderr.write(explain(str(error), "The environment could not be made") + "\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; run it again to go on.\n")
        return 130
    return 0


def check_python() -> None:
    """End where Python is too old or cannot make environments."""
    major, minor = sys.version_info[:2]
    if (major, minor) < NEEDED:
        raise StopError(
            f"Inferbus needs Python {NEEDED[0]}.{NEEDED[1]} or newer and this is {major}.{minor}: "
            "install a newer one and name it, for example `make up PYTHON=python3.12`."
        )
    try:
        import ensurepip  # noqa: F401, PLC0415 -- Debian and Ubuntu keep it in another package
        import venv  # noqa: F401, PLC0415
    except ImportError:
        raise StopError(
            "This Python cannot make environments: install its venv package (on Debian and Ubuntu "
            "`apt install python3-venv`) and run make again."
        ) from None


def find_projects() -> "list[pathlib.Path]":
    """Return the folders of our own packages, those that others need first."""
    found = [path for pattern in PROJECTS for path in sorted(ROOT.glob(pattern))]
    return [path for path in found if (path / "pyproject.toml").exists()]


def digest(projects: "list[pathlib.Path]") -> str:
    """Return a digest of all that the environment depends on."""
    parts = [UV, sys.version, str(ROOT)]
    for path in [LOCK, *(project / "pyproject.toml" for project in projects)]:
        parts += [str(path), read(path)]
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def read(path: pathlib.Path) -> str:
    """Return a file's text, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def set_up(projects: "list[pathlib.Path]") -> None:
    """Make the environment in three steps that a user can follow."""
    packages = len([line for line in read(LOCK).splitlines() if line[:1].isalnum()])
    say(1, f"making .venv and fetching uv {UV} (25 MB)")
    if not made_by_this_python():
        shutil.rmtree(str(VENV), ignore_errors=True)
        run([sys.executable, "-m", "venv", str(VENV)])
    fetch_uv()
    say(2, f"fetching what is missing of {packages} locked packages (at most some 0.5 GB)")
    sync = [str(UV_PROGRAM), "pip", "sync", "--system-certs", "-p", str(PYTHON), str(LOCK)]
    run(sync, shown=True)
    say(3, f"linking our own {len(projects)} packages")
    editables = [part for project in projects for part in ("-e", str(project))]
    quietly = ["--offline", "--no-deps", "--no-build-isolation", "--quiet"]
    run([str(UV_PROGRAM), "pip", "install", "-p", str(PYTHON), *quietly, *editables])


def made_by_this_python() -> bool:
    """Say whether the environment is there and belongs to this Python's minor version."""
    for line in read(VENV / "pyvenv.cfg").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "version":
            major, minor = sys.version_info[:2]
            return PYTHON.exists() and value.strip().startswith(f"{major}.{minor}.")
    return False


def fetch_uv() -> None:
    """Install uv unless the pinned one is there."""
    try:
        said = subprocess.run(
            [str(UV_PROGRAM), "--version"], stdout=subprocess.PIPE, check=True
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        said = ""
    if UV not in said.split():
        run([str(PYTHON), "-m", "ensurepip"])
        run([str(PYTHON), "-m", "pip", "install", "--quiet", f"uv=={UV}"])


def say(number: int, what: str) -> None:
    """Show a step and when it begins."""
    sys.stdout.write(f"[{number}/3] {time.strftime('%H:%M:%S')}  {what}\n")
    sys.stdout.flush()


def run(command: "list[str]", *, shown: bool = False) -> None:
    """Run a step; what it says is passed on where `shown`, and explains a failure."""
    step = subprocess.Popen(
        command, cwd=str(ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said = []
    for raw in step.stderr or ():
        line = raw.decode("utf-8", "replace")
        said.append(line)
        if shown and line.startswith(SHOWN):
            sys.stderr.write(line)
            sys.stderr.flush()
    if step.wait() != 0:
        name = " ".join(os.path.basename(part) for part in command[:4])  # noqa: PTH119 -- flags too
        raise StopError(explain("".join(said), f"`{name}` failed"))


def explain(said: str, what: str) -> str:
    """Return one sentence for a failure."""
    if any(sign in said for sign in DISK_FULL_SIGNS):
        return "The disk is full: free some space (3 GB are needed in all) and run make again."
    if any(sign in said for sign in NETWORK_SIGNS):
        return (
            "Packages could not be downloaded: check the network (or the proxy settings) and run "
            "make again; what has arrived is kept."
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1].rstrip(".") if lines else "it said nothing"
    return f"{what}: {last}."


if __name__ == "__main__":
    sys.exit(main())
