"""The command line as a person uses it: data on stdout, one clear line and a status where it cannot be done."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.addresses import METERED
from deploy.demo.stage import MODEL
from deploy.local.ports import free_ports
from deploy.local.supervise import is_running
from deploy.local.supervised import read_spec
from deploy.processes import CONSUMERS
from streams import kafka, lag
from tests.broker import fresh, until
from tests.e2e.steady import Steady
from tests.e2e.system import System, tuneloop
from tests.tiny_model import make_tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PARTS = ("kafka", "clickhouse", *CONSUMERS)


def test_status_names_every_process_its_address_and_its_lag(system: System) -> None:
    said = system.cli("status", "--format", "json")
    assert said.code == 0, said.err
    by_name = {row["process"]: row for row in said.json}
    assert sorted(by_name) == sorted(PARTS)
    assert {row["status"] for row in said.json} == {"ready"}
    for row in said.json:
        assert psutil.pid_exists(row["pid"]) and Path(row["log"]).exists()
    assert by_name["serve"]["address"] == f"{system.where.http}/v1"
    assert by_name["kafka"]["address"] == system.where.bootstrap
    for name in CONSUMERS:
        assert by_name[name]["records_per_s"] is not None, f"{name} does not say how it does"
    assert all(by_name[name]["dead"] is not None and by_name[name]["dropped"] is not None for name in METERED)
    table = system.cli("status")
    assert table.code == 0 and max(map(len, table.out.splitlines())) <= 120

    def behind() -> dict[str, int | None]:
        rows = system.cli("status", "--format", "json").json
        return {row["process"]: row["lag"] for row in rows if row["lag"] != 0 and row["process"] in METERED}

    last: list[dict[str, int | None]] = []
    try:
        until(lambda: last.append(behind()) or not last[-1], 30, "a lag of 0 of every consumer")
    except AssertionError:
        places = {name: lag.of_group(kafka.asking(system.where.bootstrap, name), 5) for name in last[-1]}
        pytest.fail(f"behind, at last: {last[-3:]}, committed: {places}")
    rows = {row["process"]: row for row in system.cli("status", "--format", "json").json}
    shards = {seen.body["shard_id"]: seen.body for seen in system.topic("training.shards", "ShardWritten")}
    told, dropped = rows["prepare"], sum(sum(shard["dropped"].values()) for shard in shards.values())
    # A process that was started again on a busy machine counts from then on.
    assert told["dropped"] == dropped or (told["restarts"] and told["dropped"] < dropped)


def test_logs_shows_the_last_lines_and_refuses_an_unknown_process(system: System) -> None:
    said = system.cli("logs", "gate", "-n", "5")
    assert said.code == 0 and 1 <= said.out.count("\n") <= 5
    assert "gate" in system.cli("logs", "nobody").refused_in_one_line()


def test_sql_gives_a_table_or_json_and_refuses_nonsense(system: System) -> None:
    query = "SELECT version, requests FROM lineage ORDER BY version"
    said = system.cli("sql", query, "--format", "json")
    assert said.code == 0 and [row["version"] for row in said.json] == [1, 2]
    table = system.cli("sql", query)
    assert table.code == 0
    assert [line.split()[0] for line in table.out.splitlines()] == ["version", "1", "2"]
    assert "nothing_here" in system.cli("sql", "SELECT * FROM nothing_here").refused_in_one_line()
    assert system.cli("sql", "SELEC 1").refused_in_one_line()
    nothing = system.cli("sql", "SELECT 1 WHERE 0", "--format", "json")
    assert (nothing.code, nothing.json) == (0, [])


def test_why_of_an_unknown_id_says_what_to_give(system: System) -> None:
    line = system.cli("why", "drift-unheard-of").refused_in_one_line()
    assert "drift-unheard-of" in line and "MODEL@VERSION" in line


def test_models_show_has_every_number_of_the_verdict(system: System) -> None:
    (shown,) = system.cli("models", "show", f"{MODEL}@2", "--format", "json").json
    assert shown["version"] == f"{MODEL}@2" and shown["new rows"] > 0 and shown["replayed rows"] > 0
    assert {check["dataset"] for check in shown["checks"]} >= {"recent", "older", "classes"}
    assert all(check["n"] > 0 and "bound" in check and "power" in check for check in shown["checks"])
    assert shown["live n"] > 0
    assert "there are: 1, 2" in system.cli("models", "show", f"{MODEL}@7").refused_in_one_line()
    assert "nobody" in system.cli("models", "show", "nobody").refused_in_one_line()


def served(system: System) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "where is my order?"}]}
    reply = httpx.post(f"{system.where.http}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    return reply.json()["model"]


def test_rolling_back_and_forward_again_drops_no_request(system: System) -> None:
    with Steady(system.where.http, tuple(q.text for q in system.plan.curated[:20]), pause_s=0.05) as client:
        back = system.cli("models", "rollback", MODEL, "--reason", "a test")
        assert back.code == 0, back.err
        assert f"{MODEL}@1 serves again" in back.err
        until(lambda: served(system) == f"{MODEL}@1", 10, "answers of version 1")
        again = system.cli("models", "rollback", f"{MODEL}@1").refused_in_one_line()
        assert "version 1 serves already" in again
        forward = system.cli("models", "rollback", f"{MODEL}@2")
        assert forward.code == 0, forward.err
        until(lambda: served(system) == f"{MODEL}@2", 10, "answers of version 2")
    assert client.failures == []
    in_order = [version for version, _ in itertools.groupby(answer.version for answer in client.answers)]
    assert in_order == [2, 1, 2], "an answer of the old version after one of the new"
    assert "no version 9" in system.cli("models", "rollback", f"{MODEL}@9").refused_in_one_line()
    (row,) = [row for row in system.cli("models", "ls", "--format", "json").json if row["status"] == "champion"]
    assert row["version"] == f"{MODEL}@2"


def shard_rows(system: System) -> int:
    return int(system.value("SELECT sum(rows) FROM tuneloop.shard_written FINAL"))


def duplicates(system: System) -> int:
    query = "SELECT sum(JSONExtractInt(dropped, 'duplicate')) FROM tuneloop.shard_written FINAL"
    return int(system.value(query))


def test_data_add_takes_jsonl_names_what_it_refuses_and_never_doubles(system: System, tmp_path: Path) -> None:
    mark, file = fresh("question"), tmp_path / "taught.jsonl"
    good = [
        {"messages": [{"role": "user", "content": f"{mark} one"}, {"role": "assistant", "content": "order_status"}]},
        {"prompt": f"{mark} two", "completion": "return_item"},
        {"prompt": f"{mark} three", "chosen": "return_item", "rejected": "order_status"},
    ]
    bad = [json.dumps({"prompt": f"{mark} four"}), "{not json", json.dumps({"prompt": "", "completion": "x"})]
    file.write_text("\n".join([*map(json.dumps, good), *bad]) + "\n")
    before = shard_rows(system)
    said = system.cli("data", "add", str(file), "--model", MODEL, "--format", "json")
    assert (said.code, said.json) == (2, [{"model": MODEL, "submitted": 3, "refused": 3}])
    refusals = said.err.splitlines()
    assert len(refusals) == 3
    assert refusals[0].startswith("row 4: completion: expected ")
    assert refusals[1].startswith("row 5: -: expected a JSON object")
    assert refusals[2].startswith("row 6: prompt: expected ")
    until(lambda: shard_rows(system) == before + 3, 30, "three rows more in shards")
    doubled = duplicates(system)
    assert system.cli("data", "add", str(file), "--model", MODEL).code == 2
    until(lambda: duplicates(system) == doubled + 3, 30, "the same rows to be dropped")
    assert shard_rows(system) == before + 3


def test_data_add_takes_csv_with_named_columns(system: System, tmp_path: Path) -> None:
    mark, file = fresh("question"), tmp_path / "taught.csv"
    file.write_text(f'who,text,category\nann,"{mark}, please",invoice_copy\nbob,{mark} too,\n')
    before = shard_rows(system)
    columns = ("--prompt-column", "text", "--completion-column", "category", "--subject-column", "who")
    said = system.cli("data", "add", str(file), "--model", MODEL, *columns, "--format", "json")
    assert (said.code, said.json) == (2, [{"model": MODEL, "submitted": 1, "refused": 1}])
    assert said.err.strip() == "row 3: category: expected an answer that is not empty"
    until(lambda: shard_rows(system) == before + 1, 30, "one row more in shards")
    query = "SELECT subject_id FROM tuneloop.record_submitted FINAL WHERE position(messages, {mark:String}) > 0"
    assert [row["subject_id"] for row in system.rows(query, mark=mark)] == ["ann"]


def test_data_add_refuses_what_it_cannot_read(system: System, tmp_path: Path) -> None:
    file = tmp_path / "taught.csv"
    file.write_text("text,category\na,b\n")
    line = system.cli("data", "add", str(file), "--model", MODEL).refused_in_one_line()
    assert "no column 'prompt'" in line and "--prompt-column" in line
    assert "no file at" in system.cli("data", "add", "/nowhere.jsonl", "--model", MODEL).refused_in_one_line()
    line = system.cli("data", "add", str(file), "--model", "nobody").refused_in_one_line()
    assert "nobody" in line and MODEL in line
    all_bad = tmp_path / "bad.jsonl"
    all_bad.write_text('{"prompt": "x"}\n')
    said = system.cli("data", "add", str(all_bad), "--model", MODEL)
    assert said.code == 1 and said.err.strip() == "row 1: completion: expected an answer that is not empty"


def test_a_base_is_taken_in_from_a_directory(system: System, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "tiny")
    said = system.cli("base", "add", "tiny", str(base))
    assert said.code == 0, said.err
    assert "LlamaForCausalLM" in said.err and 'base = "tiny"' in said.err
    rows = {row["base"]: row for row in system.cli("base", "ls", "--format", "json").json}
    assert {"tiny", system.settings.models[MODEL].base} <= rows.keys()
    assert rows["tiny"]["parameters"] > 10_000 and rows["tiny"]["context_tokens"] == 512
    assert system.cli("base", "add", "tiny", str(base)).code == 0, "adding the same base again"


def test_a_bad_base_is_refused(system: System, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in system.cli("base", "add", "bad", str(empty)).refused_in_one_line()
    code = make_tiny_base(tmp_path / "with-code")
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    assert "remote code is never run" in system.cli("base", "add", "bad", str(code)).refused_in_one_line()
    cut = make_tiny_base(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "damaged" in system.cli("base", "add", "bad", str(cut)).refused_in_one_line()
    assert "not a directory" in system.cli("base", "add", "bad", "./nowhere").refused_in_one_line()
    assert "bad" not in {row["base"] for row in system.cli("base", "ls", "--format", "json").json}


def test_config_show_says_which_of_flag_environment_file_and_default_won(tmp_path: Path) -> None:
    file = tmp_path / "tuneloop.toml"
    file.write_text("http_port = 1111\nserve_slots = 7\nserve_replicas = 2\n")

    def shown(*flags: str, **environment: str) -> dict[str, tuple[object, str]]:
        said = tuneloop("--config", str(file), *flags, "config", "show", "--format", "json", **environment)
        assert said.code == 0, said.err
        return {row["setting"]: (row["value"], row["source"]) for row in said.json}

    every = shown("--http-port", "3333", TUNELOOP_HTTP_PORT="2222", TUNELOOP_SERVE_SLOTS="9")
    assert every["http_port"] == (3333, "flag")
    assert every["serve_slots"] == (9, "TUNELOOP_SERVE_SLOTS")
    assert every["serve_replicas"] == (2, str(file))
    assert every["replication_factor"] == (1, "default")
    assert shown(TUNELOOP_HTTP_PORT="2222")["http_port"] == (2222, "TUNELOOP_HTTP_PORT")
    assert shown()["http_port"] == (1111, str(file))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prepare_linger = 1\n", "'prepare_linger'"),
        ('[models.support]\nbse = "x"\n', "bse"),
        ('http_port = "many"\n', "http_port"),
        ("data_dir = \n", "TOML"),
    ],
)
def test_a_wrong_settings_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "tuneloop.toml"
    file.write_text(text)
    line = tuneloop("--config", str(file), "status").refused_in_one_line()
    assert named in line and str(file) in line
    assert str(tmp_path / "no.toml") in tuneloop("--config", str(tmp_path / "no.toml"), "up").refused_in_one_line()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield int(held.getsockname()[1])


def left_behind(data_dir: Path) -> list[psutil.Process]:
    """Live processes whose environment or command names this data directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != psutil.Process().pid and any(str(data_dir) in word for word in words):
            found.append(process)
    return found


def test_up_on_a_port_in_use_starts_nothing(tmp_path: Path, taken_port: int) -> None:
    data = tmp_path / "data"
    line = tuneloop("--data-dir", str(data), "--http-port", str(taken_port), "up").refused_in_one_line()
    assert f"http_port {taken_port} is in use" in line
    assert read_spec(data) is None and not left_behind(data)


def test_up_with_a_kafka_that_does_not_answer_starts_nothing(tmp_path: Path) -> None:
    data, address = tmp_path / "data", f"127.0.0.1:{free_ports(1)[0]}"
    line = tuneloop("--data-dir", str(data), "--kafka-bootstrap", address, "up").refused_in_one_line()
    assert address in line and "Kafka" in line
    assert not is_running(data) and not left_behind(data)


def test_up_with_a_clickhouse_that_does_not_answer_starts_nothing(tmp_path: Path) -> None:
    data, address = tmp_path / "data", f"http://127.0.0.1:{free_ports(1)[0]}"
    line = tuneloop("--data-dir", str(data), "--clickhouse-url", address, "up").refused_in_one_line()
    assert address in line and "ClickHouse" in line
    assert not is_running(data) and not left_behind(data)


def test_commands_without_a_system_say_so(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    assert "tuneloop up" in tuneloop(*data, "status").refused_in_one_line()
    assert "tuneloop up" in tuneloop(*data, "base", "ls").refused_in_one_line()
    assert tuneloop(*data, "down").code == 0
    address = f"127.0.0.1:{free_ports(1)[0]}"
    given = (*data, "--kafka-bootstrap", address, "--clickhouse-url", f"http://{address}", "--http-port", "1")
    assert "Kafka" in tuneloop(*given, "base", "ls").refused_in_one_line()
    assert "ClickHouse" in tuneloop(*given, "sql", "SELECT 1").refused_in_one_line()


def test_up_again_while_up_changes_nothing(system: System) -> None:
    before = {name: (state.pid, state.restarts) for name, state in system.states().items()}
    said = system.cli("up")
    assert said.code == 0, said.err
    assert f"{system.where.http}/v1" in said.out
    assert {name: (state.pid, state.restarts) for name, state in system.states().items()} == before
