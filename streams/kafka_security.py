"""How this process's Kafka clients prove who they are: a file of KEY=VALUE lines, as librdkafka spells them.

Its path stands in the environment variable TUNELOOP_KAFKA_CONFIG, which children and replicas inherit: a secret is
never an argument. Closed: what is not a client's security setting is an error that names it. Without a file clients
speak plaintext.
"""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any

from streams.key_values import KeyValueError, read_key_values

VARIABLE = "TUNELOOP_KAFKA_CONFIG"
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
# What librdkafka and Faust's client both speak.
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
KNOWN = frozenset(
    {
        *("security.protocol", "sasl.mechanism", "sasl.username", "sasl.password"),
        *("ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password"),
        "ssl.endpoint.identification.algorithm",
    }
)


class KafkaConfigError(ValueError):
    """The file of `kafka_config` is missing or wrong; the message names file and setting, never a value."""


def security() -> dict[str, str]:
    """The security settings in force, by librdkafka's names. Raises `KafkaConfigError`."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return {}
    try:
        changed_ns = os.stat(path).st_mtime_ns
    except OSError as error:
        raise KafkaConfigError(f"kafka_config = {path}: {error.strerror}; name a file that is there") from None
    return dict(_read(path, changed_ns))


@lru_cache(maxsize=8)
def _read(path: str, changed_ns: int) -> dict[str, str]:
    try:
        return read(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise KafkaConfigError(f"kafka_config = {path}: cannot be read ({type(error).__name__})") from None


def read(text: str, path: str) -> dict[str, str]:
    """The settings in a file's text. Raises `KafkaConfigError`."""
    try:
        found = read_key_values(text, path, KNOWN | {"sasl.mechanisms"})
    except KeyValueError as error:
        raise KafkaConfigError(str(error)) from None
    if "sasl.mechanisms" in found:  # librdkafka's other word for it
        found["sasl.mechanism"] = found.pop("sasl.mechanisms")
    _check(found, path)
    return found


def _check(found: dict[str, str], path: str) -> None:
    protocol = found["security.protocol"] = found.get("security.protocol", "PLAINTEXT").upper()
    if protocol not in PROTOCOLS:
        raise KafkaConfigError(f"{path}: security.protocol is none of {', '.join(PROTOCOLS)}")
    if not protocol.startswith("SASL"):
        if any(name.startswith("sasl.") for name in found):
            raise KafkaConfigError(f"{path}: sasl.* needs security.protocol = SASL_SSL (or SASL_PLAINTEXT)")
        return
    if found.get("sasl.mechanism") not in MECHANISMS:
        raise KafkaConfigError(f"{path}: sasl.mechanism is none of {', '.join(MECHANISMS)}")
    missing = [name for name in ("sasl.username", "sasl.password") if not found.get(name)]
    if missing:
        raise KafkaConfigError(f"{path}: {missing[0]} is missing")


def encrypted() -> bool:
    """Whether what clients say is encrypted on its way. Raises `KafkaConfigError`."""
    return security().get("security.protocol", "PLAINTEXT").endswith("SSL")


def faust_credentials() -> Any:
    """The same for Faust; None for plaintext. Raises `KafkaConfigError`."""
    from faust.auth import SASLCredentials, SSLCredentials

    found = security()
    protocol = found.get("security.protocol", "PLAINTEXT")
    context = _ssl_context(found) if protocol.endswith("SSL") else None
    if protocol.startswith("SASL"):
        return SASLCredentials(
            username=found["sasl.username"], password=found["sasl.password"], ssl_context=context,
            mechanism=found["sasl.mechanism"],
        )  # fmt: skip
    return SSLCredentials(context) if context is not None else None


def _ssl_context(found: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=found.get("ssl.ca.location"))
        context.check_hostname = found.get("ssl.endpoint.identification.algorithm", "https") != "none"
        if "ssl.certificate.location" in found:
            context.load_cert_chain(
                found["ssl.certificate.location"], found.get("ssl.key.location"), found.get("ssl.key.password")
            )
    except (OSError, ssl.SSLError) as error:
        raise KafkaConfigError(f"a certificate of kafka_config cannot be used: {error}") from None
    return context
