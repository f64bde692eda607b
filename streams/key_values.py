"""Files of KEY=VALUE lines: how the security settings of Kafka's clients and of an object store are written down."""

from __future__ import annotations

from collections.abc import Collection


class KeyValueError(ValueError):
    """A line that is none, or an unknown key; the message names file, line and key, never a value."""


def read_key_values(text: str, path: str, known: Collection[str]) -> dict[str, str]:
    """The values by key; blank lines and those that begin with # or ; say nothing. Raises `KeyValueError`."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        key, separator, value = stripped.partition("=")
        if not separator or key.strip() not in known:
            what = f"unknown setting {key.strip()!r}" if separator else "expected KEY=VALUE"
            raise KeyValueError(f"{path}, line {number}: {what}; known: {', '.join(sorted(known))}")
        found[key.strip()] = value.strip()
    return found
