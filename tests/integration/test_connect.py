"""`tuneloop connect`: each snippet, run as it is printed, as the analyst; and `tuneloop sql` beside it.

Grafana cannot run here: its file is parsed, and its address asked with the user and the password file that it names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from deploy.clickhouse_login import passwords_folder
from deploy.local.clickhouse_access import ANALYST
from deploy.local.folders import data_folder
from deploy.settings import Settings
from deploy.snippets import SNIPPETS
from streams import kafka as streams_kafka
from streams import kafka_security
from streams.clickhouse import connect, credentials
from tests import node
from tests.broker import mark, since
from tests.integration import jdbc_session
from tests.integration.test_jdbc import driver_jars

ROOT = Path(__file__).parents[2]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cli(clickhouse_url: str, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command line over a data directory that knows the running ClickHouse and Kafka as its local ones."""
    data = data_folder(tmp_path_factory.mktemp("it's") / "data")
    folder = passwords_folder(Settings(data_dir=str(data)))
    shutil.copytree(Path(credentials().password_file).parent, folder)
    shutil.copy(os.environ[kafka_security.VARIABLE], data / "secrets" / "kafka")
    (data / "run").mkdir()
    ports = {"kafka": int(kafka_bootstrap.rpartition(":")[2]), "clickhouse": int(clickhouse_url.rpartition(":")[2]), "http": 1}
    (data / "run" / "ports.json").write_text(json.dumps(ports))
    client = connect(clickhouse_url)
    client.command("CREATE TABLE IF NOT EXISTS tuneloop.written (n UInt64) ENGINE = MergeTree ORDER BY n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNELOOP_")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.cli.main", "--data-dir", str(data), *arguments]
        environment["PYTHONPATH"] = str(ROOT)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)

    yield run
    client.command("DROP TABLE tuneloop.written SYNC")


def snippet(cli: Cli, client: str, *options: str) -> str:
    done = cli("connect", client, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def password_file(cli: Cli) -> Path:
    return Path(cli("config", "path").stdout.strip()) / "secrets" / "clickhouse" / ANALYST


@pytest.mark.parametrize("options", [(), ("--show",)])
def test_curl_as_printed(cli: Cli, options: tuple[str, ...]) -> None:
    done = subprocess.run(["bash", "-c", snippet(cli, "curl", *options)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    refused = snippet(cli, "curl", *options).replace("SELECT * FROM usage_daily", "DROP TABLE written; SELECT ")
    done = subprocess.run(["bash", "-c", refused], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Code: " in done.stdout


@pytest.mark.parametrize("options", [(), ("--show",)])
def test_python_as_printed(cli: Cli, options: tuple[str, ...], tmp_path: Path) -> None:
    text = snippet(cli, "python", *options) + "print(client.command('SELECT currentDatabase()'))\n"
    done = subprocess.run([sys.executable, "-"], input=text, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["tuneloop"]), done.stderr


def test_jdbc_with_the_address_and_the_properties_that_are_printed(cli: Cli) -> None:
    text = snippet(cli, "jdbc")
    (url,) = re.findall(r'getConnection\("([^"]+)"', text)
    (user,) = re.findall(r'setProperty\("user", "([^"]+)"', text)
    (path,) = re.findall(r"Path\.of\((\".+?\")\)\)\.strip", text)
    (query,) = re.findall(r'executeQuery\("([^"]+)"', text)
    command = [sys.executable, jdbc_session.__file__, url, user, json.loads(path), "--ask", query, *driver_jars()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["user"] == ANALYST


def test_grafana_as_its_plugin_reads_it(cli: Cli) -> None:
    (source,) = yaml.safe_load(snippet(cli, "grafana"))["datasources"]
    told, secret = source["jsonData"], source["secureJsonData"]["password"]
    assert (source["type"], told["protocol"], told["secure"]) == ("grafana-clickhouse-datasource", "http", False)
    (path,) = re.findall(r"^\$__file\{(.+)\}$", secret)
    # The plugin's client begins with this question, as Native, in blocks of LZ4, with a bound of time as a setting.
    url = f"http://{told['host']}:{told['port']}/"
    asked = {"database": told["defaultDatabase"], "default_format": "Native", "compress": "1", "max_execution_time": "600"}
    answer = httpx.post(
        url, params=asked, content="SELECT displayName(), version(), revision(), timezone()",
        auth=(told["username"], Path(path).read_text()),
    )  # fmt: skip
    assert (answer.status_code, told["username"]) == (200, ANALYST), answer.text
    shown = yaml.safe_load(snippet(cli, "grafana", "--show"))["datasources"][0]["secureJsonData"]["password"]
    assert shown == Path(path).read_text()


@pytest.mark.parametrize("client", SNIPPETS)
def test_a_snippet_holds_the_password_only_where_it_is_asked_to(cli: Cli, client: str) -> None:
    password = password_file(cli).read_text()
    assert password not in snippet(cli, client) and password in snippet(cli, client, "--show")


@pytest.mark.parametrize("options", [(), ("--show",)])
@pytest.mark.parametrize("client", ["kafka", "kafkajs"])
def test_kafka_as_printed(cli: Cli, kafka_bootstrap: str, tmp_path: Path, client: str, options: tuple[str, ...]) -> None:
    before = mark(kafka_bootstrap, "training.raw")
    if client == "kafkajs":
        script = tmp_path / "mine.js"
        script.write_text(snippet(cli, client, *options))
        said = node.run(script, node.packages("kafkajs", "2.2.4"), "")
    else:
        text = snippet(cli, client, *options)
        said = subprocess.check_output([sys.executable, "-"], input=text, text=True, timeout=60, cwd=tmp_path)
    assert said.strip() == "sent"
    (record,) = [one for one in since(kafka_bootstrap, "training.raw", before) if one.key == b"order-17"]
    assert streams_kafka.decode(record)[1].completion == "parcel_tracking"


@pytest.mark.parametrize("client", ["kafka", "kafkajs"])
def test_kafkas_password_stands_in_a_snippet_only_where_it_is_asked_for(cli: Cli, client: str) -> None:
    password = kafka_security.security()["sasl.password"]
    assert password not in snippet(cli, client) and password in snippet(cli, client, "--show")


def test_an_unknown_client_and_a_missing_password_are_one_line(cli: Cli, tmp_path: Path) -> None:
    assert "there are: curl, python" in cli("connect", "excel").stderr
    said = cli("--data-dir", str(tmp_path), "connect", "curl").stderr
    assert said.count("\n") == 1 and "run `tuneloop up`" in said


def test_sql_reads_and_writes_only_when_told(cli: Cli) -> None:
    insert = "INSERT INTO written VALUES (7)"
    for sql in (insert, "DROP TABLE written", "SELECT file('/etc/hostname')", "SELECT 1; DROP TABLE written"):
        done = cli("sql", sql)
        assert done.returncode == 1 and done.stderr.startswith("error: ClickHouse: "), sql
    assert cli("sql", "--write", insert).returncode == 0
    done = cli("sql", "--format", "json", "SELECT n, currentDatabase() AS d FROM written")
    assert json.loads(done.stdout) == [{"n": 7, "d": "tuneloop"}]
    assert cli("sql", "--write", "SELECT file('/etc/hostname')").returncode == 1
