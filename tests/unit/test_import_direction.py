"""schemas <- streams <- serving <- trainers <- deploy: a layer imports only itself and those before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("schemas", "streams", "serving", "trainers", "deploy")


def imported(source: str) -> set[str]:
    """The modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            names.add(node.module or "")
    return names


def against_the_line(layer: str, source: str) -> list[str]:
    later = {*LAYERS[LAYERS.index(layer) + 1 :], "tests"}
    return sorted(name for name in imported(source) if name.split(".")[0] in later)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_imports_only_those_before_it(layer: str) -> None:
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    assert [f"{f.relative_to(ROOT)}: {name}" for f in files for name in against_the_line(layer, f.read_text())] == []


def test_an_import_against_the_line_is_found_wherever_it_stands() -> None:
    source = "import serving.app\ndef late():\n    from deploy.settings import load\nfrom schemas import events\n"
    assert against_the_line("streams", source) == ["deploy.settings", "serving.app"]
    assert against_the_line("deploy", source) == []
    assert against_the_line("schemas", "import tests.broker") == ["tests.broker"]
