"""The one system that all files of this folder share, and a client that keeps asking while tests do things to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.e2e import system as whole

_ended: list[int] = []


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[whole.System]:
    with whole.playing(tmp_path_factory.mktemp("tuneloop")) as one:
        yield one


def pytest_sessionfinish(exitstatus: int) -> None:
    _ended.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Leave at once. Seen once in ten runs: after the last line the interpreter took librdkafka's threads apart while
    they ran, and a run in which all had passed ended with SIGSEGV."""
    if _ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_ended[-1])
