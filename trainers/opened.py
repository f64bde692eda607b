"""The stored rows that a job learns from and a verdict rests on: all new ones, and of older ones what is used.

Of what the champion has learned from already a job replays a share, and the gate asks at most so many questions;
nothing else is opened (`streams.sorted_copies`). Both look up what else was said on the same, so that the same word
stands.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from schemas.events import JobRequested, ShardRef, ShardSet
from schemas.policy import MOST_TEST_ROWS, ModelPolicy
from streams import sorted_copies
from streams.artifacts import ArtifactError, ArtifactStore, get_shard_set
from streams.sorted_copies import Sample
from trainers.dataset import TrainingSet, training_set
from trainers.rows import JudgingRow, Rows, judging_rows, read_rows

log = logging.getLogger(__name__)
# Some of what is opened turns out to be of no use: overruled, a hold-out's question, more than one may say.
TAUGHT_SLACK, HELD_SLACK = 2.0, 1.25


class JobError(RuntimeError):
    """A job cannot be done as it was asked for; the message says why."""


def job_data(
    job: JobRequested, policy: ModelPolicy, store: ArtifactStore, new: list[ShardRef], replay: list[ShardRef]
) -> TrainingSet:
    """The rows a job trains on; what came since the last job is sorted first, for this one and all that follow.

    Raises `JobError` where there is none, and `ArtifactError`.
    """
    try:
        sorted_copies.sort(store, job.model, replay)
    except (ArtifactError, OSError) as error:  # a full disk; the job opens more files, and goes on
        log.warning("%s: old rows are not sorted: %s", job.job_id, error)
    data = taught_rows(store, job.model, job.job_id, new, replay, policy)
    if not data.rows:
        raise JobError(f"{job.new_data.shards} shards hold no training example")
    for why, count in data.left_out.items():
        log.info("%s: %d rows are left out: %s", job.job_id, count, why)
    return data


def taught_rows(
    store: ArtifactStore, model: str, job_id: str, new: Sequence[ShardRef], old: Sequence[ShardRef], policy: ModelPolicy
) -> TrainingSet:
    """What a job trains on. Which old rows it replays is chosen by its id. Raises `ArtifactError`."""
    taught = round(TAUGHT_SLACK * _most_replayed(new, policy))
    sample = Sample(model, taught, round(HELD_SLACK * MOST_TEST_ROWS), _share_of(job_id))
    return training_set(read_rows(store, new, old, policy.corrections, sample), policy, seed=0)


def judged_rows(
    store: ArtifactStore, model: str, new: ShardSet, old: ShardSet | None, policy: ModelPolicy
) -> tuple[list[JudgingRow], Rows]:
    """The rows that judge a candidate, and those that were opened for it. Raises `ArtifactError`."""
    sample = Sample(model, 0, round(HELD_SLACK * MOST_TEST_ROWS))
    rows = read_rows(store, get_shard_set(store, new), get_shard_set(store, old), policy.corrections, sample)
    return judging_rows(rows, policy.near_duplicate_similarity), rows


def _most_replayed(new: Sequence[ShardRef], policy: ModelPolicy) -> int:
    if policy.replay_share >= 1:
        return policy.max_replay_examples
    fresh = sum(ref.rows for ref in new)
    return min(policy.max_replay_examples, round(fresh * policy.replay_share / (1 - policy.replay_share)))


def _share_of(job_id: str) -> float:
    return int(hashlib.sha256(job_id.encode()).hexdigest()[:13], 16) / 16**13
