"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.support import sharing

ROOT = Path(__file__).resolve().parents[2]
GENERATED = re.compile("inferbus_(schemas|gateway)/gen/")
HOSTS = re.compile(
    r"(files\.pythonhosted|pypi|repo1?\.maven|repo\.maven\.apache|registry\.npmjs|deb\.debian)"
    r"\.(org|com|net)|(?<!no-emit-)index-url|extra-index|find-links"
)
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(work|farm)/|/(root|home/[a-z]+)/")
UNSAFE = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {("yaml", "load"), ("torch", "load"), ("np", "load"), ("numpy", "load")}
UNSAFE_NAMES = {"eval", "exec"}
METRIC = re.compile("(Counter|Gauge|Histogram|Summary|Info|Enum|.*MetricFamily)$")


def _tracked(*patterns: str) -> list[Path]:
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split()
    return [ROOT / name for name in out if (ROOT / name).is_file()]


def _sources() -> list[Path]:
    return [path for path in _tracked("*.py") if not GENERATED.search(path.as_posix())]


def _shipped() -> list[Path]:
    outside = {"tests", "bench"}
    return [path for path in _sources() if path.relative_to(ROOT).parts[0] not in outside]


def _offences(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        if path == Path(__file__):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    return found


def test_no_tracked_file_names_a_registry_host() -> None:
    assert not _offences(HOSTS, _tracked())


def test_no_tracked_file_holds_a_machine_path() -> None:
    assert not _offences(MACHINE_PATH, _tracked())


def test_the_patterns_find_what_they_look_for() -> None:
    assert HOSTS.search("at files." + "pythonhosted.org/x")
    assert HOSTS.search("at repo.maven." + "apache.org/maven2")
    assert HOSTS.search("--extra-" + "index-url")
    assert not HOSTS.search("--no-emit-index-url")
    assert MACHINE_PATH.search('cwd = "/' + 'work/main"')
    assert MACHINE_PATH.search("/" + "root/.cache")
    assert not MACHINE_PATH.search("a/work/b network/work/")


def test_locks_have_hashes_and_no_addresses() -> None:
    locks = sorted((ROOT / "locks").glob("*.txt"))
    assert {path.stem for path in locks} == {"gateway", "control", "worker-cpu", "dev"}
    clients = sorted((ROOT / "tests" / "conformance" / "clients").glob("*.txt"))
    assert {path.with_suffix(".in") for path in clients} == set(clients[0].parent.glob("*.in"))
    for path in [*locks, *clients]:
        text = path.read_text()
        assert "://" not in text
        assert text.count("--hash=sha256:") > text.count("==") >= (2 if path in clients else 11)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "vllm", "nvidia", "river", "numpy"])
def test_the_gateway_carries_no_engine(name: str) -> None:
    lock = (ROOT / "locks" / "gateway.txt").read_text()
    assert not re.search(rf"(?m)^{name}[a-z0-9-]*==", lock)


def test_no_default_lock_carries_torch() -> None:
    for path in (ROOT / "locks").glob("*.txt"):
        assert not re.search(r"(?m)^(torch|nvidia-)", path.read_text())


def _lines_of_code(text: str) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    lines: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    fresh = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        docstring = token.type == tokenize.STRING and fresh
        if token.type not in skipped | {tokenize.ENDMARKER} and not docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
        if token.type not in {tokenize.COMMENT, tokenize.NL}:
            fresh = token.type in {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    return len(lines)


def test_lines_of_code_are_counted() -> None:
    assert (
        _lines_of_code('"""Doc."""\n\n# no\nx = 1\n\n\ndef f():\n    """Doc."""\n    y(\n    )\n')
        == 4
    )


def test_kit_stays_small_and_without_domain_words() -> None:
    paths = sorted((ROOT / "kit" / "inferbus_kit").glob("*.py"))
    lines = sum(_lines_of_code(p.read_text()) for p in paths if p.name != "metrics.py")
    assert 500 < lines < 1500
    domain = re.compile(r"(?i)\b(tensor|champion|challenger|canary|experiment|prediction)s?\b")
    assert not _offences(domain, [path for path in paths if path.name != "metrics.py"])


def test_modules_are_not_long() -> None:
    long = [p.relative_to(ROOT) for p in _sources() if len(p.read_text().splitlines()) > 400]
    assert not long


def test_tests_that_share_a_stack_run_in_one_worker() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in _tracked("tests/conformance/test_*.py")]
    assert {sharing.group(f"{name}::test_x") for name in names} == {"tests/conformance"}
    assert sharing.group("tests/kit/test_http.py::test_x[a/b]") == "tests/kit/test_http.py"
    for name in sharing.LONGEST:
        assert (ROOT / name).exists(), f"{name} is to run first and is not there"


def test_no_rooms_for_leftovers() -> None:
    names = {"utils", "util", "common", "helpers", "misc"}
    assert not [p for p in _sources() if p.stem in names or p.parent.name in names]


def test_nothing_that_arrives_is_unpickled_or_evaluated() -> None:
    found = []
    for path in _shipped():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [path for alias in node.names if alias.name.split(".")[0] in UNSAFE]
            elif isinstance(node, ast.ImportFrom):
                found += [path] if (node.module or "").split(".")[0] in UNSAFE else []
            elif isinstance(node, ast.Call):
                call = node.func
                if isinstance(call, ast.Name) and call.id in UNSAFE_NAMES:
                    found.append(path)
                if (
                    isinstance(call, ast.Attribute)
                    and isinstance(call.value, ast.Name)
                    and (call.value.id, call.attr) in UNSAFE_CALLS
                ):
                    found.append(path)
    assert not found


def test_only_who_takes_tokens_loads_what_verifies_them() -> None:
    """A process without a provider loads no cryptography: what needs it is imported when built."""
    needs = {"jwt", "cryptography", "inferbus_schemas.tokens", "inferbus_kit.tokens"}
    found = set()
    for path in _shipped():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named = {str(node.module), *(f"{node.module}.{one.name}" for one in node.names)}
            else:
                continue
            if named & needs:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"schemas/inferbus_schemas/tokens.py", "kit/inferbus_kit/tokens.py"}


def test_the_environment_is_read_in_settings_only() -> None:
    """Nothing is read from the environment at import, and services read it in one place."""
    allowed = {"settings.py", "failpoints.py", "child.py", "fail_points.py"}
    read = re.compile(r"os\.(environ(?!\[\"\w+\"\] = )|getenv)")
    of_services = {"services", "kit", "guard", "telemetry", "schemas"}
    found = []
    for path in _shipped():
        if path.relative_to(ROOT).parts[0] not in of_services:
            continue
        if path.name not in allowed and read.search(path.read_text()):
            found.append(path.relative_to(ROOT))
    assert not found


def _metrics_made(source: str) -> list[int]:
    """Return the lines on which metrics of `prometheus_client` are made."""
    tree = ast.parse(source)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            package = (node.module or "").partition(".")[0]
            found = [one for one in node.names if METRIC.match(one.name)]
        else:
            package = "prometheus_client"
            found = node.names if isinstance(node, ast.Import) else []
            found = [one for one in found if one.name.partition(".")[0] == package]
        if package == "prometheus_client":
            names |= {one.asname or one.name.partition(".")[0] for one in found}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).partition(".")[0] in names
        and METRIC.match(ast.unparse(node.func).rpartition(".")[2])
    ]


def test_metrics_are_named_in_one_module() -> None:
    assert _metrics_made("from prometheus_client import Counter as C, Gauge\nx: C\nGauge('a')") == [
        3
    ]
    assert _metrics_made("import prometheus_client as p\np.Counter('a')\np.start()") == [2]
    assert _metrics_made("import prometheus_client.core\nprometheus_client.core.Info('a')") == [2]
    assert not _metrics_made("from collections import Counter\nCounter('a')")
    metrics = ROOT / "kit" / "inferbus_kit" / "metrics.py"
    assert {path for path in _shipped() if _metrics_made(path.read_text())} == {metrics}


def _bases(path: Path) -> dict[str, set[str]]:
    """Return each class of a module, and the last word of each of its bases."""
    return {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }


def test_errors_with_a_code_stand_in_one_place_per_package() -> None:
    classes = {path: _bases(path) for path in _shipped()}
    coded = {"InferbusError"}
    while True:
        more = {
            name for found in classes.values() for name, bases in found.items() if bases & coded
        }
        if more <= coded:
            break
        coded |= more
    holders = [path for path, found in classes.items() if coded & found.keys()]
    assert not [path for path in holders if "errors" not in {path.stem, path.parent.name}]
    places = {path.parent if path.parent.name == "errors" else path for path in holders}
    packages = [path.parent.name for path in places]
    assert sorted(packages) == [
        "inferbus_gateway",
        "inferbus_kit",
        "inferbus_registry",
        "inferbus_worker",
    ]
