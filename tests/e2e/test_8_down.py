"""`down` ends all of the run and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from deploy.local.lineage import PROCESS_VARIABLE, RUN_VARIABLE, is_alive
from deploy.local.ports import port_answers
from deploy.local.supervised import read_snapshot
from tests.e2e.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's process that looks much like one of ours: same words, same variables, another run."""
    words = ["-m", "deploy.cli.main", "run", "prepare", "raylet", "kafka.Kafka"]
    command = [sys.executable, "-c", "import time; time.sleep(600)", *words]
    environment = {**os.environ, RUN_VARIABLE: "0" * 32, PROCESS_VARIABLE: "prepare"}
    with subprocess.Popen(command, env=environment) as process:
        yield process
        process.kill()


def test_down_ends_the_run_and_leaves_the_bystander(system: System, bystander: subprocess.Popen[bytes]) -> None:
    mine = system.processes()
    snapshot = read_snapshot(system.settings.data)
    assert len(mine) >= 10 and snapshot is not None
    supervisor = psutil.Process(snapshot.supervisor_pid)
    said = system.cli("down", timeout_s=120)
    assert said.code == 0, said.err
    assert system.processes() == []
    assert [process for process in [supervisor, *mine] if is_alive(process.pid, process.create_time())] == []
    assert bystander.poll() is None
    where = system.where
    for address in (where.bootstrap, urlsplit(where.clickhouse).netloc, urlsplit(where.http).netloc):
        assert not port_answers(int(address.rpartition(":")[2])), address


def test_down_keeps_the_data_and_may_be_said_twice(system: System) -> None:
    assert system.cli("down").code == 0
    assert {state.status for state in system.states().values()} == {"stopped"}
    said = system.cli("status", "--format", "json")
    assert said.code == 3 and {row["status"] for row in said.json} == {"stopped"}
    for kept in ("kafka", "clickhouse", "artifacts"):
        assert any((system.settings.data / kept).iterdir()), kept
