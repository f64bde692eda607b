"""Who may speak to Kafka: nobody without the credential, on no port; and nothing in the clear beyond this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.addresses import check_encrypted, credentials, use_credentials
from deploy.local.ports import is_loopback
from deploy.settings import Settings, SettingsError
from streams import kafka, kafka_security
from streams.artifacts import ArtifactError, open_store
from streams.clickhouse import connect
from streams.kafka_security import KafkaConfigError, read
from streams.object_store import ObjectStoreError, read_config

GOOD = "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=me\nsasl.password=a=b c\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"security.protocol": "SSL"}, {"sasl.password": "guessed"}, {"sasl.username": "admin"},
        {"sasl.username": "ANONYMOUS", "sasl.password": ""}, {"sasl.mechanism": "SCRAM-SHA-256"},
    ],
    ids=["nothing", "tls", "a guess", "another user", "anonymous", "another mechanism"],
)  # fmt: skip
def test_without_the_credential_the_broker_says_nothing(kafka_bootstrap: str, wrong: dict[str, str]) -> None:
    plain: dict[str, Any] = {"bootstrap.servers": kafka_bootstrap, "log_level": 0}
    known = kafka_security.security() if "security.protocol" not in wrong and wrong else {}
    with pytest.raises(KafkaException):
        AdminClient({**plain, **known, **wrong}, logger=None).list_topics(timeout=1.5)  # type: ignore[call-arg]
    assert AdminClient({**plain, **kafka_security.security()}).list_topics(timeout=15).topics


def test_the_credential_is_its_owners_alone(kafka_bootstrap: str) -> None:
    path = Path(os.environ[kafka_security.VARIABLE])
    assert path.stat().st_mode & 0o777 == 0o600 and len(kafka_security.security()["sasl.password"]) == 64


def test_settings_are_read_as_librdkafka_spells_them() -> None:
    assert read("# mine\n\n" + GOOD.replace("mechanism", "mechanisms"), "f") == {
        "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "me", "sasl.password": "a=b c",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plugin.library.paths=/tmp/evil.so\n", "unknown setting 'plugin.library.paths'"),
        ("ssl.engine.location=/tmp/evil.so\n", "unknown setting"), ("bootstrap.servers=evil:9092\n", "unknown setting"),
        ("enable.ssl.certificate.verification=false\n", "unknown setting"), ("no equals sign\n", "expected KEY=VALUE"),
        ("security.protocol=SASL\n", "security.protocol is none of"), (GOOD.replace("SASL_SSL", "SSL"), "sasl.* needs"),
        (GOOD.replace("SCRAM-SHA-512", "OAUTHBEARER"), "sasl.mechanism is none of"),
        (GOOD.replace("sasl.password=a=b c\n", ""), "sasl.password is missing"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line_that_shows_no_value(text: str, said: str) -> None:
    with pytest.raises(KafkaConfigError) as told:
        read(text, "client.properties")
    assert said in str(told.value) and "client.properties" in str(told.value)
    assert "\n" not in str(told.value) and "a=b c" not in str(told.value)


def test_a_missing_file_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(kafka_security.VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(KafkaConfigError, match="name a file that is there"):
        kafka.client_settings("x:1")


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        ({"kafka_bootstrap": "127.0.0.1:9092,[::1]:9092,localhost:9092"}, True), ({"kafka_bootstrap": "kafka:9092"}, False),
        ({"kafka_bootstrap": "127.0.0.1:9092,10.0.0.7:9092"}, False), ({"kafka_bootstrap": "localhost.evil.example:1"}, False),
        ({"kafka_bootstrap": "localhost"}, True), ({"kafka_bootstrap": "kafka"}, False),
        ({"kafka_bootstrap": "0.0.0.0:9092"}, False), ({"kafka_bootstrap": "127.0.0.1.nip.example:9092"}, False),
        ({"clickhouse_url": "http://127.0.0.1:8123"}, True), ({"clickhouse_url": "http://clickhouse:8123"}, False),
        ({"clickhouse_url": "https://clickhouse:8443"}, True), ({"clickhouse_url": "http://localhost.evil.example"}, False),
        ({"kafka_bootstrap": "kafka:9092", "clickhouse_url": "http://c:1", "allow_plaintext": True}, True),
        ({"artifacts": "s3://bucket/x"}, True), ({"artifacts": "s3://bucket/x?scheme=http&endpoint_override=store:9000"}, False),
        ({"artifacts": "s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:9000"}, True),
        ({"artifacts": "s3://bucket/x?endpoint_override=http://store:9000"}, False),
    ],
)  # fmt: skip
def test_nothing_goes_in_the_clear_to_another_machine(
    monkeypatch: pytest.MonkeyPatch, address: dict[str, Any], fine: bool
) -> None:
    monkeypatch.setenv(kafka_security.VARIABLE, "")
    if fine:
        check_encrypted(Settings(**address))
        return
    with pytest.raises(SettingsError, match="allow_plaintext"):
        check_encrypted(Settings(**address))


def test_an_https_clickhouse_is_spoken_to_by_tls_on_whatever_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        first: list[bytes] = []

        def listen() -> None:
            with server.accept()[0] as caller:
                first.append(caller.recv(1))
            server.close()  # whoever tries again is told at once

        threading.Thread(target=listen, daemon=True).start()
        with pytest.raises(ClickHouseError):
            connect(f"https://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.0)
    assert first == [b"\x16"], "a TLS handshake, before any password"


@pytest.mark.parametrize("address", ["clickhouse://h", "tcp://h:9000", "h:8123", "ftp://h"])
def test_clickhouse_is_asked_over_http_alone(address: str) -> None:
    with pytest.raises(SettingsError, match="clickhouse_url"):
        Settings(clickhouse_url=address)


class _Bucket(BaseHTTPRequestHandler):
    """An object store of whom nothing is asked but who is asking."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization", ""))
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None: ...


def test_the_object_stores_credentials_come_from_their_file(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = tmp_path / "store"
    lines = {"access_key": "WHO", "secret_key": "hush", "scheme": "http", "region": "eu-1", "endpoint_override": f"127.0.0.1:{server.server_port}"}
    config.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    settings = Settings(data_dir=str(tmp_path), artifacts="s3://bucket/kept", artifacts_config=str(config))
    check_encrypted(settings)
    with pytest.raises((ArtifactError, OSError)):
        open_store(*settings.artifact_place).read_bytes("sets/one")
    server.shutdown()
    assert _Bucket.asked and all("Credential=WHO/" in said and "hush" not in said for said in _Bucket.asked)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("password=x\n", "unknown setting 'password'"), ("access_key=a\n", "come together"), ("secret_key=a\n", "come together"),
        ("endpoint_override\n", "expected KEY=VALUE"), ("role_arn=x\n", "unknown setting"),
    ],
)  # fmt: skip
def test_wrong_credentials_of_a_store_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "store").write_text(text)
    with pytest.raises(ObjectStoreError) as told:
        read_config(str(tmp_path / "store"))
    assert said in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "address", ["s3://key:secret@bucket/x", "s3://key@bucket", "s3://:secret@bucket/x", "s3://bucket/x?access_key=a&secret_key=b"]
)
def test_no_secret_stands_in_the_address_of_a_store(address: str) -> None:
    with pytest.raises(SettingsError, match="artifacts_config"):
        Settings(artifacts=address)


def test_an_encrypted_cluster_needs_no_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(GOOD)
    settings = Settings(data_dir=str(tmp_path), kafka_bootstrap="kafka:9092", kafka_config=str(tmp_path / "mine"))
    monkeypatch.setenv(kafka_security.VARIABLE, "")
    with pytest.MonkeyPatch.context() as patch:
        for name in credentials(settings):
            patch.setenv(name, "")
        use_credentials(settings)
        assert kafka.client_settings("kafka:9092")["sasl.username"] == "me"


@pytest.mark.parametrize(
    ("host", "here"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
    ("LOCALHOST", True), ("0.0.0.0", False), ("", False), ("localhost.", False), ("2130706433", False), ("::ffff:8.8.8.8", False)],
)  # fmt: skip
def test_this_machine_is_known_by_its_very_name(host: str, here: bool) -> None:
    assert is_loopback(host) is here


@pytest.fixture
def controller(kafka_bootstrap: str) -> Iterator[int]:
    import psutil

    port = int(kafka_bootstrap.rpartition(":")[2])
    (owner,) = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
    listening = psutil.Process(owner).net_connections("inet")
    (other,) = {c.laddr.port for c in listening if c.status == psutil.CONN_LISTEN} - {port}
    yield other


def test_the_controllers_port_asks_too(controller: int) -> None:
    """A METADATA-like request without a handshake ends the connection; Kafka answers nothing before SASL."""
    with socket.create_connection(("127.0.0.1", controller), timeout=5) as stranger:
        # DescribeCluster v0, correlation 7, no client id, no tagged fields: 60 is its key.
        stranger.sendall(b"\x00\x00\x00\x0d\x00\x3c\x00\x00\x00\x00\x00\x07\xff\xff\x00\x00\x00")
        stranger.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
