"""The gate refuses what is worse, what is no better, and what is not what it says; serving goes on as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy.demo.stage import MODEL
from schemas.events import CandidateTrained, Version
from serving.engine import Engine
from streams import kafka
from streams.registry import find
from tests.broker import fresh, publish, until
from tests.e2e.steady import Steady
from tests.e2e.system import System
from tests.tiny_model import make_tiny_adapter, make_tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WEIGHTS = "adapter_model.safetensors"


class Workshop:
    """Makes candidates out of the champion's adapter, each correctly stored under its own digest."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system, self.folder, self.store = system, folder, system.store
        state = system.registered()
        entry = find(state, state.champion)
        assert entry is not None
        self.champion: Version = entry
        self.base_path = f"bases/{entry.base_digest}"
        self.base_dir = self.store.get_folder(self.base_path, entry.base_digest)

    def adapter(self, change: Callable[[Path], None]) -> Path:
        """A copy of the champion's adapter with `change` done to it."""
        copy = self.folder / fresh("adapter")
        shutil.copytree(self.store.get_folder(self.champion.path, self.champion.digest), copy)
        change(copy)
        return copy

    def stored(self, adapter: Path, **fields: Any) -> CandidateTrained:
        path, digest = self.store.put_folder("adapters", adapter)
        fields = {"fingerprint": self.champion.fingerprint, **fields}
        return self.candidate(path=path, digest=digest, **fields)

    def fingerprint(self, adapter: Path, base_dir: Path | None = None) -> list[float]:
        engine = Engine(base_dir or self.base_dir, slots=1)
        try:
            engine.load("planted", adapter)
            return engine.fingerprint("planted")
        finally:
            engine.close()

    def candidate(self, **fields: Any) -> CandidateTrained:
        like = self.champion
        values: dict[str, Any] = {
            "model": MODEL, "job_id": fresh("planted"), "base": like.base, "base_path": self.base_path,
            "base_digest": like.base_digest, "parent_version": like.version, "new_data": like.new_data,
            "replay_data": like.replay_data, "method": "lora", "examples": 1, "steps": 1, "loss": 0.1,
            "seconds": 1.0, "fingerprint": like.fingerprint, "reason": "drift", "changed_at": 1,
        }  # fmt: skip
        return CandidateTrained(**{**values, **fields})


def note(folder: Path) -> None:
    """Other bytes, the same weights."""
    with (folder / "README.md").open("a") as card:
        card.write(f"\n{fresh('note')}\n")


def damage(folder: Path) -> None:
    """A real regression: every B of the adapter multiplied by noise, saved as well as any other."""
    dice = torch.Generator().manual_seed(5)
    weights = load_file(folder / WEIGHTS)
    for name, weight in weights.items():
        if ".lora_B." in name:
            noise = torch.randn(weight.shape, generator=dice) * 2
            weights[name] = (weight.float() * noise).to(weight.dtype)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def regression(shop: Workshop) -> CandidateTrained:
    adapter = shop.adapter(damage)
    return shop.stored(adapter, fingerprint=shop.fingerprint(adapter))


def regression_that_need_not_be_better(shop: Workshop) -> CandidateTrained:
    adapter = shop.adapter(damage)
    note(adapter)  # another one: the files of a refused candidate go
    return shop.stored(adapter, fingerprint=shop.fingerprint(adapter), reason="age", changed_at=0)


def same_again(shop: Workshop) -> CandidateTrained:
    return shop.stored(shop.adapter(note))


def missing(shop: Workshop) -> CandidateTrained:
    return shop.candidate(path="adapters/" + "0" * 64, digest="0" * 64)


def changed_bytes(shop: Workshop) -> CandidateTrained:
    candidate = shop.stored(shop.adapter(note))
    file = shop.system.settings.data / "artifacts" / candidate.path / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return candidate


def other_base(shop: Workshop) -> CandidateTrained:
    base = make_tiny_base(shop.folder / "tiny")
    path, digest = shop.store.put_folder("bases", base)
    adapter = make_tiny_adapter(base, shop.folder / "tiny-adapter")
    logits = shop.fingerprint(adapter, base)
    return shop.stored(adapter, base="tiny", base_path=path, base_digest=digest, fingerprint=logits)


def wrong_base_claimed(shop: Workshop) -> CandidateTrained:
    base = make_tiny_base(shop.folder / "tiny-2")
    return shop.stored(make_tiny_adapter(base, shop.folder / "tiny-2-adapter", seed=2))


def another_fingerprint(shop: Workshop) -> CandidateTrained:
    logits = [value + 1.0 for value in shop.champion.fingerprint]
    return shop.stored(shop.adapter(note), fingerprint=logits)


# Each candidate with words that the reason of its refusal must hold.
PLANTED: dict[str, tuple[Callable[[Workshop], CandidateTrained], tuple[str, ...]]] = {
    "a regression": (regression, ("superiority on recent rows refused",)),
    "a regression by age": (regression_that_need_not_be_better, ("non_inferiority on", "rows refused")),
    "the champion again": (same_again, ("superiority on recent rows refused", "+0.0000 is not above")),
    "a missing artifact": (missing, ("missing from the store",)),
    "changed bytes": (changed_bytes, ("damaged",)),
    "a worse one on another base": (other_base, ("superiority on recent rows refused",)),
    "an adapter for another base": (wrong_base_claimed, ("another base",)),
    "another fingerprint": (another_fingerprint, ("logits",)),
}


class Judged:
    """What became of the planted candidates, and what clients saw meanwhile."""

    def __init__(self, system: System, folder: Path) -> None:
        self.before = system.registered()
        shop = Workshop(system, folder)
        self.candidates = {name: make(shop) for name, (make, _) in PLANTED.items()}
        bootstrap = system.where.bootstrap
        with Steady(system.where.http, tuple(q.text for q in system.plan.after[:20])) as self.client:
            publish(bootstrap, [kafka.out(c, source="work", subject=c.job_id) for c in self.candidates.values()])
            jobs = [candidate.job_id for candidate in self.candidates.values()]
            query = "SELECT count() FROM tuneloop.decision_made FINAL WHERE job_id IN {jobs:Array(String)}"
            until(lambda: system.value(query, jobs=jobs) == len(jobs), 180, "a decision on every planted candidate")
        self.after = system.registered()


@pytest.fixture(scope="module")
def judged(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    yield Judged(system, tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_candidate_is_refused_for_its_own_reason(system: System, judged: Judged, name: str) -> None:
    candidate = judged.candidates[name]
    found = system.rows(
        "SELECT decision, reason, version FROM tuneloop.decision_made FINAL WHERE job_id = {job:String}",
        job=candidate.job_id,
    )
    assert [(row["decision"], row["version"]) for row in found] == [("refused", 0)]
    verdict = system.rows(
        "SELECT passed, reason FROM tuneloop.verdict_reached FINAL WHERE job_id = {job:String}", job=candidate.job_id
    )
    assert [row["passed"] for row in verdict] == [False]
    assert verdict[0]["reason"] == found[0]["reason"]
    for words in PLANTED[name][1]:
        assert words in found[0]["reason"]


def test_the_regression_was_measured_not_guessed(system: System, judged: Judged) -> None:
    job = judged.candidates["a regression"].job_id
    (verdict,) = [seen.body for seen in system.topic("models.verdicts", "VerdictReached") if seen.body["job_id"] == job]
    assert verdict["champion_version"] == judged.before.champion
    for check in [check for check in verdict["checks"] if check["dataset"] != "classes"]:
        assert check["candidate_mean"] < check["champion_mean"] - 0.1
        assert not check["passed"] and check["bound"] < -check["margin"]


def test_the_champion_again_shows_no_difference_at_all(system: System, judged: Judged) -> None:
    job = judged.candidates["the champion again"].job_id
    (verdict,) = [seen.body for seen in system.topic("models.verdicts", "VerdictReached") if seen.body["job_id"] == job]
    checks = {check["check"]: check for check in verdict["checks"]}
    assert all(check["difference"] == check["discordance"] == 0 for check in checks.values())
    assert checks["classes"]["passed"], "an equal candidate loses nothing"
    assert not checks["superiority"]["passed"], "an equal candidate gains nothing"


def test_serving_stayed_as_it_was(system: System, judged: Judged) -> None:
    assert judged.client.failures == []
    assert judged.client.versions() == [judged.before.champion]
    assert (judged.after.epoch, judged.after.champion) == (judged.before.epoch, judged.before.champion)
    assert [v.digest for v in judged.after.versions] == [v.digest for v in judged.before.versions]


def test_a_refused_candidate_gets_no_number(system: System, judged: Judged) -> None:
    listed = httpx.get(f"{system.where.http}/v1/models", trust_env=False).json()["data"]
    assert {row["id"] for row in listed} == {MODEL, *(f"{MODEL}@{name}" for name in ("champion", 0, 1, 2))}
