CREATE TABLE IF NOT EXISTS tuneloop.model_policy
(
    model String,
    base String,
    quality_metric String,
    updated_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY model;

-- What is said of each answer now, by metric and kind of value. A piece of feedback is known by its id, where it has none
-- by its record's: the same value again is a retry and its first time holds, another value is a correction. Of several
-- pieces the newest holds. `first` is where the first word stands: time, partition, offset.
CREATE OR REPLACE VIEW tuneloop.feedback_in_force AS
SELECT
    inference_id,
    metric_name,
    kind,
    argMax(held, (since, length(id), id)) AS value,
    min(first_word) AS first
FROM
(
    SELECT
        inference_id,
        metric_name,
        kind,
        id,
        arraySort(groupArray((ts, p, o, said))) AS words,
        words[-1].4 AS held,
        words[arrayLastIndex(word -> word.4 != held, words) + 1].1 AS since,
        (words[1].1, words[1].2, words[1].3) AS first_word
    FROM
    (
        SELECT inference_id, metric_name, if(feedback_id = '', ce_id, feedback_id) AS id, value AS said, ts,
            _partition AS p, _offset AS o,
            multiIf(value IN ('true', 'false'), 'boolean', startsWith(value, '"'), 'text', 'number') AS kind
        FROM tuneloop.feedback_given FINAL
    )
    GROUP BY inference_id, metric_name, kind, id
)
GROUP BY inference_id, metric_name, kind;

-- One score an answer: what the quality metric says, else whether a demonstration of at most 64 characters is the answer.
-- An answer that was cut off is never a right one.
CREATE OR REPLACE VIEW tuneloop.scored_answers AS
SELECT
    i.model AS model,
    i.version AS version,
    i.inference_id AS inference_id,
    i.subject_id AS subject_id,
    i.conversation_id AS conversation_id,
    -- Of live traffic. A request that names a version is somebody's try.
    NOT match(i.requested, '@[0-9]+$') AS by_alias,
    i.ts AS answered_at,
    greatest(first.1, i.ts) AS scored_at,
    if(notEmpty(thumb), thumb[1].2, NOT i.cut_off AND a.answer = shown[1].1) AS correct,
    first.2 AS _partition,
    first.3 AS _offset,
    arrayFilter(one -> one.1 = p.quality_metric, f.thumbs) AS thumb,
    f.shown AS shown,
    arraySort(arrayConcat(arrayMap(one -> one.3, thumb), arrayMap(one -> one.2, shown)))[1] AS first
FROM
(
    SELECT inference_id,
        groupArrayIf((metric_name, value = 'true', first), kind = 'boolean') AS thumbs,
        groupArrayIf((stripped, first), metric_name = 'demonstration' AND kind = 'text'
            AND lengthUTF8(stripped) BETWEEN 1 AND 64) AS shown
    FROM
    (
        SELECT inference_id, metric_name, kind, value, first,
            replaceRegexpAll(JSONExtractString(value), '^[\\s\\p{Z}]+|[\\s\\p{Z}]+$', '') AS stripped
        FROM tuneloop.feedback_in_force
    )
    GROUP BY inference_id
) AS f
INNER JOIN
(
    SELECT model, version, inference_id, subject_id, conversation_id, requested, ts, finish_reason IN ('cancelled', 'error') AS cut_off
    FROM tuneloop.inference_served FINAL
) AS i ON f.inference_id = i.inference_id
INNER JOIN (SELECT model, quality_metric FROM tuneloop.model_policy FINAL) AS p ON p.model = i.model
-- Answers are long: only those are read that were demonstrated.
LEFT JOIN
(
    SELECT inference_id, replaceRegexpAll(any(answer), '^[\\s\\p{Z}]+|[\\s\\p{Z}]+$', '') AS answer
    FROM tuneloop.inference_served
    PREWHERE inference_id IN (SELECT inference_id FROM tuneloop.feedback_given WHERE metric_name = 'demonstration')
    GROUP BY inference_id
) AS a ON a.inference_id = i.inference_id
WHERE (notEmpty(thumb) OR notEmpty(shown)) AND NOT (i.cut_off AND correct);

-- Whether live feedback tells how well a model does (`streams.monitor.known` says it in words): of its last 500 opinions
-- at least 1 in 20 says that an answer was right. `live` is the serving version's share right, each person counted alike.
CREATE OR REPLACE VIEW tuneloop.quality_known AS
SELECT
    p.model AS model,
    s.opinions AS opinions,
    s.said_right AS said_right,
    if(opinions = 0, NULL, said_right / opinions) AS share_right,
    opinions > 0 AND said_right * 20 >= opinions AS known,
    multiIf(
        known, '',
        opinions > 0, 'hardly an opinion says that an answer was right',
        g.answers > 0, 'no opinion says whether an answer was right',
        'no opinion yet') AS why,
    g.answers AS answers_with_feedback,
    if(c.people = 0, NULL, c.mean_share) AS live
FROM (SELECT model FROM tuneloop.model_policy FINAL) AS p
LEFT JOIN
(
    SELECT model, count() AS opinions, sum(correct) AS said_right
    FROM
    (
        SELECT model, correct FROM tuneloop.scored_answers WHERE by_alias
        ORDER BY scored_at DESC, _partition DESC, _offset DESC LIMIT 500 BY model
    )
    GROUP BY model
) AS s ON s.model = p.model
LEFT JOIN
(
    SELECT model, count() AS answers
    FROM (SELECT model, inference_id FROM tuneloop.inference_served FINAL)
    WHERE inference_id IN (SELECT inference_id FROM tuneloop.feedback_given)
    GROUP BY model
) AS g ON g.model = p.model
LEFT JOIN
(
    SELECT model, count() AS people, avg(share) AS mean_share
    FROM
    (
        SELECT model, subject_id, avg(correct) AS share
        FROM
        (
            SELECT a.model AS model, a.subject_id AS subject_id, a.correct AS correct
            FROM tuneloop.scored_answers AS a
            LEFT JOIN
            (
                SELECT model, argMax(champion, (epoch, _offset)) AS champion
                FROM tuneloop.model_state_changed FINAL GROUP BY model
            ) AS m ON m.model = a.model
            WHERE a.by_alias AND a.version = m.champion
            ORDER BY a.scored_at DESC, a._partition DESC, a._offset DESC LIMIT 500 BY model
        )
        GROUP BY model, subject_id
    )
    GROUP BY model
) AS c ON c.model = p.model;

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
        avgOrNullIf(toFloat64OrNull(value), metric_name = 'rating' AND kind = 'number') AS rating
    FROM tuneloop.feedback_in_force
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
