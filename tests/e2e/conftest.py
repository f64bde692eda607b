"""The one system that all files of this folder share, and a client that keeps asking while tests do things to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import system as whole


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[whole.System]:
    with whole.playing(tmp_path_factory.mktemp("tuneloop")) as one:
        yield one
