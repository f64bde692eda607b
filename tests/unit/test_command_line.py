"""The command line imports only what is named: every name leads to its command, every expected error to its class."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from deploy.cli.main import EXPECTED, NOUNS, VERBS, command_line, expected
from deploy.settings import SettingsError

NAMES = [*(verb for verbs in VERBS.values() for verb in verbs), *NOUNS]


def commands(*words: str) -> set[str]:
    return set(typer.main.get_command(command_line(words)).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_brings_its_command(name: str) -> None:
    assert name in commands("--config", "x.toml", name)


def test_no_name_or_an_unknown_one_brings_all() -> None:
    assert commands() == commands("modles", "ls") == set(NAMES)


def test_every_command_that_the_readme_names_is_there() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    named = set(re.findall(r"tuneloop (models|base|data|jobs|dlq|config) ([a-z]+)", text))
    assert ("data", "synthesize") in named
    group = typer.main.get_command(command_line())
    for noun, verb in named:
        assert verb in group.commands[noun].commands, f"tuneloop {noun} {verb}"  # type: ignore[attr-defined]


def test_a_name_does_not_bring_the_others() -> None:
    assert commands("config", "show") == {"config"}


@pytest.mark.parametrize(("module", "name"), EXPECTED.items())
def test_an_expected_error_is_a_class_of_its_module(module: str, name: str) -> None:
    error = getattr(importlib.import_module(module), name)("what, where, what next")
    assert expected(error) == "what, where, what next"


def test_any_other_error_is_not_swallowed() -> None:
    assert expected(ZeroDivisionError("a defect")) is None
    assert expected(SettingsError("known")) == "known"


@pytest.mark.slow
def test_a_command_says_itself_what_went_wrong_with_kafka(tmp_path: Path) -> None:
    """And in one line: the client library's own log is for processes that have one."""
    asks = (
        "import sys; from deploy.cli.context import context; from streams import kafka\n"
        f"context.flags['data_dir'] = {str(tmp_path)!r}; context.flags['kafka_bootstrap'] = '127.0.0.1:1'\n"
        "QUIET\n"
        "client = kafka.producer('127.0.0.1:1'); client.produce('t', b'x'); client.flush(2)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", asks.replace("QUIET", words)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        ).stderr
        for words in ("", "context.addresses")
    ]
    assert "FAIL|rdkafka" in said[0] and "rdkafka" not in said[1], said
