"""Fixtures that every folder of tests may use; what they do stands in tests/support."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from xdist.remote import Producer

from tests.support import servers, sharing, skips

if TYPE_CHECKING:
    from collections.abc import Iterator

# Brokers that live for seconds: what Java's second compiler would gain they never see, and what it
# costs is a quarter of all that a test of a whole stack computes.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
# Tests call gateways over gRPC and start processes by fork: a child that runs gRPC's handlers of
# forks may stand still for ever before it has begun its program.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# As in the Makefile, where pytest is run by hand: none of hundreds of processes compiles anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> sharing.Scheduling:
    """Keep the tests that share a stack in one worker."""
    return sharing.Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: sharing.rank(item.nodeid))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `.ci/run` asks for."""
    said = "fail where a test is skipped for another reason than what this machine lacks"
    parser.addoption("--strict-skips", action="store_true", help=said)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a strict run in which something was skipped without a reason that is known."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _no_excuses(session.config, reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was not tested."""
    if found := skips.reasons(terminalreporter.stats):
        no_excuses = _no_excuses(config, terminalreporter)
        terminalreporter.section("not tested on this machine", red=True, bold=True)
        for reason, n_tests in sorted(found.items()):
            verdict = " (no excuse: this run fails)" if reason in no_excuses else ""
            terminalreporter.line(f"{n_tests} skipped: {reason}{verdict}")


def _no_excuses(config: pytest.Config, reporter: pytest.TerminalReporter) -> set[str]:
    if not config.getoption("--strict-skips"):
        return set()
    return skips.without_excuse(skips.reasons(reporter.stats))


@pytest.fixture(scope="session")
def infra() -> Iterator[servers.Infra]:
    """Real Kafka, Postgres and Valkey, once a session, on free ports."""
    with servers.infra_process() as running:
        yield running


@pytest.fixture(scope="session")
def kafka_bootstrap(infra: servers.Infra) -> str:
    """The address of the session's broker; topics: `servers.fresh_topics`."""
    return infra.kafka


@pytest.fixture(scope="session")
def postgres_url(infra: servers.Infra) -> str:
    """The URL of the session's database; shared, so prefer `postgres_database`."""
    return infra.postgres


@pytest.fixture(scope="session")
def valkey_url(infra: servers.Infra) -> str:
    """The URL of the session's Valkey; shared, so keys carry a name of the test's own."""
    return infra.valkey


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of this test alone."""
    with asyncio.Runner() as runner:
        context = servers.fresh_database(postgres_url)
        url = runner.run(context.__aenter__())
        try:
            yield url
        finally:
            runner.run(context.__aexit__(None, None, None))
