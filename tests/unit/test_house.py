"""What no file of the project may hold, and what may lie at its top."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = {
    "schemas", "streams", "serving", "trainers", "deploy", "tests", "pyproject.toml", "README.md", "Makefile",
    "requirements.in", "requirements-dev.in", "requirements.txt", "LICENSE", ".ci", ".gitignore", ".github",
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
    """Lines of pinned requirements that are no `name==version`."""
    pin = re.compile(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[\w.!+-]+( *;.*)?")
    return [line for line in text.splitlines() if line.strip() and not pin.fullmatch(line.strip())]


def test_requirements_are_pins_and_nothing_else() -> None:
    assert wrong_lines((ROOT / "requirements.txt").read_text()) == []
    assert wrong_lines("--index" + "-url https://x\na==1\nb>=2\n-e .\nc @ https://x\n")[1:] == ["b>=2", "-e .", "c @ https://x"]


def test_the_top_level_holds_only_what_is_agreed() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in files()}
    assert top - TOP == set()


def test_every_package_is_a_package_and_every_module_says_what_it_is() -> None:
    for path in files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in TOP - {"tests"}:
            assert (path.parent / "__init__.py").exists(), path
            assert path.read_text().lstrip().startswith('"""'), f"{path}: a module begins with what it does"
