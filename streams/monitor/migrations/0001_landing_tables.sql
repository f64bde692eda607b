CREATE DATABASE IF NOT EXISTS tuneloop;

CREATE TABLE IF NOT EXISTS tuneloop.record_submitted
(
    `model` LowCardinality(String),
    `kind` String,
    `messages` String,
    `prompt` String,
    `completion` String,
    `chosen` String,
    `rejected` String,
    `label` Nullable(Bool),
    `record_id` String,
    `subject_id` String,
    `conversation_id` String,
    `inference_id` String,
    `origin` String,
    `tools` String,
    `task` String,
    `labels` String,
    `split` String,
    `import_id` String,
    `source_record` String,
    `sampled` String,
    `author` String,
    `said_ms` Int64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.shard_written
(
    `model` LowCardinality(String),
    `shard_id` String,
    `path` String,
    `digest` String,
    `size_bytes` Int64,
    `rows` Int64,
    `rows_by_kind` String,
    `rows_by_split` String,
    `units_by_split` String,
    `undated_tests` Int64,
    `rows_by_class` String,
    `dropped` String,
    `masked` String,
    `contradictions` Int64,
    `asked` Int64,
    `augmented` Int64,
    `erased` Int64,
    `replaces` String,
    `source_topic` String,
    `source_partition` Int64,
    `first_offset` Int64,
    `last_offset` Int64,
    `rules_version` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.subject_shared
(
    `model` LowCardinality(String),
    `subject_key` String,
    `rows` Int64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.trigger_opened
(
    `model` LowCardinality(String),
    `trigger_id` String,
    `ordinal` Int64,
    `kind` String,
    `reason` String,
    `version` Int64,
    `drift_id` String,
    `changed_at` Int64,
    `from_base` Bool,
    `accept` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.trigger_closed
(
    `model` LowCardinality(String),
    `trigger_id` String,
    `ordinal` Int64,
    `because` String,
    `reason` String,
    `job_id` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.job_requested
(
    `model` LowCardinality(String),
    `job_id` String,
    `reason` String,
    `base` String,
    `base_path` String,
    `base_digest` String,
    `parent_version` Int64,
    `parent_path` String,
    `parent_digest` String,
    `new_data` String,
    `replay_data` String,
    `drift_id` String,
    `answers` String,
    `spec` String,
    `policy_epoch` Int64,
    `changed_at` Int64,
    `accept` String,
    `recipe` String,
    `void_before` Int64,
    `new_examples` Int64,
    `live_quality` Nullable(Float64),
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.job_progressed
(
    `model` LowCardinality(String),
    `job_id` String,
    `phase` String,
    `step` Int64,
    `steps` Int64,
    `loss` Nullable(Float64),
    `examples_per_s` Nullable(Float64),
    `time_left_s` Nullable(Float64),
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.job_ended
(
    `model` LowCardinality(String),
    `job_id` String,
    `outcome` String,
    `reason` String,
    `seconds` Float64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.job_deferred
(
    `model` LowCardinality(String),
    `trigger_id` String,
    `waits_for` String,
    `new_examples` Int64,
    `min_new_examples` Int64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.candidate_trained
(
    `model` LowCardinality(String),
    `job_id` String,
    `digest` String,
    `path` String,
    `base` String,
    `base_path` String,
    `base_digest` String,
    `parent_version` Int64,
    `new_data` String,
    `replay_data` String,
    `method` String,
    `examples` Int64,
    `steps` Int64,
    `tokens` Int64,
    `loss` Float64,
    `seconds` Float64,
    `fingerprint` String,
    `dtype` String,
    `probe` String,
    `seen` String,
    `reason` String,
    `changed_at` Int64,
    `accept` String,
    `newest_row_ms` Int64,
    `warnings` String,
    `drift_id` String,
    `void_before` Int64,
    `live_quality` Nullable(Float64),
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.review_requested
(
    `model` LowCardinality(String),
    `review_id` String,
    `version` Int64,
    `previous` Int64,
    `epoch` Int64,
    `look` Int64,
    `since_ms` Int64,
    `data` String,
    `live_quality` Nullable(Float64),
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.verdict_reached
(
    `model` LowCardinality(String),
    `job_id` String,
    `digest` String,
    `passed` Bool,
    `reason` String,
    `champion_version` Int64,
    `checks` String,
    `path` String,
    `base` String,
    `base_digest` String,
    `fingerprint` String,
    `new_data` String,
    `replay_data` String,
    `drift_id` String,
    `seconds` Float64,
    `void` Bool,
    `failed` Bool,
    `erasures` String,
    `judge` String,
    `dtype` String,
    `probe` String,
    `seen` String,
    `test_rows` String,
    `scores` String,
    `live_quality` String,
    `warnings` String,
    `superior` Bool,
    `newest_row_ms` Int64,
    `changed_at` Int64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.review_reached
(
    `model` LowCardinality(String),
    `review_id` String,
    `version` Int64,
    `previous` Int64,
    `epoch` Int64,
    `worse` Bool,
    `reason` String,
    `checks` String,
    `judge` String,
    `failed` Bool,
    `seconds` Float64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.model_state_changed
(
    `model` LowCardinality(String),
    `base` String,
    `epoch` Int64,
    `champion` Int64,
    `previous` Int64,
    `challenger` Int64,
    `shares` String,
    `versions` String,
    `change` String,
    `reason` String,
    `held` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.base_registered
(
    `model` LowCardinality(String),
    `path` String,
    `digest` String,
    `architecture` String,
    `parameters` Int64,
    `context_tokens` Int64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.model_configured
(
    `model` LowCardinality(String),
    `policy` String,
    `epoch` Int64,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.base_add_requested
(
    `model` LowCardinality(String),
    `path` String,
    `digest` String,
    `architecture` String,
    `parameters` Int64,
    `context_tokens` Int64,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.rollback_requested
(
    `model` LowCardinality(String),
    `to_version` Int64,
    `epoch` Int64,
    `reason` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.training_requested
(
    `model` LowCardinality(String),
    `reason` String,
    `from_base` Bool,
    `accept` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.model_configure
(
    `model` LowCardinality(String),
    `policy` String,
    `epoch` Int64,
    `reason` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.job_control_requested
(
    `model` LowCardinality(String),
    `job_id` String,
    `action` String,
    `reason` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.trigger_close_requested
(
    `model` LowCardinality(String),
    `trigger_id` String,
    `reason` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.hold_requested
(
    `model` LowCardinality(String),
    `hold` Bool,
    `reason` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.decision_made
(
    `model` LowCardinality(String),
    `decision` String,
    `reason` String,
    `version` Int64,
    `previous` Int64,
    `digest` String,
    `job_id` String,
    `drift_id` String,
    `epoch` Int64,
    `deletes` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.shares_set
(
    `model` LowCardinality(String),
    `shares` String,
    `epoch` Int64,
    `rule` String,
    `reason` String,
    `actor` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.adapter_loaded
(
    `model` LowCardinality(String),
    `version` Int64,
    `digest` String,
    `replica` String,
    `loaded` Bool,
    `reason` String,
    `seconds` Float64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.inference_served
(
    `model` LowCardinality(String),
    `inference_id` String,
    `version` Int64,
    `requested` String,
    `base` String,
    `digest` String,
    `subject_id` String,
    `conversation_id` String,
    `messages` String,
    `answer` String,
    `finish_reason` String,
    `input_tokens` Int64,
    `output_tokens` Int64,
    `latency_ms` Float64,
    `first_token_ms` Float64,
    `streamed` Bool,
    `temperature` Float64,
    `max_tokens` Int64,
    `replica` String,
    `labels` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.request_ended
(
    `model` LowCardinality(String),
    `request_id` String,
    `status` Int64,
    `inference_id` String,
    `version` Int64,
    `requested` String,
    `error` String,
    `finish_reason` String,
    `input_tokens` Int64,
    `output_tokens` Int64,
    `cached_tokens` Int64,
    `queue_ms` Float64,
    `first_token_ms` Float64,
    `latency_ms` Float64,
    `streamed` Bool,
    `replica` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.shadow_answered
(
    `model` LowCardinality(String),
    `inference_id` String,
    `version` Int64,
    `digest` String,
    `subject_id` String,
    `conversation_id` String,
    `answer` String,
    `finish_reason` String,
    `output_tokens` Int64,
    `latency_ms` Float64,
    `replica` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.feedback_given
(
    `inference_id` String,
    `metric_name` String,
    `value` String,
    `feedback_id` String,
    `subject_id` String,
    `conversation_id` String,
    `tags` String,
    `author` String,
    `said_ms` Int64,
    `episode` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.performance_measured
(
    `model` LowCardinality(String),
    `version` Int64,
    `metric` String,
    `requests` Int64,
    `feedback_share` Float64,
    `quality_n` Int64,
    `quality_people` Int64,
    `quality` Nullable(Float64),
    `quality_low` Nullable(Float64),
    `quality_high` Nullable(Float64),
    `recent_n` Int64,
    `recent_people` Int64,
    `recent_quality` Nullable(Float64),
    `recent_low` Nullable(Float64),
    `recent_high` Nullable(Float64),
    `rating` Nullable(Float64),
    `latency_ms_p50` Nullable(Float64),
    `latency_ms_p99` Nullable(Float64),
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.drift_detected
(
    `model` LowCardinality(String),
    `drift_id` String,
    `version` Int64,
    `metric` String,
    `baseline` Float64,
    `threshold` Float64,
    `current` Float64,
    `evidence` Float64,
    `average_run_length` Float64,
    `answers` Int64,
    `people` Int64,
    `changed_at` Int64,
    `policy_epoch` Int64,
    `first_partition` Int64,
    `first_offset` Int64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.alert_sent
(
    `model` LowCardinality(String),
    `alert` String,
    `severity` String,
    `channel` String,
    `text` String,
    `alert_id` String,
    `resolved` Bool,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (model, ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.erasure_requested
(
    `erasure_id` String,
    `subject_hash` String,
    `key_id` String,
    `subject_id` String,
    `requested_by` String,
    `inferences` String,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;

CREATE TABLE IF NOT EXISTS tuneloop.erasure_completed
(
    `erasure_id` String,
    `subject_hash` String,
    `tombstones` String,
    `shards` Int64,
    `rows` Int64,
    `adapters` String,
    `jobs` String,
    `deleted` Int64,
    `log_places` Int64,
    `seconds` Float64,
    `ts` DateTime64(3, 'UTC'),
    `ce_id` String,
    `ce_source` LowCardinality(String),
    `ce_subject` String,
    `correlation_id` String,
    `causation_id` String,
    `_topic` LowCardinality(String),
    `_partition` Int32,
    `_offset` Int64,
    `_key` String,
    `_landed_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (ts, _partition, _offset)
SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, max_cleanup_delay_period = 5, finished_mutations_to_keep = 1;
