"""Where the parts are: given addresses, or those that `tuneloop up` chose and noted in the data directory."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.ports import free_ports, port_free
from deploy.settings import Settings, SettingsError
from schemas.topics import CONSUMER_GROUPS

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
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
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


def identity_secret(settings: Settings) -> bytes:
    """The secret that signs inference ids; made on first use, readable by its owner only."""
    path = settings.secret_file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32))
    return path.read_text().strip().encode()
