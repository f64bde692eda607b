"""What no file of the project may hold, and what may lie at its top."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = {
    "schemas", "streams", "serving", "trainers", "deploy", "tests", "pyproject.toml", "README.md", "Makefile",
    "requirements.in", "requirements-dev.in", "requirements.txt", "requirements-dev.txt", "requirements-uv.txt", "LICENSE",
    "SECURITY.md", ".ci", ".gitignore", ".github",
    ".gitattributes", ".dockerignore", ".editorconfig", ".python-version", ".pre-commit-config.yaml",
}  # fmt: skip
# Written in parts, so that this file does not hold what it looks for.
HOSTS = ("py" + "pi.org", "python" + "hosted.org", "repo1." + "maven", "repo." + "maven", "maven" + ".org", "index" + "-url =")
MACHINES = re.compile(r"(?<![\w.{}$~-])/(?:work|root|home/\w+|Users/\w+)/")


@cache
def files() -> tuple[Path, ...]:
    """Every text file that git tracks or would track."""
    told = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    if told.returncode:
        pytest.skip("not a git checkout: nothing says which files are the project's")
    names = [name for name in told.stdout.decode().split("\0") if name]
    return tuple(path for name in names if (path := ROOT / name).is_file() and path.suffix not in (".safetensors", ".png"))


def foreign(text: str) -> list[str]:
    """Hosts of package registries and paths of a developer's machine in a text."""
    return [host for host in HOSTS if host in text] + MACHINES.findall(text)


def test_no_file_names_a_registry_or_a_developers_machine() -> None:
    found = {str(p.relative_to(ROOT)): foreign(p.read_text(errors="replace")) for p in files()}
    assert {name: hits for name, hits in found.items() if hits} == {}


@pytest.mark.parametrize(
    "text",
    ["see https://py" + "pi.org/x", "cd /wo" + "rk/main", "'/ro" + "ot/.cache'", "/ho" + "me/anna/x", "(/Us" + "ers/anna/x)"],
)
def test_what_may_not_stand_there_is_found(text: str) -> None:
    assert foreign(text)


@pytest.mark.parametrize("text", ["streams/work/x", "https://example.org/root/x", "$HOME/x", "~/work/x", "/tmp/x"])
def test_what_may_stand_there_is_not(text: str) -> None:
    assert not foreign(text)


def wrong_lines(text: str) -> list[str]:
    """Pinned requirements that are no `name==version` with at least one sha256."""
    pin = re.compile(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[\w.!+-]+( *;[^#]*?)?( +--hash=sha256:[0-9a-f]{64})+")
    whole = text.replace("\\\n", " ").splitlines()
    return [line for line in whole if line.strip() and not pin.fullmatch(line.strip())]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-uv.txt"])
def test_requirements_are_pins_with_hashes_and_nothing_else(name: str) -> None:
    assert wrong_lines((ROOT / name).read_text()) == []


HASH = " \\\n    --hash=sha256:" + "0a" * 32


@pytest.mark.parametrize(
    "line",
    ["--index" + "-url https://x", "a==1", "a>=2" + HASH, "-e .", "a @ https://x" + HASH, "a==1" + HASH[:-1],
     "a==1 ; python_version < '3'", "a==1 \\\n    --hash=md5:00", "# a==1" + HASH],
)  # fmt: skip
def test_any_other_requirement_is_found(line: str) -> None:
    assert not wrong_lines("a==1" + HASH + HASH) and not wrong_lines("a==1 ; python_version < '3'" + HASH)
    assert wrong_lines(line)


def versions(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([^\s=]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def test_what_runs_is_what_is_tested_and_brings_no_tool_of_tests() -> None:
    runtime, tests = versions("requirements.txt"), versions("requirements-dev.txt")
    assert runtime.items() <= tests.items()
    assert {"docker", "testcontainers", "jpype1", "pytest", "hypothesis", "mypy", "ruff", "datasets"} <= tests.keys() - runtime.keys()


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in named}


def test_what_runs_imports_only_what_it_declares() -> None:
    declared = {re.split(r"[\[;]", line)[0].strip() for line in (ROOT / "requirements.in").read_text().splitlines()}
    ours = {"schemas", "streams", "serving", "trainers", "deploy"}
    bringing = packages_distributions()
    modules = [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in ours]
    used = {name for path in modules for name in imported(path)} - ours - sys.stdlib_module_names
    missing = {name for name in used if not declared & {re.sub("[-_.]+", "-", one).lower() for one in bringing.get(name, [])}}
    assert missing - {"compression"} == set()  # of Python 3.14; before it, backports.zstd
    assert {"torch", "rich", "confluent_kafka"} <= used


def test_the_top_level_holds_only_what_is_agreed() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in files()}
    assert top - TOP == set()


def test_every_package_is_a_package_and_every_module_says_what_it_is() -> None:
    for path in files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in TOP - {"tests"}:
            assert (path.parent / "__init__.py").exists(), path
            assert path.read_text().lstrip().startswith('"""'), f"{path}: a module begins with what it does"
