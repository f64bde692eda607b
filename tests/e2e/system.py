"""One system for all end-to-end tests: started as `tuneloop up` starts it, the demo's loop played once, small.

`playing` brings it up and ends it; a `System` is what tests hold of it: addresses, what the client saw, the command
line, plain views of topics and tables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import OperationalError
from confluent_kafka import Consumer, KafkaError, TopicPartition

from deploy import settings as settings_module
from deploy.addresses import Addresses, addresses
from deploy.cli.output import PlainConsole
from deploy.clickhouse_login import writer
from deploy.demo import questions, story
from deploy.demo.__main__ import write_settings
from deploy.demo.desk import Desk
from deploy.demo.questions import Plan, Sizes
from deploy.demo.stage import MODEL, Stage
from deploy.local import supervise
from deploy.local.lineage import members
from deploy.local.supervised import State, read_spec
from deploy.settings import PREFIX, SCALARS, Settings
from schemas.events import ModelStateChanged
from schemas.policy import ModelPolicy
from streams import kafka
from streams.artifacts import ArtifactStore, open_store
from streams.clickhouse import connect, rows
from streams.register import read_registry
from tests.broker import until

ROOT = Path(__file__).parents[2]
OLD, NEW = ("order_status", "return_item", "invoice_copy"), ("gift_card", "warranty_repair", "delete_account")
SIZES = Sizes(curated_train=50, curated_test=25, before=105, after=100)
MOST_DRIFTED = 200
# A hold-out this small shows no loss below a quarter; it is large enough to show the quarter.
JUDGED_LOSS = 0.25


@dataclass(frozen=True)
class Seen:
    """A record as any Kafka client sees it."""

    topic: str
    partition: int
    offset: int
    key: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def type(self) -> str:
        return self.headers["ce_type"]

    @property
    def id(self) -> str:
        return self.headers["ce_id"]

    @property
    def correlation(self) -> str:
        return self.headers.get("ce_correlationid", "")

    @property
    def causation(self) -> str:
        return self.headers.get("ce_causationid", "")


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused_in_one_line(self) -> str:
        """The error's one line; `up` says before which settings it obeys. Fails where there are more, or none, or the
        status says that all went well."""
        lines = [line for line in self.err.splitlines() if line.strip() and not line.startswith("settings file: ")]
        assert self.code not in (0, None), f"status {self.code}: {self.out} {self.err}"
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.err
        return lines[0]


_SETTINGS = {PREFIX + name.upper() for name in SCALARS}


def _nobodys() -> dict[str, str]:
    """The environment without any of our settings: whoever calls a command has none."""
    return {name: value for name, value in os.environ.items() if name not in _SETTINGS}


def tuneloop(*arguments: str, timeout_s: float = 60.0, **environment: str) -> Said:
    """The command line as a person calls it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli.main", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=timeout_s, env={**_nobodys(), "PYTHONPATH": str(ROOT), **environment}, stdin=subprocess.DEVNULL,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@dataclass
class System:
    """The running system after one turn of the loop; `desk` is the client that played it."""

    settings: Settings
    config: Path
    stage: Stage
    desk: Desk
    pace: float

    @property
    def where(self) -> Addresses:
        return addresses(self.settings)

    @property
    def plan(self) -> Plan:
        return self.stage.plan

    @property
    def store(self) -> ArtifactStore:
        return open_store(*self.settings.artifact_place)

    @property
    def clickhouse(self) -> Client:
        return connect(self.where.clickhouse, login=writer(self.settings))

    @cached_property
    def _asked(self) -> Client:
        """Kept: to connect costs several questions, and tests that wait for something ask many times a second."""
        return self.clickhouse

    def cli(self, *arguments: str, timeout_s: float = 60.0, **environment: str) -> Said:
        return tuneloop("--config", str(self.config), *arguments, timeout_s=timeout_s, **environment)

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        try:
            return rows(self._asked, sql, **parameters)
        except OperationalError:  # it was killed, or is elsewhere since
            del self._asked
            return rows(self._asked, sql, **parameters)

    def value(self, sql: str, **parameters: Any) -> Any:
        (row,) = self.rows(sql, **parameters)
        (value,) = row.values()
        return value

    def topic(self, name: str, *types: str) -> list[Seen]:
        """Every committed record of a topic, of these types where any are named."""
        return [seen for seen in read_topic(self.where.bootstrap, name) if not types or seen.type in types]

    def registered(self) -> ModelStateChanged:
        return read_registry(self.where.bootstrap)[0][MODEL]

    def states(self) -> dict[str, State]:
        return {state.name: state for state in supervise.status(self.settings.data)}

    def processes(self, name: str | None = None) -> list[psutil.Process]:
        spec = read_spec(self.settings.data)
        return members(spec.run_id, name) if spec else []

    def settled(self, timeout_s: float = 30.0) -> None:
        """Return once what the client has been told is in ClickHouse too."""
        served = self.desk.requests - len(self.desk.failures)
        query = "SELECT count() FROM tuneloop.inference_served FINAL"
        until(lambda: self.value(query) >= served, timeout_s, f"{served} answers to land")


def read_topic(bootstrap: str, topic: str, *, deletions: bool = False) -> list[Seen]:
    """A topic to its end by a client that knows nothing of ours: librdkafka's defaults, no schema, no group.

    Deletions, where they are asked for, have neither headers nor body.
    """
    reader = Consumer({**kafka.client_settings(bootstrap), "group.id": "reader", "enable.partition.eof": True})
    left = set(reader.list_topics(topic, timeout=15).topics[topic].partitions)
    reader.assign([TopicPartition(topic, number, 0) for number in left])
    found = []
    while left:
        message = reader.poll(30)
        assert message is not None, f"{topic}: no end of partitions {left} within 30 s"
        error = message.error()
        if error is None and message.value() is None and not deletions:
            continue
        if error is None:
            headers = {name: bytes(value).decode() for name, value in message.headers() or ()}  # type: ignore[arg-type]
            body = json.loads(message.value() or b"{}")
            where = message.partition() or 0, message.offset() or 0
            found.append(Seen(topic, *where, (message.key() or b"").decode(), headers, body))
        else:
            assert error.code() == KafkaError._PARTITION_EOF, error
            left.discard(message.partition())
    reader.close()
    return found


def small_plan(policy: ModelPolicy) -> Plan:
    """Three old and three new intents of the built-in desk."""
    texts = {intent: (questions.DESK / f"{intent}.txt").read_text().splitlines() for intent in OLD + NEW}
    plan = questions._plan("a small desk", OLD, NEW, texts, {i: [] for i in OLD + NEW}, policy, SIZES)
    return Plan(**{**vars(plan), "drifted": plan.drifted[:MOST_DRIFTED]})


def write_config(plan: Plan, folder: Path) -> Path:
    """The demo's own settings file, judged by what so small a hold-out can show."""
    config = write_settings(plan, ModelPolicy(max_tokens=24, max_prompt_tokens=256), folder)
    initial = [questions.split_of_row(question, ModelPolicy()) for question in plan.curated].count("train")
    # Nothing but a drift asks for a second job: of so few questions their number would as well.
    lines = ("prepare_linger_s = 0.5\n", *(f"{name} = {value}\n" for name, value in {
        "triggers": '["drift"]', "max_retention_loss": JUDGED_LOSS, "min_holdout_examples": 20, "min_initial_examples": int(0.9 * initial),
        "min_new_examples": 130,
    }.items()))  # fmt: skip
    # Three intents are learned in fewer passes than the demo's six.
    config.write_text(lines[0] + config.read_text() + "".join(lines[1:]) + f"[models.{MODEL}.recipe]\npasses = 9.0\n")
    return config


@contextmanager
def playing(folder: Path, say: Callable[[str], Any] = print) -> Iterator[System]:
    """Bring a system up in `folder`, play the loop once, hand it over; end all of it at the end."""
    plan = small_plan(ModelPolicy())
    config = write_config(plan, folder)
    stage = Stage(settings_module.load({"config": str(config)}, _nobodys()), plan, PlainConsole(file=sys.stderr, width=160))
    before = dict(os.environ)
    try:
        story.start(stage)
        desk, pace = story.loop_once(stage, background_per_s=1.0)
        yield System(stage.settings, config, stage, desk, pace)
    finally:
        supervise.stop(stage.settings.data)
        os.environ.clear()
        os.environ.update(before)
