"""What is configured for one model: its base, its metrics, when it learns and how it is judged.

Plain frozen values, read once from the settings file (`deploy.settings`) and handed down.
"""

from __future__ import annotations

import msgspec

from schemas.names import Name

AUGMENTATIONS = ("unpunctuated", "swapped", "dropped")
# What a person may accept of a candidate, and what asks for no better one.
NO_WORSE = "no worse"
_NO_BETTER_NEEDED = ("age", "erasure")
MOST_TEST_ROWS = 2_000  # of a part are asked
TRUSTED = "trusted"
CORRECTIONS, SMALL_DATA = ("anyone", TRUSTED), ("widen", "wait")


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy of one model. Shares and losses are fractions of 1, times are in seconds."""

    base: Name = "pydoc-4m"
    quality_metric: str = "correct"
    metrics: dict[str, str] = msgspec.field(default_factory=lambda: {"correct": "boolean", "rating": "float"})
    # a score at or above its metric's threshold is a good answer to learn from, one below it a bad one
    thresholds: dict[str, float] = {}
    max_tokens: int = 64
    max_prompt_tokens: int = 768
    # when to learn
    min_initial_examples: int = 200
    min_new_examples: int = 200
    cooldown_s: float = 0.0
    max_jobs_per_day: int = 24
    replay_share: float = 0.3
    max_replay_examples: int = 5000
    # how to judge
    max_retention_loss: float = 0.05
    min_holdout_examples: int = 50
    confidence: float = 0.95
    max_live_loss: float = 0.1
    # with fewer test rows than the margin needs: judge by the margin that they can show, or wait for more
    small_data: str = "widen"
    # whose verdicts the registry heeds
    judges: list[str] = msgspec.field(default_factory=lambda: ["gate"])
    # when to be alarmed
    baseline_answers: int = 100
    tolerated_loss: float = 0.05
    average_run_length: float = 10_000.0
    # how the data is split (by a key of the identity secret); never change these while the data lives
    validation_share: float = 0.0
    test_share: float = 0.2
    # how it is prepared
    phone_regions: list[str] = []
    max_rows_per_subject: int = 100  # said in any 30 days, of one job
    # whose newer answer replaces an older one: anyone's; or the same subject's, an import's, an expert's, three units'
    corrections: str = "anyone"
    experts: list[str] = []
    # what the company says of itself is not masked in answers
    own_contacts: list[str] = []
    near_duplicate_similarity: float = 0.85
    augment: list[str] = []
    # how it is trained: overrides of the trainer's recipe, by field name
    recipe: dict[str, float] = {}
    # whether a model is trained anew from its base when somebody it learned from is forgotten
    retrain_after_erasure: bool = False

    def __post_init__(self) -> None:
        unknown = {kind for kind in self.metrics.values() if kind not in ("boolean", "float")}
        if unknown:
            raise ValueError(f"metrics: expected `boolean` or `float`, got {sorted(unknown)}")
        if self.metrics.get(self.quality_metric) != "boolean":
            raise ValueError(f"quality_metric {self.quality_metric!r} must be one of metrics, a boolean")
        strange = set(self.augment) - set(AUGMENTATIONS)
        if strange:
            raise ValueError(f"augment: expected some of {', '.join(AUGMENTATIONS)}, got {sorted(strange)}")
        if self.max_rows_per_subject < 1:
            raise ValueError(f"max_rows_per_subject: expected 1 or more, got {self.max_rows_per_subject}")
        if self.min_holdout_examples > MOST_TEST_ROWS:
            raise ValueError(
                f"min_holdout_examples: at most {MOST_TEST_ROWS} rows are ever asked, got {self.min_holdout_examples}"
            )
        for name, known in (("corrections", CORRECTIONS), ("small_data", SMALL_DATA)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        scores = sorted(metric for metric, kind in self.metrics.items() if kind == "float")
        for name in self.thresholds:
            if name not in scores:
                raise ValueError(f"thresholds: {name!r} is not a float metric; those are: {', '.join(scores) or '-'}")
        for name in ("validation_share", "test_share", "replay_share", "max_retention_loss",
                     "near_duplicate_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share between 0 and 1, got {getattr(self, name)}")


def must_be_better(reason: str, accept: str) -> bool:
    """Whether the candidate of a job must be better than what serves, not only no worse (`JobRequested`)."""
    return reason not in _NO_BETTER_NEEDED and accept != NO_WORSE
