"""The text the small base is pre-trained on: the Python standard library's own documentation.

Reads the docstrings of the standard library's sources and of its compiled modules, and `pydoc_data.topics`: on
every machine, no download, always in the same order for one Python. Gives back values and writes nothing.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Not documentation, or tables of data; `test` is missing from many distributions of Python.
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "encodings", "__pycache__", "lib2to3"}
SHORTEST = 20  # characters


def read_passages() -> list[str]:
    """Every passage of the running Python's documentation, duplicates removed, in a fixed order."""
    passages = [*_topics(), *_compiled_docstrings(), *_source_docstrings()]
    return list(dict.fromkeys(text for text in passages if len(text) >= SHORTEST))


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield topics[topic].strip()


def _compiled_docstrings() -> Iterator[str]:
    for module_name in sorted(sys.builtin_module_names):
        if module_name.startswith("_") and module_name not in {"_io", "_thread"}:
            continue
        module = importlib.import_module(module_name)
        for name in sorted(vars(module)):
            member = getattr(module, name)
            members = [member]
            if inspect.isclass(member):
                members += [value for _, value in sorted(vars(member).items())]
            for value in members:
                text = getattr(value, "__doc__", None)
                if isinstance(text, str) and (callable(value) or inspect.isdatadescriptor(value)):
                    yield inspect.cleandoc(text)


def _source_docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED_FOLDERS & set(parts) or "topics.py" in parts or path.stem.startswith("_sysconfigdata"):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # templates and other encodings are not documentation
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text
