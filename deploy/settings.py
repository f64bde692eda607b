"""Settings: read once, frozen, closed. Flag > environment > settings file > default.

The file is `tuneloop.toml` (or what `--config` or `TUNELOOP_CONFIG` names). An unknown key is an error that
names it. `sources` remembers where each value came from, for `tuneloop config show`.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from deploy.local.ports import hosts_of, is_loopback
from schemas.names import WANTED, is_name
from schemas.policy import TRUSTED, ModelPolicy
from schemas.topics import MAX_REFUSED
from serving.doors import DoorPolicy

DEFAULT_FILE = "tuneloop.toml"
PREFIX = "TUNELOOP_"
MOST_REFUSED = 1_000_000
_AT_LEAST = {
    "trainers": 1, "trainer_jobs_per_day": 0, "trainer_hours_per_day": 0, "trainer_money_per_day": 0,
    "trainer_price_per_hour": 0,
}  # fmt: skip


# Addresses, and where the secrets go that some put into one.
_NO_SECRETS = {
    "clickhouse_url": "clickhouse_user and a file that clickhouse_password_file names",
    "artifacts": "a file that artifacts_config names (access_key=…, secret_key=…)",
}


_SECRET_PARAMETER = re.compile(r"(?i)(^|&)(user|username|password|access_key|secret_key|session_token)=")


class SettingsError(ValueError):
    """A setting is unknown or has a wrong value; the message says which and where it stands."""


@dataclass(frozen=True)
class Settings:
    """Everything configurable. An empty address means: start that part locally.

    Secrets are never settings: a `*_file` or `*_config` names a file that holds them. `kafka_config` has a Kafka
    client's security settings as librdkafka spells them, `artifacts_config` an object store's, both as KEY=VALUE lines.
    Lists are written with commas in the environment. `query_*` bound what an analyst's query may take of the local
    ClickHouse; `allow_sources` names what a query there may use beside the project's own tables.

    `metrics_port` is for one process run by itself (0 = no metrics); `up` gives each its own. `max_refused` is how many
    records in a row a consumer may refuse before it slows down (0 = any number; see `streams.dead_letters`). `file` is
    the settings file that was read, "" where there was none. `trainers` is how many jobs may train at once, over all
    models, and `trainer_*` what they may take in 24 hours (0 = any number; money in the unit of its price).
    """

    data_dir: str = ".tuneloop"
    kafka_bootstrap: str = ""
    kafka_config: str = ""
    clickhouse_url: str = ""
    clickhouse_user: str = ""
    clickhouse_password_file: str = ""
    artifacts: str = ""
    artifacts_config: str = ""
    identity_secret_file: str = ""
    allow_plaintext: bool = False
    allow_unauthenticated: bool = False
    http_host: str = "127.0.0.1"
    http_port: int = 0
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allow_sources: tuple[str, ...] = ()
    query_seconds: float = 60.0
    query_memory_mb: int = 2_000
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    serve_replicas: int = 1
    serve_slots: int = 32
    replication_factor: int = 1
    prepare_linger_s: float = 1.0
    prepare_helpers: int = 1
    join_wait_days: float = 30.0
    trainers: int = 1
    trainer_jobs_per_day: int = 0
    trainer_hours_per_day: float = 0.0
    trainer_money_per_day: float = 0.0
    trainer_price_per_hour: float = 0.0
    max_refused: int = MAX_REFUSED
    models: dict[str, ModelPolicy] = field(default_factory=lambda: {"support": ModelPolicy()})
    sources: dict[str, str] = field(default_factory=dict, compare=False)
    file: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.join_wait_days < math.inf:
            origin = self.sources.get("join_wait_days", "the default")
            raise SettingsError(
                f"join_wait_days (from {origin}): expected a number of days above 0, got {self.join_wait_days}"
            )
        for name, least in _AT_LEAST.items():
            if not getattr(self, name) >= least:
                wanted = f"{least} or more" if least else "0 (no bound) or more"
                origin = self.sources.get(name, "the default")
                raise SettingsError(f"{name} (from {origin}): expected {wanted}, got {getattr(self, name)}")
        for name, instead in _NO_SECRETS.items():
            address = urlsplit(getattr(self, name))
            if "@" in address.netloc or _SECRET_PARAMETER.search(address.query):
                origin = self.sources.get(name, "the default")
                raise SettingsError(
                    f"{name} (from {origin}): no user or password in an address, which is shown and logged: put "
                    f"them into {instead}"
                )
        if self.clickhouse_url and urlsplit(self.clickhouse_url).scheme not in ("http", "https"):
            origin = self.sources.get("clickhouse_url", "the default")
            raise SettingsError(f"clickhouse_url (from {origin}): expected https://HOST:PORT (or http://)")
        if not 0 <= self.max_refused <= MOST_REFUSED:
            origin = self.sources.get("max_refused", "the default")
            raise SettingsError(
                f"max_refused (from {origin}): expected 0 (no bound) to {MOST_REFUSED} records, got {self.max_refused}"
            )
        if not self.allow_unauthenticated and not is_loopback(self.http_host):
            origin = self.sources.get("http_host", "the default")
            raise SettingsError(
                f"http_host (from {origin}): {self.http_host!r} lets in whoever reaches this machine, without a key; "
                "leave it 127.0.0.1, or say allow_unauthenticated = true"
            )
        try:
            DoorPolicy(allowed_hosts=self.allowed_hosts, cors_origins=self.cors_origins)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    @property
    def data(self) -> Path:
        return Path(self.data_dir).absolute()

    @property
    def artifact_root(self) -> str:
        return self.artifacts or str(self.data / "artifacts")

    @property
    def artifact_place(self) -> tuple[str, str, str, str]:
        """The arguments of `streams.artifacts.open_store`."""
        config = str(Path(self.artifacts_config).absolute()) if self.artifacts_config else ""
        copies = self.data / "cache" / "artifacts"
        return self.artifact_root, str(copies), str(self.secret_file.absolute()), config

    @property
    def secret_file(self) -> Path:
        return Path(self.identity_secret_file) if self.identity_secret_file else self.data / "secrets" / "identity"


SCALARS = {f.name: f for f in fields(Settings) if f.name not in ("models", "sources", "file")}


def as_text(value: Any) -> str:
    """A setting's value as the environment carries it."""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def load(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in force. `flags` holds what was given on the command line. Raises `SettingsError`."""
    path = Path(flags.get("config") or environment.get(PREFIX + "CONFIG") or DEFAULT_FILE)
    named = bool(flags.get("config") or environment.get(PREFIX + "CONFIG"))
    file = _read(path, named)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in SCALARS:
        origin, value = _first(name, flags, environment, file, path)
        if origin:
            values[name], sources[name] = _typed(name, value, origin), origin
    # Where more than this machine can say something, one alone overrules nobody.
    hosts = [values.get("http_host", Settings.http_host), *hosts_of(values.get("kafka_bootstrap", ""))]
    defaults: dict[str, Any] = {} if all(map(is_loopback, hosts)) else {"corrections": TRUSTED}
    if "models" in file:
        values["models"], sources["models"] = _models(file["models"], path, defaults), str(path)
    elif defaults:
        values["models"] = {"support": ModelPolicy(**defaults)}
    return Settings(**values, sources=sources, file=str(path.absolute()) if path.is_file() else "")


def _read(path: Path, named: bool) -> dict[str, Any]:
    if not path.is_file():
        if named:
            raise SettingsError(f"no settings file at {path}")
        return {}
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    unknown = sorted(content.keys() - SCALARS.keys() - {"models"})
    if unknown:
        raise SettingsError(f"{path}: unknown setting {unknown[0]!r}; known: {', '.join([*SCALARS, 'models'])}")
    return content


def _first(
    name: str, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any], path: Path
) -> tuple[str, Any]:
    if flags.get(name) is not None:
        return "flag", flags[name]
    variable = PREFIX + name.upper()
    if variable in environment:
        return variable, environment[variable]
    return (str(path), file[name]) if name in file else ("", None)


def _typed(name: str, value: Any, origin: str) -> Any:
    default = getattr(Settings, name)
    listed = isinstance(default, tuple)
    if listed and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(value, tuple[str, ...] if listed else type(default), strict=False)
    except msgspec.ValidationError as error:
        wanted = "a list of str" if listed else type(default).__name__
        raise SettingsError(f"{name} (from {origin}): expected {wanted}, got {value!r}") from error


def _models(tables: Any, path: Path, defaults: Mapping[str, Any]) -> dict[str, ModelPolicy]:
    if not isinstance(tables, dict):
        raise SettingsError(f"{path}: models: expected tables [models.NAME], got {tables!r}")
    models = {}
    for name, table in tables.items():
        if not is_name(name):
            raise SettingsError(f"{path}: models.{name}: a model's name has {WANTED}")
        try:
            models[name] = msgspec.convert({**defaults, **table} if isinstance(table, dict) else table, ModelPolicy)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{path}: models.{name}: {error}") from error
    if not models:
        raise SettingsError(f"{path}: models: at least one model is needed")
    return models
