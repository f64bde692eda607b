"""A replica ends up serving what the registry wants, whatever fails on the way. The engine is stood in for: what counts
here is which version answers, and when it is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas import events as e
from schemas.policy import ModelPolicy
from serving import follow
from serving.follow import Follower
from streams.artifacts import ArtifactStore
from tests.examples import example
from tests.stores import store_at

MODEL = "support"


class StandInEngine:
    dtype = "float32"

    def load(self, name: str, folder: Path) -> None:
        pass

    def unload(self, name: str) -> None:
        pass

    def fingerprint(self, name: str) -> list[float]:
        return [0.25, -1.5]


class Registry:
    """A follower of one model, and a store whose folders cannot be had while it is `away`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.now, self.said, self.versions = False, 1_000.0, list[e.AdapterLoaded](), list[e.Version]()
        self.store = store_at(folder / "store")
        (folder / "files").mkdir()
        (folder / "files" / "weights").write_text("weights")
        self.path, self.digest = self.store.put_folder("adapters", folder / "files")
        base_path, base_digest = self.store.put_folder("bases", folder / "files")
        self.base = example(e.BaseRegistered, "base", path=base_path, digest=base_digest)
        monkeypatch.setattr(follow.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(ArtifactStore, "get_folder", self._get)
        self.follower = self.fresh()

    def _get(self, *_: Any) -> Path:
        if self.away:
            raise OSError(5, "Input/output error")
        return Path("/nowhere")

    def fresh(self) -> Follower:
        engine: Any = StandInEngine()
        policies = {MODEL: ModelPolicy(base="base")}
        return Follower(policies, self.store, "replica", self.said.append, lambda _: engine)

    def promote(self, number: int) -> e.ModelStateChanged:
        self.versions.append(
            example(e.Version, MODEL, version=number, digest=f"{number:064x}", path=self.path, base="base", base_digest=self.base.digest)
        )
        state = self.state(number)
        self.follower._take(state)
        return state

    def state(self, number: int) -> e.ModelStateChanged:
        about = {"champion": number, "previous": number - 1, "epoch": number, "versions": [*self.versions], "base": "base"}
        state: e.ModelStateChanged = example(e.ModelStateChanged, MODEL, **about)
        return state

    def wait(self, seconds: float) -> None:
        """Time passes as the follower's loop sees it: a look every tenth of a second."""
        for _ in range(round(10 * seconds)):
            self.now += 0.1
            self.follower._try_again()

    def told(self) -> list[tuple[int, bool]]:
        return [(event.version, event.loaded) for event in self.said]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(tmp_path, monkeypatch)


def test_what_could_not_be_loaded_is_tried_again_until_it_serves(registry: Registry) -> None:
    registry.follower._take(registry.base)
    registry.follower.at_end()
    registry.promote(1)
    registry.away = True
    registry.promote(2)
    assert registry.follower.champions() == {MODEL: 1}
    registry.wait(100)
    assert registry.told() == [(0, True), (1, True), (2, False)], "said once, not at every try"
    registry.away = False
    registry.wait(follow.LONGEST_PAUSE_S + 1)
    assert registry.follower.champions() == {MODEL: 2} and registry.told()[-1] == (2, True)


def test_the_pauses_grow_and_another_version_is_tried_at_once(registry: Registry) -> None:
    registry.follower._take(registry.base)
    registry.follower.at_end()
    registry.away = True
    registry.promote(1)
    pauses = []
    for _ in range(7):
        failure = registry.follower._failed[MODEL]
        pauses.append(failure.pause_s)
        registry.wait(failure.pause_s + 0.2)
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    registry.away = False
    registry.promote(2)
    assert registry.follower.champions() == {MODEL: 2} and registry.follower._failed == {}


def test_who_reads_the_registry_anew_does_not_walk_through_old_champions(registry: Registry) -> None:
    said = [registry.base, *(registry.promote(number) for number in (1, 2, 3))]
    registry.follower = registry.fresh()
    for _ in range(2):  # read once; then reading failed, and began again
        registry.follower._in_the_past = True
        for event in said:
            registry.follower._take(event)
            assert registry.follower.champions().get(MODEL) in (None, 3)
        registry.follower.at_end()
        assert registry.follower.champions() == {MODEL: 3}
    assert [version for version, loaded in registry.told() if loaded] == [3]


def test_a_replica_that_starts_while_the_store_is_away_answers_once_it_is_back(registry: Registry) -> None:
    registry.away = True
    registry.follower._take(registry.base)
    registry.promote(1)
    registry.follower.at_end()
    assert not registry.follower.ready()
    registry.away = False
    registry.wait(3)
    assert registry.follower.ready() and registry.follower.champions() == {MODEL: 1}


def test_a_promotion_to_another_base_and_the_way_back_each_find_their_engine(registry: Registry) -> None:
    registry.follower._take(registry.base)
    registry.follower.at_end()
    registry.promote(1)
    other = msgspec.structs.replace(registry.base, model="other", digest="5" * 64)
    registry.follower._take(other)
    registry.versions.append(msgspec.structs.replace(registry.versions[0], version=2, digest=f"{2:064x}", base="other", base_digest=other.digest))
    after = registry.state(2)
    registry.follower._take(after)
    assert (registry.follower.champion(MODEL).version, registry.follower.champion(MODEL).base) == (2, "other")
    registry.follower._take(msgspec.structs.replace(after, champion=1, previous=2, epoch=3))
    assert (registry.follower.champion(MODEL).version, registry.follower.champion(MODEL).base) == (1, "base")
    assert registry.follower.loaded(MODEL, 2) is not None, "the one before stays at hand"
