"""npm packages for tests: from the cache, or a skip that says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import node

Skipped = pytest.skip.Exception


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_node_the_skip_says_so(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Skipped, match="there is no node"):
        node.packages("kafkajs", "2.2.4")


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm on this machine")
def test_without_a_registry_the_skip_says_so_and_leaves_nothing(monkeypatch, own_cache) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(own_cache.parent / "npm"))
    with pytest.raises(Skipped, match=r"npm cannot fetch kafkajs@2\.2\.4: .*ECONNREFUSED"):
        node.packages("kafkajs", "2.2.4")
    assert list(own_cache.iterdir()) == []


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm on this machine")
def test_what_is_cached_is_not_fetched_again(monkeypatch, own_cache) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    (own_cache / "npm-asyncapi-specs-1.0.0" / "node_modules" / "@asyncapi/specs").mkdir(parents=True)
    assert node.packages("@asyncapi/specs", "1.0.0") == own_cache / "npm-asyncapi-specs-1.0.0"
