"""The fine-tuning engine's warm child: one job at a time, from shards to a stored adapter.

Reads shards and models from the artifact store, writes the adapter there under its content's hash. Has no
Kafka client; whoever spawned it publishes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from schemas.events import JobRequested
from schemas.policy import ModelPolicy
from serving.base import PROBE
from serving.engine import Engine
from streams.artifacts import ArtifactStore, open_store, put_shard_set
from streams.losses import TRAINED_KINDS, as_they_stand, is_void, losses, reason
from trainers import sft
from trainers.opened import JobError, job_data
from trainers.row_files import places, put_table

Report = Callable[[dict[str, Any]], None]


def make(*artifacts: str) -> Callable[[Any, Report], dict[str, Any]]:
    """What the warm child runs for each request; `artifacts` are the arguments of `open_store`."""
    store = open_store(*artifacts)
    return lambda request, report: train(request, report, store)


def train(request: Any, report: Report, store: ArtifactStore) -> dict[str, Any]:
    """Do one job; returns the candidate's own fields, or why it is void. Raises `JobError` and `ArtifactError`."""
    report({"phase": "started"})
    job = msgspec.convert(request["job"], JobRequested)
    policy = msgspec.convert(request["policy"], ModelPolicy)
    # In the form that is read now: what is gone when the training ends was learned from.
    new, replay = as_they_stand(store, job.new_data), as_they_stand(store, job.replay_data)
    data = job_data(job, policy, store, new, replay)
    base_dir = store.get_folder(job.base_path, job.base_digest)
    parent = store.get_folder(job.parent_path, job.parent_digest) if job.parent_digest else None
    recipe = recipe_of(job.recipe)
    with tempfile.TemporaryDirectory(prefix="tuneloop-job-") as folder:
        trained = sft.train(
            base_dir,
            [sft.Example(messages=row.messages, completion=row.completion) for row in data.rows],
            recipe,
            Path(folder) / "adapter",
            parent_adapter=parent,
            longest_prompt=policy.max_prompt_tokens + policy.max_tokens,
            on_progress=lambda progress: report(_progress(progress)),
            should_stop=lambda: False,
        )
        if not math.isfinite(trained.loss):
            raise JobError(f"training diverged: the loss is {trained.loss}; lower the recipe's learning_rate")
        report({"phase": "saving", "step": trained.steps, "steps": trained.steps, "loss": trained.loss})
        fingerprint, dtype = _fingerprint(base_dir, Path(folder) / "adapter")
        lost = losses(store, [*new, *replay], TRAINED_KINDS)
        if is_void(lost, job.void_before):
            return {"void": reason(lost)}
        path, digest = store.put_folder("adapters", Path(folder) / "adapter")
    return {
        "digest": digest,
        "path": path,
        "examples": trained.examples,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "loss": trained.loss,
        "fingerprint": fingerprint,
        "dtype": dtype,
        "probe": PROBE[0]["content"],
        "newest_row_ms": data.newest_row_ms,
        "warnings": [*data.warnings, *trained.warnings],
        **msgspec.to_builtins(
            {
                "seen": put_table(store, "seen", places(data.rows)),
                "new_data": put_shard_set(store, job.model, new),
                "replay_data": put_shard_set(store, job.model, replay) if replay else None,
            }
        ),
    }


def recipe_of(overrides: dict[str, float]) -> sft.Recipe:
    """The trainer's defaults with a model's overrides. Raises `JobError` for an unknown field."""
    known = {field.name: field for field in fields(sft.Recipe)}
    unknown = sorted(overrides.keys() - known.keys())
    if unknown:
        raise JobError(f"recipe: unknown fields {unknown}; known: {', '.join(sorted(known))}")
    default = sft.Recipe()
    return replace(default, **{name: type(getattr(default, name))(value) for name, value in overrides.items()})


def _progress(progress: sft.Progress) -> dict[str, Any]:
    return {
        "phase": "training",
        "step": progress.step,
        "steps": progress.steps,
        "loss": progress.loss,
        "examples_per_s": progress.examples_per_s,
        "time_left_s": progress.time_left_s,
    }


def _fingerprint(base_dir: Path, adapter_dir: Path) -> tuple[list[float], str]:
    """The adapter's logits through the very engine that will serve it, and the number type that it computes in."""
    engine = Engine(base_dir, slots=1)
    try:
        engine.load("candidate", adapter_dir)
        return engine.fingerprint("candidate"), engine.dtype
    finally:
        engine.close()
