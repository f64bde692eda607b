"""Where Kafka's jars come from: the cache, a named folder, or an error of one line that says what to do."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from deploy.local import jars, kafka
from deploy.local.errors import LocalPartError


def make_jar(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("content", "")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNELOOP_KAFKA_JARS", raising=False)
    return tmp_path / "cache"


def test_without_a_network_the_error_says_what_to_do(monkeypatch, own_cache) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(LocalPartError) as raised:
        kafka.fetch_jars()
    assert "\n" not in str(raised.value)
    assert "connect this machine to the network" in str(raised.value)
    assert "the address of a running Kafka" in str(raised.value)
    with pytest.raises(LocalPartError, match=r"Cannot download driver.* connect this machine to the network"):
        jars.fetch(jars.Archives("driver", None, ("com.clickhouse:clickhouse-jdbc:0.9.9:all",)))
    assert list(own_cache.iterdir()) == [], "a failed download leaves nothing behind"


def test_cached_jars_need_no_network(own_cache, monkeypatch) -> None:
    jar = make_jar(own_cache / "kafka-4.3.1" / "kafka.jar")
    (own_cache / "sums").write_text(f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  kafka-4.3.1/kafka.jar\n")
    monkeypatch.setattr(jars, "SUMS", own_cache / "sums")
    assert kafka.fetch_jars() == str(own_cache / "kafka-4.3.1" / "*")


def test_a_named_folder_comes_first_and_must_have_jars(tmp_path, monkeypatch) -> None:
    make_jar(tmp_path / "libs" / "kafka.jar")
    monkeypatch.setenv("TUNELOOP_KAFKA_JARS", str(tmp_path / "libs"))
    assert kafka.fetch_jars() == str(tmp_path / "libs" / "*")
    monkeypatch.setenv("TUNELOOP_KAFKA_JARS", str(tmp_path / "elsewhere"))
    with pytest.raises(LocalPartError, match="has no jars"):
        kafka.fetch_jars()


def test_a_jar_cut_short_is_refused(tmp_path) -> None:
    cut = make_jar(tmp_path / "whole.jar")
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(LocalPartError, match=r"whole\.jar arrived incomplete"):
        jars._collect([cut], tmp_path / "jars")
