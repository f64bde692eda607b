"""The topics: a row each. Topic creation, landing tables and the README's table are derived from this list.

`partition_by` says what sets the partition: `key` is Kafka's murmur2 of the key (librdkafka's
`murmur2_random`, the Java client's and Faust's default), anything else is set explicitly
(`schemas.identity.partition_of`). Topics with a person's words are compacted on the record's own
never-reused id, so that a null value can forget exactly one record.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from schemas import events as e

DAY_MS = 86_400_000
# The broker refuses a record whose own timestamp is further ahead of its clock: nothing said later could correct it.
# Its producer's time counts, not the broker's: a dead letter that is put back keeps the time of its record.
CREATED_AHEAD_MS = 3_600_000
STRANGERS = "applications"


@dataclass(frozen=True)
class Topic:
    """One Kafka topic: what it carries, how it is keyed and kept, who writes and who reads it."""

    name: str
    events: tuple[type[msgspec.Struct], ...]
    key: str
    partition_by: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    cleanup: str = "delete"
    retention_days: int = -1
    partitions: int = 1
    personal: bool = False
    headerless: bool = False
    transactional: bool = False
    max_bytes: int = 0  # of one record; 0 = what the broker takes (1 MiB by default)

    def config(self) -> dict[str, str]:
        """Broker-side settings of this topic."""
        retention_ms = self.retention_days * DAY_MS if self.retention_days >= 0 else -1
        config = {
            "cleanup.policy": self.cleanup, "retention.ms": str(retention_ms),
            "message.timestamp.after.max.ms": str(CREATED_AHEAD_MS),
        }
        if self.personal:
            # A tombstone must reach the disk within a day, however quiet the partition is.
            config |= {"max.compaction.lag.ms": str(DAY_MS), "segment.ms": str(DAY_MS)}
        return config | self.bounds()

    def bounds(self) -> dict[str, str]:
        """The settings of a topic that bound what one record costs its readers."""
        bounds = {"max.message.bytes": str(self.max_bytes)} if self.max_bytes else {}
        if STRANGERS in self.producers:
            # A broker's limit is on what is compressed: a megabyte of zstd may hold gigabytes for whoever unpacks it.
            # Packed anew by the broker as lz4, which saves 255 to 1 at most, it is refused or holds at most 255 MB. For
            # that the broker unpacks it: one whose heap is too small for it ends, without having taken the record.
            bounds["compression.type"] = "lz4"
        return bounds


DATA_PARTITIONS = 4
# A broker's limit (1 MiB) is on what is compressed, a client's on what is not; and a consumer could never get past a
# record whose letter is refused.
DEAD_LETTER_BYTES = 32 * 1024 * 1024
# Records in a row that a consumer may refuse before it takes its input for garbage, slows down and raises an alarm.
MAX_REFUSED = 1_000

TOPICS: tuple[Topic, ...] = (
    Topic(
        "training.raw", (e.RecordSubmitted,), "record id", "subject",
        ("applications", "tuneloop data add", "join-feedback"), ("prepare", "monitor", "erase"),
        cleanup="compact", partitions=DATA_PARTITIONS, personal=True, headerless=True,
    ),
    Topic(
        "training.shards", (e.ShardWritten, e.SubjectShared), "shard_id or subject_key", "key",
        ("prepare", "erase"), ("monitor", "prepare", "erase"), transactional=True,
    ),
    Topic(
        "training.triggers", (e.TriggerOpened, e.TriggerClosed), "trigger_id", "key",
        ("conduct",), ("conduct", "monitor"), transactional=True,
    ),
    Topic(
        "training.jobs", (e.JobRequested,), "job_id", "key",
        ("conduct",), ("work", "conduct", "monitor"), transactional=True,
    ),
    Topic(
        "training.progress", (e.JobProgressed, e.JobEnded, e.JobDeferred), "job_id or trigger_id", "key",
        ("work", "gate", "conduct"), ("monitor",), retention_days=90, transactional=True,
    ),
    Topic(
        "models.candidates", (e.CandidateTrained, e.ReviewRequested), "job_id or review_id", "key",
        ("work", "conduct"), ("gate", "conduct", "monitor"), transactional=True,
    ),
    Topic(
        "models.verdicts", (e.VerdictReached, e.ReviewReached), "job_id or review_id", "key",
        ("gate",), ("register", "monitor"), transactional=True,
    ),
    Topic(
        "models.registry", (e.ModelStateChanged, e.BaseRegistered, e.ModelConfigured),
        "model/NAME, base/NAME or policy/NAME", "key",
        ("register",), ("serve", "gate", "monitor"), cleanup="compact", transactional=True,
    ),
    Topic(
        "models.commands",
        (
            e.BaseAddRequested, e.RollbackRequested, e.TrainingRequested, e.ModelConfigure, e.JobControlRequested,
            e.TriggerCloseRequested, e.HoldRequested,
        ),
        "model", "key",
        ("tuneloop",), ("register", "conduct", "monitor"),
    ),
    Topic(
        "models.decisions", (e.DecisionMade, e.SharesSet), "model", "key",
        ("register",), ("monitor",), transactional=True,
    ),
    Topic(
        "models.deployments", (e.AdapterLoaded,), "replica", "key",
        ("serve",), ("monitor",), retention_days=90,
    ),
    Topic(
        "usage.inferences", (e.InferenceServed,), "inference_id", "key",
        ("serve",), ("join-feedback", "monitor", "erase"), cleanup="compact,delete", retention_days=30,
        partitions=DATA_PARTITIONS, personal=True,
    ),
    Topic(
        "usage.requests", (e.RequestEnded,), "request_id", "key",
        ("serve",), ("monitor",), retention_days=30, partitions=DATA_PARTITIONS,
    ),
    Topic(
        "usage.shadows", (e.ShadowAnswered,), "inference_id", "key",
        ("serve",), ("monitor", "erase"), cleanup="compact,delete", retention_days=30,
        partitions=DATA_PARTITIONS, personal=True,
    ),
    Topic(
        "usage.feedback", (e.FeedbackGiven,), "inference_id/feedback_id/metric_name/said_ms", "inference",
        ("serve", "applications"), ("join-feedback", "monitor", "erase"), cleanup="compact,delete", retention_days=30,
        partitions=DATA_PARTITIONS, personal=True, headerless=True,
    ),
    Topic(
        "monitor.performance", (e.PerformanceMeasured,), "model@version", "key",
        ("monitor",), ("conduct", "monitor"), retention_days=90,
    ),
    Topic("monitor.drift", (e.DriftDetected,), "drift_id", "key", ("monitor",), ("conduct", "monitor")),
    Topic("monitor.alerts", (e.AlertSent,), "alert_id", "key", ("monitor",), ("monitor",), retention_days=90),
    Topic(
        "subjects.erasures", (e.ErasureRequested, e.ErasureCompleted), "erasure_id", "key",
        ("tuneloop", "erase"), ("erase", "prepare", "register", "monitor"), cleanup="compact", personal=True,
        transactional=True,
    ),
)
BY_NAME: dict[str, Topic] = {topic.name: topic for topic in TOPICS}
TOPIC_OF: dict[type[msgspec.Struct], Topic] = {event: topic for topic in TOPICS for event in topic.events}

CONSUMER_GROUPS = ("prepare", "join-feedback", "monitor", "conduct", "work", "gate", "register", "erase")


def dead_letters(group: str) -> Topic:
    """The dead-letter topic of one consumer group: original bytes, reason in `__connect.errors.*` headers."""
    if group not in CONSUMER_GROUPS:
        raise ValueError(f"no consumer group {group!r}; known: {', '.join(CONSUMER_GROUPS)}")
    return Topic(
        f"dead.{group}", (), "origin (topic/partition/offset)", "key", (group,), ("tuneloop dlq",),
        cleanup="compact", personal=True, max_bytes=DEAD_LETTER_BYTES,
    )


def all_topics() -> tuple[Topic, ...]:
    """Every topic that must exist, dead letters included."""
    return TOPICS + tuple(dead_letters(group) for group in CONSUMER_GROUPS)
