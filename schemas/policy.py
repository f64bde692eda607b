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
# What may ask for a job; the first one always may. Training anew after an erasure costs much, and is asked for.
TRIGGERS = ("drift", "volume", "age", "person", "erasure", "base")
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
    # when to learn: what may ask for a job, and what a job waits for
    triggers: list[str] = msgspec.field(default_factory=lambda: ["drift", "volume", "age", "person", "base"])
    min_initial_examples: int = 200
    min_new_examples: int = 200
    max_age_days: float = 90.0
    cooldown_s: float = 0.0
    max_jobs_per_day: int = 24
    # how long a job may train, its candidate be judged, and either make no progress
    job_limit_s: float = 21_600.0
    verdict_limit_s: float = 7_200.0
    silent_limit_s: float = 900.0
    # what a job learns from besides
    replay_share: float = 0.3
    max_replay_examples: int = 5000
    # how to judge
    max_retention_loss: float = 0.05
    min_holdout_examples: int = 50
    confidence: float = 0.95
    max_live_loss: float = 0.1
    # how long after a promotion the version before is still asked the same questions
    review_answers: int = 300
    review_days: float = 14.0
    # with fewer test rows than the margin needs: judge by the margin that they can show, or wait for more
    small_data: str = "widen"
    # whose verdicts the registry heeds
    judges: list[str] = msgspec.field(default_factory=lambda: ["gate"])
    # when to be alarmed
    baseline_answers: int = 100
    tolerated_loss: float = 0.05
    false_alarm_days: float = 365.0  # between two of a model that did not change
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

    def __post_init__(self) -> None:
        unknown = {kind for kind in self.metrics.values() if kind not in ("boolean", "float")}
        if unknown:
            raise ValueError(f"metrics: expected `boolean` or `float`, got {sorted(unknown)}")
        if self.metrics.get(self.quality_metric) != "boolean":
            raise ValueError(f"quality_metric {self.quality_metric!r} must be one of metrics, a boolean")
        _chosen("augment", self.augment, AUGMENTATIONS)
        _chosen("triggers", self.triggers, TRIGGERS)
        for name, known in (("corrections", CORRECTIONS), ("small_data", SMALL_DATA)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        scores = sorted(metric for metric, kind in self.metrics.items() if kind == "float")
        for name in self.thresholds:
            if name not in scores:
                raise ValueError(f"thresholds: {name!r} is not a float metric; those are: {', '.join(scores) or '-'}")
        for name, (least, most) in WITHIN.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}: expected between {least:,} and {most:,}, got {value}")
        if self.validation_share + self.test_share >= 1:
            left = self.validation_share + self.test_share
            raise ValueError(f"validation_share and test_share: {left:g} of all rows judge, and none would teach")


_MANY, _YEAR_S = 1_000_000_000, 31_536_000
# The least and the most of each number: beyond them something ends later, far from the setting (a date that no calendar
# has, a count that no column holds).
WITHIN: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 1_000_000), "max_prompt_tokens": (1, 10_000_000), "min_initial_examples": (1, _MANY),
    "min_new_examples": (1, _MANY), "max_age_days": (1, 36_500), "cooldown_s": (0, _YEAR_S),
    "max_jobs_per_day": (1, _MANY), "job_limit_s": (1, _YEAR_S), "verdict_limit_s": (1, _YEAR_S),
    "silent_limit_s": (10, _YEAR_S), "replay_share": (0, 1), "max_replay_examples": (0, _MANY),
    "max_retention_loss": (0.001, 1), "min_holdout_examples": (1, MOST_TEST_ROWS), "confidence": (0.5001, 0.9999),
    "max_live_loss": (0.001, 1),
    "review_answers": (60, 100_000), "review_days": (0, 3_650),
    "baseline_answers": (100, _MANY), "tolerated_loss": (0.001, 0.999),
    "false_alarm_days": (1, 100_000), "validation_share": (0, 1), "test_share": (0, 1),
    "max_rows_per_subject": (1, _MANY), "near_duplicate_similarity": (0.01, 1),
}  # fmt: skip


def _chosen(name: str, given: list[str], known: tuple[str, ...]) -> None:
    strange = sorted(set(given) - set(known))
    if strange:
        raise ValueError(f"{name}: expected some of {', '.join(known)}, got {strange}")


def must_be_better(reason: str, accept: str) -> bool:
    """Whether the candidate of a job must be better than what serves, not only no worse (`JobRequested`)."""
    return reason not in _NO_BETTER_NEEDED and accept != NO_WORSE
