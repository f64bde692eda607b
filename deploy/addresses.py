"""Where the parts are: given addresses, or those that `tuneloop up` chose and noted in the data directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from deploy.clickhouse_login import login_variables
from deploy.local.folders import own_folder
from deploy.local.ports import free_ports, hosts_of, is_loopback, port_free
from deploy.local.secret_files import make_secret
from deploy.settings import PREFIX, Settings, SettingsError
from schemas.identity import SECRET_BYTES
from schemas.topics import CONSUMER_GROUPS
from streams import kafka_security
from streams.object_store import read_config

PARTS = ("kafka", "clickhouse", "http")
# What has a port for its metrics alone; `serve` answers on its HTTP port.
METERED = CONSUMER_GROUPS


@dataclass(frozen=True)
class Addresses:
    """`bootstrap` is Kafka's HOST:PORT, the others are URLs."""

    bootstrap: str
    clickhouse: str
    http: str


def _file(settings: Settings) -> Path:
    return settings.data / "run" / "ports.json"


def addresses(settings: Settings) -> Addresses:
    """The addresses in force. Raises `SettingsError` where a part is local and nothing was ever started."""
    ports = json.loads(_file(settings).read_text()) if _file(settings).exists() else {}
    http_host = _reached_at(settings.http_host)
    given = {
        "kafka": settings.kafka_bootstrap,
        "clickhouse": settings.clickhouse_url,
        "http": f"http://{http_host}:{settings.http_port}" if settings.http_port else "",
    }
    local = {
        "kafka": f"127.0.0.1:{ports.get('kafka')}",
        "clickhouse": f"http://127.0.0.1:{ports.get('clickhouse')}",
        "http": f"http://{http_host}:{ports.get('http')}",
    }
    missing = [part for part in PARTS if not given[part] and part not in ports]
    if missing:
        raise SettingsError(
            f"nothing is known of {', '.join(missing)} in {settings.data}: run `tuneloop up`, or give an address "
            "(kafka_bootstrap, clickhouse_url, http_port)"
        )
    return Addresses(*(given[part] or local[part] for part in PARTS))


def kafka_config(settings: Settings) -> Path | None:
    """The file with which Kafka's clients prove who they are; a local broker's is made by `up`. None: plaintext."""
    if settings.kafka_config:
        return Path(settings.kafka_config).absolute()
    return None if settings.kafka_bootstrap else settings.data / "secrets" / "kafka"


def credentials(settings: Settings) -> dict[str, str]:
    """Where the files with the parts' credentials lie, as environment variables for this process's children."""
    config = kafka_config(settings)
    return {
        kafka_security.VARIABLE: str(config or ""),
        **login_variables(settings),
        f"{PREFIX}IDENTITY_SECRET_FILE": str(settings.secret_file.absolute()),
    }


def use_credentials(settings: Settings) -> None:
    """Have this process, and what it starts, prove who it is to Kafka and ClickHouse.

    Raises `SettingsError` where what people said would travel in the clear, or no credential is there.
    """
    os.environ.update(credentials(settings))
    check_encrypted(settings)


def check_encrypted(settings: Settings) -> None:
    """Raises `SettingsError` for an address beyond this machine that is not encrypted, unless `allow_plaintext`."""
    if settings.allow_plaintext:
        return
    if not all(map(is_loopback, hosts_of(settings.kafka_bootstrap))) and not kafka_security.encrypted():
        raise SettingsError(
            f"kafka_bootstrap = {settings.kafka_bootstrap} is another machine and kafka_config does not encrypt: "
            "set security.protocol=SASL_SSL or SSL there, or allow_plaintext = true"
        )
    url = urlsplit(settings.clickhouse_url)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise SettingsError(
            f"clickhouse_url = {url.scheme}://{url.hostname} is another machine and not encrypted: "
            "name an https:// address, or set allow_plaintext = true"
        )
    options = {**dict(parse_qsl(urlsplit(settings.artifacts).query)), **read_config(settings.artifacts_config)}
    scheme, _, host = options.get("endpoint_override", "").rpartition("://")
    if "http" in (scheme, options.get("scheme")) and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise SettingsError(
            "the object store of artifacts is another machine and not encrypted: take scheme=http out of its settings, "
            "or set allow_plaintext = true"
        )


def _reached_at(host: str) -> str:
    """Where a server that binds to `host` is reached from this machine, as a URL has it."""
    if host in ("", "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def choose_ports(settings: Settings) -> dict[str, int]:
    """Ports for the local parts and each process's metrics: those of the last time where they are still free.

    Noted for later commands, and for Prometheus.
    """
    path = _file(settings)
    last = json.loads(path.read_text()) if path.exists() else {}
    if settings.http_port:
        if not port_free(settings.http_port):
            raise SettingsError(
                f"http_port {settings.http_port} is in use: stop what listens there, choose another, "
                "or leave it 0 for a free one"
            )
        last["http"] = settings.http_port
    wanted = (*PARTS, *map(_metrics_key, METERED))
    kept = {name: last[name] for name in wanted if name in last and port_free(last[name])}
    fresh = (port for port in free_ports(2 * len(wanted)) if port not in kept.values())
    ports = {name: kept[name] if name in kept else next(fresh) for name in wanted}
    own_folder(settings.data)
    own_folder(path.parent)
    path.write_text(json.dumps(ports))
    path.with_name("prometheus.json").write_text(json.dumps(_targets(settings, ports), indent=1))
    return ports


def metrics_port(ports: Mapping[str, int], process: str) -> int:
    """The port of a process's metrics among those of `choose_ports`; 0 where it has none."""
    return ports.get(_metrics_key(process), 0)


def metrics_urls(settings: Settings) -> dict[str, str]:
    """Where each process that `up` started says how it does; empty where nothing was ever started."""
    ports = json.loads(_file(settings).read_text()) if _file(settings).exists() else {}
    targets = {target["labels"]["process"]: target["targets"][0] for target in _targets(settings, ports)}
    return {process: f"http://{address}/metrics" for process, address in targets.items()}


def _metrics_key(process: str) -> str:
    return f"{process} metrics"


def _targets(settings: Settings, ports: Mapping[str, int]) -> list[dict[str, Any]]:
    """Who can be scraped where, as Prometheus' file_sd_configs reads it."""
    host = _reached_at(settings.metrics_host)
    known = {process: f"{host}:{ports[_metrics_key(process)]}" for process in METERED if _metrics_key(process) in ports}
    http = settings.http_port or ports.get("http")
    if http:
        known["serve"] = f"{_reached_at(settings.http_host)}:{http}"
    return [{"targets": [address], "labels": {"process": process}} for process, address in known.items()]


def make_identity_secret(settings: Settings) -> None:
    """Make the secret where there is none; only `tuneloop up` does: two processes with secrets of their own would not
    know each other's answers, nor whom the other has forgotten."""
    if not settings.identity_secret_file:
        make_secret(settings.secret_file)


def identity_secret(settings: Settings) -> bytes:
    """The secret that answers' ids, erasures and splits are derived from. Raises `SettingsError`."""
    path = settings.secret_file
    try:
        secret = path.read_text().strip().encode()
    except (OSError, UnicodeDecodeError):
        raise SettingsError(
            f"no identity secret at {path}: every process needs the one that `tuneloop up` made; copy it there, "
            "or name its file by identity_secret_file"
        ) from None
    if len(secret) < SECRET_BYTES:
        raise SettingsError(f"the identity secret at {path} is shorter than {SECRET_BYTES} bytes: write a longer one")
    return secret
