"""Is a process ready: probes written as text, so that a spec can be stored. Changes nothing."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local.ports import port_answers

TIMEOUT_S = 1.0
# A probe asks this machine: a proxy named in the environment has no business there.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_ready(probe: str | None, started_at: float) -> bool:
    """Runs a probe for a process that started at `started_at`. Raises ValueError for an unknown kind of probe."""
    if probe is None:
        return True
    kind, _, target = probe.partition(":")
    match kind:
        case "tcp":
            host, _, port = target.rpartition(":")
            return port_answers(int(port), host, TIMEOUT_S)
        case "kafka":
            from deploy.local.kafka import registered  # it brings the client, which no other probe needs

            return registered(target, TIMEOUT_S)
        case "http":
            return _answers_200(_url(target))
        case "file":
            return _written_since(Path(target), started_at)
    raise ValueError(_unknown(probe))


def port_of(probe: str | None) -> int | None:
    """The port on which a probe expects its process, None for one without. Raises ValueError as `is_ready` does."""
    kind, _, target = (probe or "file:").partition(":")
    match kind:
        case "tcp" | "kafka":
            return int(target.rpartition(":")[2])
        case "http":
            return urlsplit(_url(target)).port
        case "file":
            return None
    raise ValueError(_unknown(probe))


def _url(target: str) -> str:
    """Both http:http://... and the URL itself, http://..., are understood."""
    return f"http:{target}" if target.startswith("//") else target


def _unknown(probe: str | None) -> str:
    return f"ready={probe!r}: a probe is tcp:HOST:PORT, kafka:HOST:PORT, http:URL or file:PATH"


def _answers_200(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _written_since(path: Path, started_at: float) -> bool:
    try:
        return path.stat().st_mtime >= started_at
    except FileNotFoundError:
        return False
