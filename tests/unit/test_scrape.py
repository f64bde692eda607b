"""`tuneloop status`: what is read from a scrape, where the ports are, and a table that fits a terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from deploy import local_run
from deploy.addresses import METERED, addresses, choose_ports, metrics_port, metrics_urls
from deploy.cli import lifecycle, output
from deploy.cli.lifecycle import status_row
from deploy.cli.output import Format, show
from deploy.local import supervise
from deploy.local.ports import free_ports
from deploy.local.supervised import State
from deploy.processes import CONSUMERS
from deploy.scrape import Said, read, scrape
from deploy.settings import Settings, load
from serving.metrics import ReplicaMetrics
from streams import metrics

SCRAPE = """# TYPE tuneloop_process_info gauge
tuneloop_process_info{name="prepare",version="0.1.0"} 1.0
# TYPE tuneloop_records_per_second gauge
tuneloop_records_per_second 12.5
# TYPE tuneloop_records_dropped_total counter
tuneloop_records_dropped_total{reason="duplicate"} 3.0
tuneloop_records_dropped_total{reason="empty"} 4.0
# TYPE tuneloop_dead_letters_total counter
tuneloop_dead_letters_total{group="prepare",topic="training.raw"} 2.0
# TYPE tuneloop_lag_records gauge
tuneloop_lag_records{partition="0",topic="training.raw"} 5.0
tuneloop_lag_records{partition="1",topic="training.raw"} 6.0
"""


def test_figures_are_summed_over_reasons_and_partitions() -> None:
    assert read("prepare", SCRAPE) == Said(records_per_s=12.5, dropped=7, dead=2, lag=11)


def test_lag_that_is_not_said_is_not_taken_for_zero() -> None:
    without = "\n".join(line for line in SCRAPE.splitlines() if "lag" not in line) + "\n"
    assert read("prepare", without) == Said(records_per_s=12.5, dropped=7, dead=2, lag=None)


@pytest.mark.parametrize("text", ["", "up 1\n", SCRAPE.replace('"prepare"', '"gate"')])
def test_another_process_on_the_port_is_not_taken_for_this_one(text: str) -> None:
    assert read("prepare", text) is None


def test_what_is_no_scrape_is_refused() -> None:
    with pytest.raises(ValueError):
        read("prepare", "<html>not found</html>\n")


def test_what_the_real_registries_say_is_understood() -> None:
    metrics.listen("work", "127.0.0.1", 0)
    said = read("work", generate_latest(metrics.registry).decode())
    assert said is not None and said.records_per_s is not None and said.dead is not None
    assert read("serve", ReplicaMetrics("replica-1").exposed().decode()) == Said(0.0, None, None, None)


def test_whoever_does_not_answer_has_nothing_to_say() -> None:
    urls = {name: f"http://127.0.0.1:{port}/metrics" for name, port in zip(("prepare", "gate"), free_ports(2), strict=True)}
    assert scrape(urls) == {} and scrape({}) == {}


def settings_in(folder: Path, **more: object) -> Settings:
    return Settings(data_dir=str(folder), **more)  # type: ignore[arg-type]


def test_each_process_keeps_a_port_of_its_own(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    ports = choose_ports(settings)
    own = {name: metrics_port(ports, name) for name in METERED}
    assert len(set(ports.values())) == len(ports) and 0 not in own.values()
    assert set(METERED) == set(CONSUMERS) - {"serve"} and metrics_port(ports, "serve") == 0
    assert choose_ports(settings) == ports, "kept over restarts"
    urls = metrics_urls(settings)
    assert urls["gate"] == f"http://127.0.0.1:{own['gate']}/metrics"
    assert urls["serve"] == f"{addresses(settings).http}/metrics"


def test_ports_noted_before_there_were_metrics_are_kept(tmp_path: Path) -> None:
    noted = dict(zip(("kafka", "clickhouse", "http"), free_ports(3), strict=True))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ports.json").write_text(json.dumps(noted))
    ports = choose_ports(settings_in(tmp_path))
    assert noted.items() <= ports.items() and len(set(ports.values())) == len(ports)


def test_prometheus_is_told_who_listens_where(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, metrics_host="::1")
    ports = choose_ports(settings)
    targets = json.loads((tmp_path / "run" / "prometheus.json").read_text())
    by_name = {target["labels"]["process"]: target["targets"] for target in targets}
    assert by_name.keys() == set(CONSUMERS)
    assert by_name["work"] == [f"[::1]:{metrics_port(ports, 'work')}"]
    assert by_name["serve"] == [f"127.0.0.1:{ports['http']}"]
    everywhere = settings_in(tmp_path, metrics_host="0.0.0.0")
    assert metrics_urls(everywhere)["work"].startswith("http://127.0.0.1:")


def test_nothing_is_known_of_a_directory_where_nothing_was_started(tmp_path: Path) -> None:
    assert metrics_urls(settings_in(tmp_path)) == {}


def test_up_hands_each_process_its_port(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, kafka_bootstrap="127.0.0.1:1", clickhouse_url="http://127.0.0.1:2", metrics_port=9)
    given = {process.name: process.env["TUNELOOP_METRICS_PORT"] for process in local_run.processes(settings)}
    urls = metrics_urls(settings)
    assert given.pop("serve") == "0"
    assert {name: f"http://127.0.0.1:{port}/metrics" for name, port in given.items()} == {n: urls[n] for n in METERED}


def test_up_hands_each_process_every_setting_that_was_given(tmp_path: Path) -> None:
    given = {"TUNELOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1", "TUNELOOP_CLICKHOUSE_URL": "http://127.0.0.1:2",
             "TUNELOOP_MAX_REFUSED": "0", "TUNELOOP_JOIN_WAIT_DAYS": "2.5", "TUNELOOP_IDENTITY_SECRET_FILE": "/a/secret"}  # fmt: skip
    settings = load({"data_dir": str(tmp_path)}, given)
    for process in local_run.processes(settings):
        theirs = load({}, process.env)
        assert replace(theirs, metrics_port=0) == settings, process.name


def test_the_table_fits_120_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(tmp_path)
    where = {"serve": "http://127.0.0.1:41234/v1", "clickhouse": "http://127.0.0.1:41235", "kafka": "127.0.0.1:41236"}
    said = Said(123456.7, 1_234_567, 98_765, 12_345_678)
    rows = [
        status_row(settings, State(name, "starting", pid=4_194_304, restarts=100), where, said, {})
        for name in (*where, *METERED)
    ]
    assert list(rows[0]) == [
        "process", "status", "pid", "address", "up_s", "restarts", "records_per_s", "dropped", "dead", "lag", "log",
        "reason",
    ]  # fmt: skip
    screen = io.StringIO()
    monkeypatch.setattr(output, "out", Console(file=screen, width=120, force_terminal=True, color_system=None))
    show(lifecycle.as_table(rows), Format.table)
    lines = screen.getvalue().splitlines()
    assert len(lines) == len(rows) + 1, "a line for each process, none folded"
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State("gate", "backoff", restarts=1, last_exit=1), "2 of 3 were refused"),
        (State("gate", "backoff", restarts=1, last_exit=-9), "killed by signal 9"),
        (State("gate", "ready", restarts=1, last_exit=1), ""),
        (State("gate", "starting"), ""),
        (State("work", "backoff", restarts=1, last_exit=1), ""),
    ],
)
def test_a_process_that_ended_says_why(tmp_path: Path, state: State, reason: str) -> None:
    settings = settings_in(tmp_path)
    log = supervise.log_path(settings.data, "gate")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("error: an older one\n" + "line\n" * 20_000 + "Traceback\nerror: 2 of 3 were refused\n")
    assert status_row(settings, state, {}, Said(None, None, None, None), {})["reason"] == reason


def test_lag_of_the_broker_stands_in_for_a_silent_process(tmp_path: Path) -> None:
    settings, state = settings_in(tmp_path), State("gate", "ready", pid=1, started_at=1.0)
    assert status_row(settings, state, {}, Said(None, None, None, None), {"gate": 4})["lag"] == 4
    assert status_row(settings, state, {}, Said(1.0, 0, 0, 0), {"gate": 4})["lag"] == 0
