CREATE TABLE IF NOT EXISTS tuneloop.model_policy
(
    model String,
    base String,
    quality_metric String,
    updated_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY model;

CREATE OR REPLACE VIEW tuneloop.scored_answers AS
SELECT
    i.model AS model,
    i.version AS version,
    i.inference_id AS inference_id,
    i.subject_id AS subject_id,
    -- Of live traffic. A request that names a version is somebody's try.
    NOT match(i.requested, '@[0-9]+$') AS by_alias,
    i.ts AS answered_at,
    greatest(f.first_ts, i.ts) AS scored_at,
    f.value = 'true' AS correct,
    f._partition AS _partition,
    f._offset AS _offset
FROM
(
    SELECT inference_id, metric_name, argMax(said, (ts, p, o)) AS value, min(ts) AS first_ts,
        argMin(p, (ts, p, o)) AS _partition, argMin(o, (ts, p, o)) AS _offset
    FROM (SELECT inference_id, metric_name, value AS said, ts, _partition AS p, _offset AS o
          FROM tuneloop.feedback_given FINAL WHERE value IN ('true', 'false'))
    GROUP BY inference_id, metric_name
) AS f
INNER JOIN (SELECT model, version, inference_id, subject_id, requested, ts FROM tuneloop.inference_served FINAL) AS i
    ON f.inference_id = i.inference_id
INNER JOIN (SELECT model, quality_metric FROM tuneloop.model_policy FINAL) AS p
    ON p.model = i.model AND p.quality_metric = f.metric_name;

CREATE OR REPLACE VIEW tuneloop.live_quality AS
WITH 1.959964 AS z
SELECT
    model,
    version,
    toStartOfMinute(answered_at) AS minute,
    count() AS n,
    uniqExact(subject_id) AS people,
    avg(correct) AS quality,
    greatest(0, (quality + z * z / (2 * n) - z * sqrt(quality * (1 - quality) / n + z * z / (4 * n * n))) / (1 + z * z / n)) AS quality_low,
    least(1, (quality + z * z / (2 * n) + z * sqrt(quality * (1 - quality) / n + z * z / (4 * n * n))) / (1 + z * z / n)) AS quality_high
FROM tuneloop.scored_answers
GROUP BY model, version, minute
ORDER BY model, minute, version;

CREATE OR REPLACE VIEW tuneloop.usage_daily AS
SELECT
    toDate(i.ts) AS day,
    i.model AS model,
    i.version AS version,
    count() AS requests,
    sum(i.input_tokens) AS input_tokens,
    sum(i.output_tokens) AS output_tokens,
    quantile(0.5)(i.latency_ms) AS latency_ms_p50,
    quantile(0.99)(i.latency_ms) AS latency_ms_p99,
    uniqExact(i.subject_id) AS subjects,
    countIf(f.scores > 0) AS answers_with_feedback,
    answers_with_feedback / requests AS feedback_share,
    avgIf(f.rating, isNotNull(f.rating)) AS rating
FROM (SELECT * FROM tuneloop.inference_served FINAL) AS i
LEFT JOIN
(
    SELECT inference_id, count() AS scores,
        avgOrNullIf(toFloat64OrNull(value), metric_name = 'rating') AS rating
    FROM tuneloop.feedback_given FINAL
    GROUP BY inference_id
) AS f ON f.inference_id = i.inference_id
GROUP BY day, model, version
ORDER BY day, model, version;

CREATE OR REPLACE VIEW tuneloop.gen_ai_usage AS
SELECT
    ts AS timestamp,
    requested AS `gen_ai.request.model`,
    concat(model, '@', toString(version)) AS `gen_ai.response.model`,
    inference_id AS `gen_ai.response.id`,
    conversation_id AS `gen_ai.conversation.id`,
    finish_reason AS `gen_ai.response.finish_reasons`,
    input_tokens AS `gen_ai.usage.input_tokens`,
    output_tokens AS `gen_ai.usage.output_tokens`,
    temperature AS `gen_ai.request.temperature`,
    max_tokens AS `gen_ai.request.max_tokens`,
    latency_ms / 1000 AS `gen_ai.client.operation.duration`,
    first_token_ms / 1000 AS `gen_ai.server.time_to_first_token`
FROM (SELECT * FROM tuneloop.inference_served FINAL);

CREATE OR REPLACE VIEW tuneloop.lineage AS
SELECT
    p.model AS model,
    p.version AS version,
    p.ts AS promoted_at,
    j.reason AS reason,
    p.drift_id AS drift_id,
    d.ts AS drift_at,
    d.baseline AS drift_baseline,
    d.current AS drift_current,
    p.job_id AS job_id,
    j.ts AS job_at,
    p.digest AS candidate,
    c.ts AS candidate_at,
    c.examples AS examples,
    c.loss AS loss,
    v.ts AS verdict_at,
    v.reason AS verdict,
    coalesce(u.requests, 0) AS requests
FROM (SELECT * FROM tuneloop.decision_made FINAL WHERE decision = 'promoted') AS p
LEFT JOIN (SELECT * FROM tuneloop.job_requested FINAL) AS j ON j.job_id = p.job_id
LEFT JOIN (SELECT * FROM tuneloop.drift_detected FINAL) AS d ON d.drift_id = p.drift_id AND p.drift_id != ''
LEFT JOIN (SELECT * FROM tuneloop.candidate_trained FINAL) AS c ON c.job_id = p.job_id
LEFT JOIN (SELECT * FROM tuneloop.verdict_reached FINAL) AS v ON v.job_id = p.job_id AND v.digest = p.digest
LEFT JOIN
(
    SELECT model, version, count() AS requests FROM tuneloop.inference_served FINAL GROUP BY model, version
) AS u ON u.model = p.model AND u.version = p.version
ORDER BY p.model, p.version
SETTINGS join_use_nulls = 1;
