"""A broker that wants TLS and a password: our clients and Faust's come in by one file, and by nothing less."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.local import kafka as local_kafka
from deploy.local.errors import LocalPartError
from deploy.local.ports import free_ports
from streams import kafka, kafka_security
from streams.kafka import Out
from tests.broker import fresh_topic, publish, since, until
from tests.parts import ROOT

# Faust as the consumers use it: an application of ours whose agent sends each record on.
COPY = """
import asyncio, sys
import faust
from streams.faust_app import Sender, bytes_topic, faust_app, record_of, take
from streams.kafka import Out
bootstrap, source, target, folder = sys.argv[1:]
app = faust_app("copy-" + source, bootstrap, folder, 1)
sender = Sender(app)
async def on(event):
    record = record_of(event, source)
    await sender.send_all([Out(target, record.key, record.value)])
take(app, bytes_topic(app, source), "copy", on)
faust.Worker(app, loglevel="INFO", override_logging=False, loop=asyncio.new_event_loop()).execute_from_commandline()
"""


def certificate(folder: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's broker")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    (folder / "ca.pem").write_text(pem)
    form = serialization.PrivateFormat.PKCS8
    return pem, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a listener with TLS and SASL; the credential in force names its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    try:
        jars = local_kafka.fetch_jars()
    except LocalPartError as error:
        pytest.skip(str(error))
    port, secure = free_ports(2)
    plain = folder / "plain"
    prepared = local_kafka.prepare(folder / "kafka", port, plain, jars, behind_proxy=(secure, secure))
    properties = folder / "kafka" / "server.properties"
    pem, key = (text.replace("\n", "\\n") for text in certificate(folder))
    text = properties.read_text().replace("PROXIED:SASL_PLAINTEXT", "PROXIED:SASL_SSL")
    store = {"type": "PEM", "certificate.chain": pem, "key": key}
    properties.write_text(text + "".join(f"listener.name.proxied.ssl.keystore.{name}={value}\n" for name, value in store.items()))
    mine = folder / "mine"
    mine.write_text(plain.read_text().replace("SASL_PLAINTEXT", "SASL_SSL") + f"ssl.ca.location={folder}/ca.pem\n")
    with (folder / "out").open("ab") as out, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen(prepared.argv, stdout=out, stderr=out)
        patch.setenv(kafka_security.VARIABLE, str(mine))
        address = f"127.0.0.1:{secure}"
        until(lambda: process.poll() is None and local_kafka.ready(address), 60, "the broker's start")
        yield address
        process.kill()
        process.wait()


def test_our_clients_and_fausts_come_in_by_one_file(tls: str, tmp_path: Path) -> None:
    source, target = fresh_topic(tls, "source"), fresh_topic(tls, "target")
    with (tmp_path / "log").open("ab") as log:
        faust = subprocess.Popen(
            [sys.executable, "-c", COPY, tls, source, target, str(tmp_path / "faust")], stdout=log, stderr=log, cwd=ROOT
        )
    try:
        publish(tls, [Out(source, b"k", b"%d" % number) for number in range(20)])

        def copied() -> list[bytes | None]:
            assert faust.poll() is None, (tmp_path / "log").read_text()[-2000:]
            return [record.value for record in since(tls, target)]

        until(lambda: len(copied()) >= 20, 60, "twenty records")
        assert copied() == [b"%d" % number for number in range(20)]
    finally:
        faust.kill()
        faust.wait()


@pytest.mark.parametrize(
    ("name", "value"),
    [("sasl.password", "guessed"), ("sasl.username", "nobody-of-ours"), ("ssl.ca.location", ""), ("security.protocol", "SASL_PLAINTEXT")],
)
def test_nothing_less_comes_in(
    tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    wrong = {**kafka_security.security(), name: value}
    lines = [f"{key}={said}" for key, said in wrong.items() if said and not (name == "security.protocol" and key[:3] == "ssl")]
    (tmp_path / "wrong").write_text("\n".join(lines))
    monkeypatch.setenv(kafka_security.VARIABLE, str(tmp_path / "wrong"))
    with pytest.raises(KafkaException):
        kafka.admin(tls, log_level=0).list_topics(timeout=2)
