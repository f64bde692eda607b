"""What to paste so that another program talks to Tuneloop: one function for each kind of client. Pure.

Each reads the password from its file when it runs; with `shown` it holds the password itself. A snippet works as it
stands: tests run them as printed, but for Grafana's, which they parse.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_QUERY = "SELECT * FROM usage_daily ORDER BY day DESC LIMIT 10"


@dataclass(frozen=True)
class Access:
    """Where ClickHouse is and who may read there. `shown` is the password where it is to stand in the snippet."""

    clickhouse_url: str
    user: str
    password_file: str
    shown: str | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.clickhouse_url).hostname or "127.0.0.1"

    @property
    def secure(self) -> bool:
        return urlsplit(self.clickhouse_url).scheme == "https"

    @property
    def port(self) -> int:
        return urlsplit(self.clickhouse_url).port or (8443 if self.secure else 8123)


def curl(access: Access) -> str:
    """Headers by standard input: an argument would show the password to every user of the machine."""
    user, file = shlex.quote(access.user), shlex.quote(access.password_file)
    if access.shown is not None:
        password = f"echo X-ClickHouse-Key: {shlex.quote(access.shown)}"
    else:
        password = f"printf 'X-ClickHouse-Key: '; cat {file}" if access.password_file else ":"
    url = shlex.quote(f"{access.clickhouse_url.rstrip('/')}/?database=tuneloop")
    return (
        f"{{ echo X-ClickHouse-User: {user}; {password}; }} |\n"
        f"  curl --silent --show-error --fail-with-body --header @- {url} \\\n"
        f"  --data-binary {shlex.quote(f'{_QUERY} FORMAT PrettyCompact')}\n"
    )


def python(access: Access) -> str:
    password = f"Path({access.password_file!r}).read_text().strip()" if access.password_file else "''"
    password = repr(access.shown) if access.shown is not None else password
    return f"""from pathlib import Path

import clickhouse_connect

client = clickhouse_connect.get_client(
    host={access.host!r}, port={access.port}, secure={access.secure}, database="tuneloop",
    username={access.user!r}, password={password},
)
for row in client.query({_QUERY!r}).named_results():
    print(row)
"""


def jdbc(access: Access) -> str:
    text = json.dumps  # Java's string literals are escaped as JSON's are
    password = f"Files.readString(Path.of({text(access.password_file)})).strip()" if access.password_file else '""'
    password = text(access.shown) if access.shown is not None else password
    scheme = "jdbc:clickhouse:https" if access.secure else "jdbc:clickhouse"
    host = f"[{access.host}]" if ":" in access.host else access.host
    url = text(f"{scheme}://{host}:{access.port}/tuneloop")
    return f"""// com.clickhouse:clickhouse-jdbc, with its "all" jar on the class path
import java.nio.file.*;
import java.sql.*;
import java.util.Properties;

class Ask {{
    public static void main(String[] arguments) throws Exception {{
        var properties = new Properties();
        properties.setProperty("user", {text(access.user)});
        properties.setProperty("password", {password});
        try (var connection = DriverManager.getConnection({url}, properties);
             var rows = connection.createStatement().executeQuery({text(_QUERY)})) {{
            while (rows.next()) System.out.println(rows.getString(1) + " " + rows.getString(2));
        }}
    }}
}}
"""


def grafana(access: Access) -> str:
    """Grafana reads `$__file{{…}}` itself, so the file must be readable to the user that runs Grafana."""
    text = json.dumps  # a string of YAML in double quotes is one of JSON
    password = "$__file{" + access.password_file + "}" if access.password_file else ""
    password = access.shown if access.shown is not None else password
    return f"""# conf/provisioning/datasources/tuneloop.yaml, with the plugin grafana-clickhouse-datasource
apiVersion: 1
datasources:
  - name: Tuneloop
    type: grafana-clickhouse-datasource
    jsonData:
      host: {text(access.host)}
      port: {access.port}
      protocol: http
      secure: {text(access.secure)}
      username: {text(access.user)}
      defaultDatabase: tuneloop
    secureJsonData:
      password: {text(password)}
"""


SNIPPETS: dict[str, Callable[[Access], str]] = {"curl": curl, "python": python, "jdbc": jdbc, "grafana": grafana}


@dataclass(frozen=True)
class KafkaAccess:
    """Where Kafka is, and the file of KEY=VALUE lines with which clients come in ("": without).

    `settings` is what stands in it, where that is to stand in the snippet.
    """

    bootstrap: str
    config_file: str
    model: str
    settings: Mapping[str, str] | None = None


def kafka(access: KafkaAccess) -> str:
    """For confluent-kafka, and with it for everything on librdkafka: the file is written as that spells it."""
    if access.settings is not None:
        read = f"settings = {dict(access.settings)!r}"
    else:
        read = f"""lines = Path({access.config_file!r}).read_text().splitlines() if {access.config_file!r} else []
pairs = [line.split("=", 1) for line in lines if "=" in line and line.strip()[0] not in "#;"]
settings = {{name.strip(): value.strip() for name, value in pairs}}"""
    return f"""import json
from pathlib import Path

from confluent_kafka import Producer

{read}
producer = Producer({{"bootstrap.servers": {access.bootstrap!r}, **settings}})
record = {{"model": {access.model!r}, "prompt": "Where is my parcel?", "completion": "parcel_tracking"}}
producer.produce("training.raw", key="order-17", value=json.dumps(record))
print("not sent" if producer.flush(15) else "sent")
"""


def kafkajs(access: KafkaAccess) -> str:
    """Node's kafkajs names the same settings in its own words."""
    text = json.dumps
    if access.settings is not None:
        read = f"const settings = {text(dict(access.settings))};"
    else:
        read = f"""const file = {text(access.config_file)};
const text = file ? require("fs").readFileSync(file, "utf8") : "";
const lines = text.split("\\n").filter((line) => /^\\s*[^#;\\s].*=/.test(line));
const settings = Object.fromEntries(lines.map((line) => line.split(/=(.*)/s).map((part) => part.trim())));"""
    return f"""const {{ Kafka }} = require("kafkajs");

{read}
const protocol = settings["security.protocol"] || "PLAINTEXT";
const ca = settings["ssl.ca.location"];
const kafka = new Kafka({{
  clientId: "mine",
  brokers: {text(access.bootstrap.split(","))},
  ssl: protocol.endsWith("SSL") && (ca ? {{ ca: [require("fs").readFileSync(ca)] }} : true),
  sasl: protocol.startsWith("SASL")
    ? {{
        mechanism: (settings["sasl.mechanism"] || settings["sasl.mechanisms"]).toLowerCase(),
        username: settings["sasl.username"],
        password: settings["sasl.password"],
      }}
    : undefined,
}});
const record = {{ model: {text(access.model)}, prompt: "Where is my parcel?", completion: "parcel_tracking" }};
(async () => {{
  const producer = kafka.producer();
  await producer.connect();
  await producer.send({{ topic: "training.raw", messages: [{{ key: "order-17", value: JSON.stringify(record) }}] }});
  await producer.disconnect();
  console.log("sent");
}})();
"""


KAFKA_SNIPPETS: dict[str, Callable[[KafkaAccess], str]] = {"kafka": kafka, "kafkajs": kafkajs}


def openai(base_url: str, model: str) -> str:
    """The endpoint asks for no key yet; OpenAI's client wants to be given one."""
    return f"""import httpx
from openai import OpenAI

client = OpenAI(base_url={base_url!r}, api_key="unused")
answer = client.chat.completions.create(
    model={model!r},
    messages=[{{"role": "user", "content": "Where is my parcel?"}}],
    safety_identifier="customer-17",  # whose words these are
)
print(answer.choices[0].message.content)
feedback = {{"inference_id": answer.id, "metric_name": "demonstration", "value": "parcel_tracking"}}
print(httpx.post({f"{base_url}/feedback"!r}, json=feedback).json())
"""


def password_of(file: str) -> str:
    """The password that a snippet shows when it is asked to."""
    return Path(file).read_text().strip() if file else ""
