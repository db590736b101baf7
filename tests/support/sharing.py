"""Which tests run in one worker of xdist: those of a file, and all that share a stack.

In: the ids of tests. Out: each one's group, the order of groups, a scheduler that keeps them whole.
A stack with its models costs a minute and two gigabytes, so the files that ask the same one for
answers run where it is; none of them depends on another, and each runs alone just as well.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

_SHARING = ("tests/conformance",)
"""Folders whose tests share a stack."""


LONGEST = (
    "tests/conformance",
    "tests/system/test_streams.py",
    "tests/chaos/test_kill_each_service.py",
    "tests/chaos/test_logger_kills.py",
    "tests/system/test_serving.py",
    "tests/gateway/test_submissions.py",
    "tests/fleet/test_whole_fleet.py",
    "tests/cli/test_cli.py",
    "tests/gateway/test_idempotency.py",
    "tests/system/test_make_up.py",
    "tests/worker/test_worker_kafka.py",
    "tests/worker/test_worker_faults.py",
    "tests/registry/test_keys.py",
    "tests/system/test_secrets.py",
    "tests/dev/test_launcher.py",
    "tests/registry/test_outages.py",
)
"""Groups that take minutes begin first, so that no worker ends long after the others."""


def group(nodeid: str) -> str:
    """Return the group of a test: its folder where that shares a stack, else its file."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in _SHARING if file.startswith(f"{folder}/")), file)


def rank(nodeid: str) -> tuple[int, bool]:
    """Return the place of a test's group in the order of groups, and whether it is last there.

    Most groups have the last place. Schemathesis unloads models and leaves jobs behind, so that in
    its group it comes last.
    """
    name = group(nodeid)
    place = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return place, nodeid.startswith("tests/conformance/test_openapi.py")


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """xdist's own by files, with larger groups; give it `--no-loadscope-reorder`."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
