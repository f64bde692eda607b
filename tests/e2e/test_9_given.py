"""The loop goes round where Kafka and ClickHouse are somebody else's: a broker that asks for SASL, a ClickHouse with users.

Nothing is started but our own processes, which have the credentials from the files that the settings name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from deploy import settings as settings_module
from deploy.cli.output import PlainConsole
from deploy.demo import story
from deploy.demo.stage import Stage
from deploy.local import supervise
from schemas.policy import ModelPolicy
from streams import kafka_security
from streams.clickhouse import credentials
from streams.register import read_registry
from tests.e2e.system import MODEL, small_plan, write_config


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_the_loop_goes_round_on_a_broker_and_a_clickhouse_that_ask_who_comes(
    kafka_bootstrap: str, clickhouse_url: str, tmp_path: Path
) -> None:
    who, plan = credentials(), small_plan(ModelPolicy())
    config = write_config(plan, tmp_path)
    given = {
        "kafka_bootstrap": kafka_bootstrap, "kafka_config": os.environ[kafka_security.VARIABLE],
        "clickhouse_url": clickhouse_url, "clickhouse_user": who.user, "clickhouse_password_file": who.password_file,
    }  # fmt: skip
    lines = "".join(f'{name} = "{value}"\n' for name, value in given.items())
    config.write_text(lines + config.read_text())
    stage = Stage(settings_module.load({"config": str(config)}, {}), plan, PlainConsole(file=sys.stderr, width=160))
    try:
        story.start(stage)
        started = {state.name for state in supervise.status(stage.settings.data)}
        assert not started & {"kafka", "clickhouse"} and "work" in started
        desk, _ = story.loop_once(stage)
        assert desk.failures == [] and desk.latest_version == 2
        assert read_registry(kafka_bootstrap)[0][MODEL].champion == 2
    finally:
        supervise.stop(stage.settings.data)
