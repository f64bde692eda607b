"""Real parts for the whole run: one Kafka broker and one ClickHouse engine, started when a test first asks.

Tests share them, so each makes its own: a fresh topic, group, transactional id or model (`tests.broker`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings as hypothesis_settings

from deploy.local import kafka as local_kafka
from deploy.local.errors import LocalPartError
from streams import kafka, kafka_security, transaction
from streams.clickhouse import PASSWORD_FILE_VARIABLE, USER_VARIABLE
from tests import parts


@pytest.fixture(scope="session", autouse=True)
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every broker of this run asks for one credential, and whoever is started by a test has it too."""
    with pytest.MonkeyPatch.context() as patch:
        credential = tmp_path_factory.mktemp("secrets") / "kafka"
        local_kafka.make_credential(credential)
        patch.setenv(kafka_security.VARIABLE, str(credential))
        yield


@pytest.fixture(autouse=True)
def credentials_stay(credentials: None) -> Iterator[None]:
    """A command that a test calls within this process has the credentials of its own settings, and only so long."""
    names = (kafka_security.VARIABLE, USER_VARIABLE, PASSWORD_FILE_VARIABLE, "TUNELOOP_IDENTITY_SECRET_FILE")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


# Limits of milliseconds say how busy the machine is; what may not be slow has a test of its own. `make test-long` tries
# the fuzzers with many more.
hypothesis_settings.register_profile("here", deadline=None, max_examples=30)
hypothesis_settings.register_profile("long", deadline=None, max_examples=1_000)
hypothesis_settings.load_profile("here")


def a_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a broker that has every topic of `schemas.topics`."""
    try:
        local_kafka.fetch_jars()
    except LocalPartError as error:
        pytest.skip(str(error))
    with parts.broker(tmp_path_factory.mktemp("kafka")) as bootstrap:
        yield bootstrap


kafka_bootstrap = pytest.fixture(scope="session")(a_broker)
# For a module whose records would be others' backlog, or theirs its own.
own_bootstrap = pytest.fixture(scope="module")(a_broker)


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Loops run inside the tests' own process, which a limit for a busy machine's requests would end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka, "TRANSACTION_LIMIT_S", 60.0)
        patch.setattr(kafka, "COMMIT_LIMIT_S", 60.0)
        patch.setattr(transaction, "START_OVER_LIMIT_S", 60.0)
        yield


@pytest.fixture(scope="session")
def clickhouse_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a ClickHouse that has every migration applied."""
    with parts.clickhouse(tmp_path_factory.mktemp("clickhouse")) as url:
        yield url


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Without the thousands of lines in which librdkafka says that a broker which a test has killed is away."""
    report = yield
    report.sections = [
        (title, "".join(line for line in text.splitlines(keepends=True) if "|rdkafka#" not in line))
        for title, text in report.sections
    ]
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line of `make test-long` is one JSON object."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and config.option.markexpr.startswith("long"):
        counts = {name: len(reporter.stats.get(name, ())) for name in ("passed", "failed", "skipped")}
        counts["failed"] += len(reporter.stats.get("error", ()))
        print(json.dumps(counts))
